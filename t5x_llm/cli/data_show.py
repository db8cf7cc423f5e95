"""The command ``t5x-llm data show``: training documents as text, with what is trained of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_llm.cli.arguments import data_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import Flags, parse_flags
from t5x_llm.core.errors import ConfigError

if TYPE_CHECKING:
    from t5x_llm.data.catalog import Opened

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
    if args.directory is not None and args.directory.endswith(".gin"):
        files = [word for word in argv[1:] if word != args.directory]
        flags, args.directory = parse_flags([f"--gin_file={args.directory}", *files]), None
    from t5x_llm.data.catalog import open_stores
    from t5x_llm.run.config import load_saved

    opened = (
        prepared(flags)
        if args.directory is None
        else open_stores(load_saved(args.directory)[0].data)
    )
    if args.source is not None and args.source not in opened.stores:
        raise ConfigError("--source", args.source, choices=list(opened.stores))
    colour = None if args.color == "auto" else args.color == "always"
    show(opened, args.examples, args.source, colour, args.json)


def prepared(flags: Flags) -> Opened:
    """Prepares the data of a run where that is not done yet, and opens it."""
    from t5x_llm import api
    from t5x_llm.run.resolved import resolve

    return api.prepare(resolve(flags))


def show(
    opened: Opened,
    examples: int,
    source: str | None = None,
    colour: bool | None = None,
    json: bool = False,
) -> None:
    """Prints documents of each source, or of one.

    Args:
      opened: the data.
      examples: number of documents.
      source: name of the one; None for each in turn.
      colour: whether to colour; None where the output is a terminal that shows colours.
      json: print a line of JSON a document.

    Raises:
      ConfigError: no number of examples.
    """
    from t5x_llm.run.chat import as_json, documents, told
    from t5x_llm.text.chat.show import coloured

    if examples < 1:
        raise ConfigError("--examples", examples, "at least 1")
    for document in documents(opened, examples, None if source is None else [source]):
        print(as_json(document) if json else told(document, coloured(colour)))


if __name__ == "__main__":
    main(["show", *sys.argv[1:]])
