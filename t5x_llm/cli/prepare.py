"""The command ``t5x-llm prepare``: tokenizer and token stores, built before training starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags

DESCRIPTION = """Train the tokenizer if the run asks for one, and build the token store.

What is there already and unchanged is kept; it is read through, and built again if damaged."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm prepare``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser("t5x-llm prepare", DESCRIPTION)
    parser.add_argument(
        "--force",
        action="store_true",
        help="read seqio tasks again even if they seem unchanged, and verify stores of a bucket",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="take the stores that are there unread, as training does; else a damaged one is built "
        "again",
    )
    parser.add_argument(
        "--process_index",
        type=int,
        default=0,
        help="where several processes prepare one bucket: 0 builds, the others wait for it",
    )
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    args = build_parser().parse_args(flags.rest)

    from t5x_llm import api
    from t5x_llm.run.resolved import resolve

    api.prepare(
        resolve(flags), force=args.force, verify=not args.quick, process_index=args.process_index
    )


if __name__ == "__main__":
    main()
