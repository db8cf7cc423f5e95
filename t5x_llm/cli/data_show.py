"""The command ``t5x-llm data show``: training documents as text, with what is trained of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import data_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError

DESCRIPTION = """Print the first documents of each source, trained tokens in colour.

  t5x-llm data show configs/recipes/sft/quickstart_chat.gin --examples 3
  t5x-llm data show runs/chat --source dialogues

Conversations are shown as their template renders them, special tokens spelt out: green is trained
in full, yellow with a smaller weight. Where the output is no terminal, trained text stands between
« and ». Data that is not prepared yet is prepared first."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm data show``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser(command: str = "show") -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = data_parser(command, DESCRIPTION)
    parser.add_argument("--examples", type=int, default=3, help="documents shown (default 3)")
    parser.add_argument("--source", help="of this source alone; of each in turn if not given")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="default auto"
    )
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv[1:])
    args = build_parser().parse_args(flags.rest)
    if args.examples < 1:
        raise ConfigError("--examples", args.examples, "at least 1")
    if args.directory is not None and args.directory.endswith(".gin"):
        files = [word for word in argv[1:] if word != args.directory]
        flags, args.directory = parse_flags([f"--gin_file={args.directory}", *files]), None
    from t5x_llm import api
    from t5x_llm.data.catalog import open_stores
    from t5x_llm.run.chat import as_json, documents, told
    from t5x_llm.run.config import load_saved
    from t5x_llm.run.resolved import resolve

    if args.directory is None:
        run = resolve(flags)
        data = run.config.data
        api.prepare(run)
    else:
        data = load_saved(args.directory)[0].data
    opened = open_stores(data)
    if args.source is not None and args.source not in opened.stores:
        raise ConfigError("--source", args.source, choices=list(opened.stores))
    colours = (
        sys.stdout.isatty() and "NO_COLOR" not in os.environ
        if args.color == "auto"
        else args.color == "always"
    )
    wanted = None if args.source is None else [args.source]
    for document in documents(opened, args.examples, wanted):
        print(as_json(document) if args.json else told(document, colours))


if __name__ == "__main__":
    main(["show", *sys.argv[1:]])
