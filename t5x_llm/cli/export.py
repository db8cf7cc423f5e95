"""Write a checkpoint as a Hugging Face directory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_model_arguments, add_unproved
from t5x_llm.cli.main import guard

DESCRIPTION = """Write a run's newest checkpoint as a Hugging Face directory.

  t5x-llm export runs/quickstart
  t5x-llm export hf runs/quickstart out/ --dtype bfloat16 --step 1000

One tensor is in memory at a time. What is written is read back and compared on a prompt of 512
tokens, with transformers where it and torch are installed, else with an independent NumPy forward
pass. A model that differs is not written."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm export``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf.convert import STORED, convert
    from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES, export_hf
    from t5x_llm.run import load

    parser = argparse.ArgumentParser(
        prog="t5x-llm export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_arguments(parser)
    parser.add_argument("out", nargs="?", help="hf/ of the run if left out")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="float32 for a run; as stored for a directory"
    )
    parser.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    add_unproved(parser)
    args = parser.parse_args(argv[1:] if argv[:1] == ["hf"] else argv)

    options = dict(max_shard_bytes=args.max_shard_bytes, unproved=args.unproved)
    if load.is_run(args.path):
        model = load.load(args.path, args.step, lazy=True)
        model.run.check_exportable("There is no form of it that other programs read.")
        out, dtype = args.out or os.path.join(args.path, "hf"), args.dtype or "float32"
        report = export_hf(model.params, model.family, model.tokenizer, out, dtype=dtype, **options)
    elif args.out is None:
        parser.error("say where to write: t5x-llm export PATH OUT")
    else:
        out = args.out
        report = convert(args.path, out, dtype=args.dtype or STORED, **options).report
    print(f"Wrote {out}: {report.summary()}.")
