"""The command ``t5x-llm export``: a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_model_arguments, add_unproved, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Write a run's newest checkpoint as a Hugging Face directory.

  t5x-llm export runs/quickstart
  t5x-llm export hf runs/quickstart out/ --dtype bfloat16 --step 1000
  t5x-llm export runs/lora
  t5x-llm export runs/lora merged --merge

A run with adapters becomes a PEFT directory, adapter/ of the run; with --merge, one model of base
and adapter.

One tensor is in memory at a time. What is written is read back and compared on a prompt of 512
tokens, with transformers where it and torch are installed, else with an independent NumPy forward
pass. A model that differs is not written."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm export``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES

    parser = plain_parser("t5x-llm export", DESCRIPTION)
    add_model_arguments(parser)
    parser.add_argument("out", nargs="?", help="hf/ or adapter/ of the run if left out")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="float32 for a run; as stored for a directory"
    )
    parser.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    parser.add_argument(
        "--merge", action="store_true", help="of a run with adapters: one model with its base"
    )
    add_unproved(parser)
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm import api

    args = build_parser().parse_args(argv[1:] if argv[:1] == ["hf"] else argv)
    done = api.export_model(
        args.path,
        args.out,
        step=args.step,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_bytes,
        unproved=args.unproved,
        merge=args.merge,
    )
    print(f"Wrote {done.directory}: {done.report.summary()}.")
