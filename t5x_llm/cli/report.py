"""The command ``t5x-llm report``: report.html and loss.png of a run, made again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm report``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser(
        "t5x-llm report",
        "Writes report.html and loss.png of a run directory from its records; works "
        "while the run goes on.",
    )
    parser.add_argument("run", help="a run directory")
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.train.report import write_report

    args = build_parser().parse_args(argv)
    print(write_report(args.run))
