"""The command ``t5x-llm tune``: fine-tunes a model as a gin file describes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.cli.train import add_training_arguments, train_as
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError

DESCRIPTION = """Fine-tune a model as gin files describe: the same as train.py with --gin_file.

  t5x-llm tune mine.gin                       train, evaluate, export
  t5x-llm tune mine.gin --show 3              print three examples with what is trained, and stop
  t5x-llm tune mine.gin --gin.Loop.steps=100  change a binding
  t5x-llm tune mine.gin --dry_run             print the plan of the run and stop

A run directory that holds checkpoints is continued."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm tune``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser("t5x-llm tune", DESCRIPTION)
    parser.add_argument("files", nargs="*", metavar="FILE.gin", help="gin files; later ones win")
    parser.add_argument(
        "--show", type=int, metavar="N", help="print N examples of each source, and stop"
    )
    add_training_arguments(parser)
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    args = build_parser().parse_args(flags.rest)
    if not args.files and not flags.gin_files:
        raise ConfigError(
            "FILE.gin", None, "a gin file", "To begin with: configs/recipes/sft/smollm2_lora.gin"
        )
    flags = flags._replace(gin_files=[*args.files, *flags.gin_files])
    if args.show is None:
        train_as(flags, args)
        return
    from t5x_llm.cli.data_show import prepared, show

    show(prepared(flags), args.show)
