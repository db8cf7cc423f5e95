"""The commands ``t5x-llm data ...``, which act on data before and beside training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from t5x_llm.core.errors import nearest

# Subcommand to (module in t5x_llm.cli, what it does). Each module has main(argv); its argv begins
# with the subcommand.
COMMANDS = {
    "clean": ("data_clean", "read, clean, deduplicate and decontaminate raw text"),
    "dedup": ("data_clean", "only the deduplication of a cleaning"),
    "decontaminate": ("data_clean", "only the search for evaluation sets of a cleaning"),
    "plan": ("data_plan", "tokens, share, epochs and repeats of each source before a run starts"),
    "show": ("data_show", "training documents as text, with what is trained of them in colour"),
    "trace": ("data_trace", "the documents of a step's batch, and where they came from"),
}
# Earlier names, still accepted.
ALIASES = {"diet": "plan"}


def usage() -> str:
    """Returns the text that ``t5x-llm data --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "options:", "  -h, --help  show this message, or that of a command, and exit"]
    return "\n".join(["usage: t5x-llm data COMMAND [--help] ...", "", "commands:", *lines])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm data``."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    argv[0] = ALIASES.get(argv[0], argv[0])
    if argv[0] not in COMMANDS:
        near = nearest(argv[0], COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        print(f"t5x-llm data: no command {argv[0]!r}.{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(f"t5x_llm.cli.{COMMANDS[argv[0]][0]}").main(argv)


if __name__ == "__main__":
    main()
