"""The command ``t5x-llm import``: a Hugging Face or GGUF model as a verified directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_ignore_field, add_unproved, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Read a model, prove that ours computes the same logits, and write it out.

  t5x-llm import hf path/to/downloaded models/mine
  t5x-llm import gguf model.gguf models/mine --dtype bfloat16

The word hf or gguf may be left out. OUT is a Hugging Face directory: train on from it with
--gin.Run.start_from="'models/mine'", let it continue texts with t5x-llm generate, load it with
transformers. A directory that is one already needs no import; this command then proves and rewrites
it, one tensor in memory at a time. pytorch_model.bin is read where torch is installed, by its
weights-only loader; of a GGUF file in parts, give any one. What lies beside the weights is kept:
the list of end tokens, generation_config.json, the tokenizer's files, the licence in README.md."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm import``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.hf.convert import STORED
    from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES

    parser = plain_parser("t5x-llm import", DESCRIPTION)
    parser.add_argument("source", help="a Hugging Face directory or a .gguf file")
    parser.add_argument("out", help="directory to write; new, empty, or an earlier export")
    parser.add_argument("--dtype", choices=(STORED, *DTYPES), default=STORED)
    parser.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    add_unproved(parser)
    add_ignore_field(parser)
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm import api
    from t5x_llm.config import bindings_of

    kind = argv[0] if argv and argv[0] in ("hf", "gguf") else None
    args = build_parser().parse_args(argv[1:] if kind else argv)
    found = api.import_model(
        args.source,
        args.out,
        kind=kind,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_bytes,
        unproved=args.unproved,
        ignore=args.ignore_field,
    )
    print(f"Wrote {args.out} from {args.source}: {found.report.summary()}.")
    for note in found.report.notes:
        if found.report.prompts:
            print(f"  note: {note}")
    print(f"To train on from it, bind Run.start_from = {args.out!r} and this model:")
    print(f"  Run.model = @{type(found.family).__name__}()")
    for line in bindings_of(found.family):
        print(f"  {line}")
    if found.has_tokenizer:
        print(f"  Data.tokenizer = {args.out!r}")
    else:
        from t5x_llm.text.load import unreadable

        others = ", ".join(unreadable(args.source))
        found_there = f": {others} there cannot be read" if others else ""
        print(f"No tokenizer came with {args.source}{found_there}. Data.tokenizer has to name one.")
