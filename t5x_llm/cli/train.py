"""The command ``python train.py``, also ``t5x-llm train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import Flags, parse_flags

DESCRIPTION = """Train a model as gin files describe.

  python train.py --gin_file=configs/recipes/quickstart.gin
  python train.py --gin_file=... --gin.Loop.steps=100 --gin.Run.directory="'runs/mine'"
  python train.py --gin_file=... --dry_run

A run directory that holds checkpoints is continued."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``python train.py`` and ``t5x-llm train``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser("train.py", DESCRIPTION)
    add_training_arguments(parser)
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of every command that trains."""
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan of the run and stop before training"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "always", "anew"),
        default="auto",
        help="auto continues a run that has checkpoints; never refuses to; always insists on it; "
        "anew is auto, but where all checkpoints are damaged moves them aside and begins anew",
    )


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    train_as(flags, build_parser().parse_args(flags.rest))


def train_as(flags: Flags, args: argparse.Namespace) -> None:
    """Trains a run, or prints its plan.

    Args:
      flags: the gin flags.
      args: the flags of ``add_training_arguments``.
    """
    from t5x_llm.run.resolved import resolve

    run = resolve(flags)
    if run.resolved.unused_own:
        print(f"note: this run does not use {', '.join(run.resolved.unused_own)}", file=sys.stderr)
    if args.dry_run:
        from t5x_llm.plan.describe import describe

        print(describe(run.config, run.resolved))
        return
    from t5x_llm.tune.training import train

    train(run.config, run.operative_config, args.resume)
