"""Write a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from t5x_llm.cli.main import guard

DESCRIPTION = """Write a run's newest checkpoint as a Hugging Face directory.

  t5x-llm export runs/quickstart
  t5x-llm export runs/quickstart out/ --dtype bfloat16 --step 1000

What is written is read back and compared on a prompt of 512 tokens, with transformers where it and
torch are installed, else with an independent NumPy forward pass. A model that differs is not
written."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm export``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.cli import load
    from t5x_llm.hf.export import DTYPES, export_hf

    parser = argparse.ArgumentParser(
        prog="t5x-llm export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    load.add_arguments(parser)
    parser.add_argument("out", nargs="?", help="hf/ of the run if left out")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--max_shard_bytes", type=int, default=5_000_000_000)
    args = parser.parse_args(argv)

    model = load.load(args.path, args.step)
    if args.out is None and model.run is None:
        parser.error("say where to write: t5x-llm export PATH OUT")
    if model.run is not None:
        model.run.check_exportable("There is no form of it that other programs read.")
    out = args.out or os.path.join(args.path, "hf")
    report = export_hf(
        model.params,
        model.family,
        model.tokenizer,
        out,
        max_shard_bytes=args.max_shard_bytes,
        dtype=args.dtype,
    )
    worst = max(p.max_abs for p in report.prompts.values())
    print(f"Wrote {out}: logits within {worst:.1e} of {report.reference}.")
