"""The command ``t5x-llm completion``: a script that completes command lines in a shell."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Print a script for a shell that completes commands, their flags and gin names.

  t5x-llm completion bash > ~/.local/share/bash-completion/completions/t5x-llm
  t5x-llm completion zsh > "${fpath[1]}/_t5x-llm"
  t5x-llm completion fish > ~/.config/fish/completions/t5x-llm.fish

For one session of bash: source <(t5x-llm completion bash). After --gin. the script completes
classes, then their fields. It holds all names, so that completing starts no Python; print it again
after an update."""
SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm completion``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser("t5x-llm completion", DESCRIPTION)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def _main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)
    from t5x_llm.cli import shells
    from t5x_llm.cli.command_line import command_lines
    from t5x_llm.cli.registered import entries

    names = {name: [f.name for f in entry.fields] for name, entry in entries().items()}
    classes = tuple((name, "") for name in names)
    commands = [
        dataclasses.replace(each, words=classes) if each.path == ("fields",) else each
        for each in command_lines()
    ]
    print(shells.SCRIPTS[args.shell](commands, names))
