"""Rebuild the report of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.main import guard


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm report``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.train.report import write_report

    parser = argparse.ArgumentParser(
        prog="t5x-llm report",
        description="Writes report.html and loss.png of a run directory from its records; works "
        "while the run goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a run directory")
    print(write_report(parser.parse_args(argv).run))
