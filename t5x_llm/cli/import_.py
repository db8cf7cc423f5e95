"""Write a Hugging Face or GGUF model as a verified Hugging Face directory."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from t5x_llm.cli.main import guard

DESCRIPTION = """Read a model, prove that ours computes the same logits, and write it out.

  t5x-llm import model.gguf models/mine
  t5x-llm import path/to/downloaded models/mine --dtype bfloat16

OUT is a Hugging Face directory: train on from it with --gin.Run.start_from="'models/mine'", let it
continue texts with t5x-llm generate, load it with transformers. A directory that is one already
needs no import; this command then proves and rewrites it."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm import``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf.export import DTYPES, export_hf
    from t5x_llm.hf.import_ import import_model

    parser = argparse.ArgumentParser(
        prog="t5x-llm import",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="a Hugging Face directory or a .gguf file")
    parser.add_argument("out", help="directory to write; new, empty, or an earlier export")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--max_shard_bytes", type=int, default=5_000_000_000)
    args = parser.parse_args(argv)

    found = import_model(args.source)
    assert found.report is not None
    read = max(p.max_abs for p in found.report.prompts.values())
    report = export_hf(
        found.params,
        found.family,
        found.tokenizer,
        args.out,
        max_shard_bytes=args.max_shard_bytes,
        dtype=args.dtype,
    )
    worst = max(p.max_abs for p in report.prompts.values())
    print(f"Read {args.source}: logits within {read:.1e} of {found.report.reference}.")
    print(f"Wrote {args.out}: logits within {worst:.1e} of {report.reference}.")
    family = type(found.family)
    defaults = {f.name: f.default for f in dataclasses.fields(family)}
    print(f"To train on from it, bind Run.start_from = {args.out!r} and this model:")
    print(f"  Run.model = @{family.__name__}()")
    for name, value in vars(found.family).items():
        if value != defaults[name]:
            print(f"  {family.__name__}.{name} = {value!r}")
    if found.tokenizer is not None:
        print(f"  Data.tokenizer = {args.out!r}")
