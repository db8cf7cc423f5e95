"""The command ``t5x-llm launch``: several processes of one run on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard
from t5x_llm.launch.local import Local, run

DESCRIPTION = """Runs a command as several processes of one run, and starts all again when one dies.

  t5x-llm launch --processes=2 --devices=4 -- python train.py --gin_file=...

The run continues from its newest checkpoint. It is started again when the first process to end
was killed by a signal, or left with status 75 (preempted), 76 (lost another process) or 77 (stood
still); any other status ends all of them and is the status of this command. SIGTERM and Ctrl-C
are passed on: the run saves, and is not started again."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm launch``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser(
        "t5x-llm launch", DESCRIPTION, usage="t5x-llm launch [--processes N] [...] -- COMMAND ..."
    )
    parser.add_argument("--processes", type=int, default=Local.processes)
    parser.add_argument("--devices", type=int, help="CPU devices of each process")
    parser.add_argument("--restarts", type=int, default=Local.restarts, help="in a row")
    parser.add_argument(
        "--grace",
        type=float,
        default=Local.grace_seconds,
        help="seconds that the others get to end by themselves when one has",
    )
    parser.add_argument(
        "--backoff",
        type=float,
        default=Local.backoff_seconds,
        help="seconds before the first restart; doubled for each further one, up to a minute",
    )
    return parser


def _main(argv: Sequence[str]) -> None:
    split = argv.index("--") if "--" in argv else len(argv)
    args = build_parser().parse_args(argv[:split])
    job = Local(
        command=tuple(argv[split + 1 :]),
        processes=args.processes,
        devices=args.devices,
        restarts=args.restarts,
        grace_seconds=args.grace,
        backoff_seconds=args.backoff,
    )
    if status := run(job):
        sys.exit(status)
