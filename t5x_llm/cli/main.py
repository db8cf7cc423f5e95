"""The command ``t5x-llm``: one subcommand a job."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t5x_llm.core.errors import OutOfMemory, T5xLLMError, nearest
from t5x_llm.core.memory import is_out_of_memory, out_of_memory

# Group to subcommand to (module in t5x_llm.cli, what it does). A module has main(argv), and
# build_parser() but for ``data``, whose own commands have.
GROUPS = {
    "data": {
        "init": ("init", "write a commented gin file for text of your own"),
        "data": ("data", "clean, deduplicate and decontaminate raw text; what a run reads of it"),
        "grow": ("grow", "give a tokenizer pieces of another language"),
        "prepare": ("prepare", "train the tokenizer and build the token store of a run"),
    },
    "train": {
        "train": ("train", "train a model; python train.py in a checkout"),
        "tune": ("tune", "fine-tune a model: train, with gin files given by name"),
        "plan": (
            "plan",
            "compile the train step for a TPU slice that is not here; memory, time, cost",
        ),
        "budget": ("budget", "tokens, FLOPs, days and money of training a model"),
        "launch": ("launch", "run several processes on this machine, and again when one dies"),
        "submit": ("submit", "run a job on Cloud TPU, GKE or here, and keep it alive"),
    },
    "use": {
        "generate": ("generate", "let a run or a model directory continue a text"),
        "eval": (
            "evaluate",
            "held-out loss and bits per byte of a run or a model directory",
        ),
    },
    "convert": {
        "import": ("import_", "write a Hugging Face or GGUF model as a verified directory"),
        "export": ("export", "write a checkpoint as a Hugging Face directory, proved by parity"),
        "merge": ("merge", "average models, or checkpoints of a run"),
        "adapter": ("adapter", "show an adapter of PEFT's, or merge it into its base"),
        "resize": ("resize", "give a model another vocabulary size"),
        "delta": ("delta", "make or apply the difference of a tuned model from its base"),
    },
    "inspect": {
        "fields": ("fields", "names, types, defaults and meaning of what a gin file can set"),
        "report": ("report", "rebuild report.html and loss.png of a run"),
        "journal": ("journal", "what happened to a run, and where its time went"),
        "parity": ("parity", "compare a Hugging Face directory with our reading of it"),
        "completion": ("completion", "print a script that completes commands, flags and gin names"),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


_SMALLER = (
    "Use a machine or a mesh with more memory, a smaller model, or fewer and shorter rows; "
    "T5X_LLM_TRACEBACK=1 shows where it ended."
)
# What a user can do about a disk that refuses.
_FREE = "Free space and run the same command again; a run continues from its newest checkpoint."
_DISK = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "The system limits the size of a file; raise that limit (ulimit -f).",
    errno.EROFS: "Choose a directory on a disk that can be written.",
    errno.EACCES: "Choose another directory, or give yourself permission.",
}


def _quieten() -> None:
    """Turns down the libraries' own logs of errors; what a user needs is in our message."""
    import logging

    from absl import logging as absl_logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.FATAL)
    # A save that fails in several files raises once; asyncio logs the others as never retrieved.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # A save that failed leaves TensorStore calling back into a loop that is gone.
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def guard(function: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    """Runs a command; a mistake of the user's ends it with a message and a status, 2 as a rule.

    Set ``T5X_LLM_TRACEBACK=1`` to see where it was found.
    """
    if not os.environ.get("T5X_LLM_TRACEBACK"):
        _quieten()
    try:
        function(argv)
    except T5xLLMError as e:
        if os.environ.get("T5X_LLM_TRACEBACK"):
            raise
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (``| head``); what it wanted was printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:
        if e.errno not in _DISK or os.environ.get("T5X_LLM_TRACEBACK"):
            raise
        where = f" ({e.filename})" if e.filename else ""
        print(f"{e.strerror}{where}. {_DISK[e.errno]}", file=sys.stderr)
        sys.exit(2)
    except Exception as e:
        if not is_out_of_memory(e) or os.environ.get("T5X_LLM_TRACEBACK"):
            raise
        print(f"OutOfMemory: {out_of_memory(e, 'This command', _SMALLER)}", file=sys.stderr)
        sys.exit(OutOfMemory.exit_code)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def usage() -> str:
    """Returns the text that ``t5x-llm --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = []
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<{width}}  {text}" for name, (_, text) in commands.items()]
    return "\n".join(
        [
            "usage: t5x-llm COMMAND [--help] ...",
            "",
            "From raw text to a trained, evaluated and exported language model.",
            *lines,
            "",
            "First run: t5x-llm train --gin_file=configs/recipes/quickstart.gin",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Hands the rest of the command line to a subcommand."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] == "--version":
        from t5x_llm import __version__

        print(__version__)
        return
    if argv[0] not in COMMANDS:
        near = nearest(argv[0], COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        print(f"t5x-llm: no command {argv[0]!r}.{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(f"t5x_llm.cli.{COMMANDS[argv[0]][0]}")
    module.main(argv[1:])


if __name__ == "__main__":
    main()
