"""The commands ``t5x-llm data clean``, ``dedup`` and ``decontaminate``: dirty text made clean."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import Flags, load, parse_flags, register
from t5x_llm.core.errors import ConfigError
from t5x_llm.data.clean.clean_config import Clean
from t5x_llm.data.clean.decontaminate import Decontaminate, EvalSet
from t5x_llm.data.clean.dedup.dedup_config import Dedup, MinHash, Repeats, Suffix
from t5x_llm.data.clean.input_config import Input, Limits
from t5x_llm.data.clean.steps import STEPS

DESCRIPTION = """{what}

  t5x-llm data {command} --gin_file=configs/data/clean_bilingual.gin
      --gin.Clean.output="'runs/data/clean'"

What was finished before an interruption is kept; the output is the same for any number of
workers. What cannot be read, and every document left out, is counted with its reason in
report.html and quarantine.jsonl."""
WHAT = {
    "clean": "Read raw text, clean it, remove repeats and evaluation sets, as Clean says.",
    "dedup": "Remove repeats from text that is clean: Clean without its steps.",
    "decontaminate": "Remove evaluation sets from text that is clean, and list what was removed.",
}
# What a command looks at of Clean.
PARTS = {
    "clean": {},
    "dedup": {"steps": (), "decontaminate": None},
    "decontaminate": {"steps": (), "dedup": None},
}

register(Clean, Input, Limits, Dedup, MinHash, Repeats, Suffix, Decontaminate, EvalSet, *STEPS)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``t5x-llm data clean``, ``dedup`` and ``decontaminate``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser(command: str) -> argparse.ArgumentParser:
    """Returns the parser of one of the three commands' own flags."""
    description = DESCRIPTION.format(what=WHAT[command], command=command)
    return gin_parser(f"t5x-llm data {command}", description)


def _main(argv: Sequence[str]) -> None:
    command, flags = argv[0], parse_flags(argv[1:])
    build_parser(command).parse_args(flags.rest)
    clean, unused = load_clean(flags)
    if unused:
        print(f"note: Clean does not use {', '.join(unused)}", file=sys.stderr)
    parts: dict[str, Any] = PARTS[command]
    if command != "clean" and getattr(clean, command) is None:
        name = command.capitalize()
        raise ConfigError(
            f"Clean.{command}", None, f"a {name}", f"Add `Clean.{command} = @{name}()`."
        )

    from t5x_llm.data.clean.engine import run

    run(dataclasses.replace(clean, **parts))


def load_clean(flags: Flags) -> tuple[Clean, tuple[str, ...]]:
    """Returns the cleaning that gin flags describe, and what they set that it does not use.

    Raises:
      ConfigError: for any mistake in it.
    """
    if not flags.gin_files and not flags.bindings:
        raise ConfigError(
            "--gin_file", None, "a gin file",
            "For a first run: --gin_file=configs/data/clean_bilingual.gin",
        )  # fmt: skip
    resolved = load("Clean", *flags[:3], flags.allow_imports)
    return resolved.call(), resolved.unused_own
