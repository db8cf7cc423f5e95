"""The command ``t5x-llm journal``: events of a run, and where its time went."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard
from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm journal``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser(
        "t5x-llm journal",
        "Summarises the journal of a run (starts, saves, preemptions, spikes, rewinds, "
        "damage) and accounts for its time; works while the run goes on.",
    )
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--all", action="store_true", help="every line, signs of life included")
    parser.add_argument("--json", action="store_true", help="the figures, for programs")
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.train.goodput import goodput
    from t5x_llm.train.journal import JOURNAL, decisions, read_journal
    from t5x_llm.train.summary import summary

    args = build_parser().parse_args(argv)
    path = as_path(args.run) / JOURNAL
    lines = read_journal(path)
    if not lines:
        raise DataError(f"{path} holds no event: nothing to tell. Is {args.run} a run directory?")
    account = goodput(lines)
    if args.json:
        figures = {
            "goodput": account.share("productive"),
            "data_wait": account.starvation,
            "lives": account.lives,
            "seconds": account.seconds,
            "rewinds": [dataclasses.asdict(decision) for decision in decisions(lines)],
        }
        print(json.dumps(figures, indent=1, ensure_ascii=False))
        return
    print(summary(lines, args.all, shutil.get_terminal_size((100, 24)).columns))
    print()
    print(account.table())
