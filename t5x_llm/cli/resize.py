"""The command ``t5x-llm resize``: a model with another vocabulary size."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_unproved, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Write a model with rows for another tokenizer, or so many rows.

  t5x-llm resize models/base grown --tokenizer models/new_tokenizer --how subpieces
  t5x-llm resize models/base padded --multiple 128

Rows of the old tokens keep every bit, so logits over them stay as they were. The new tokenizer must
give every old id its old meaning."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm resize``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.hf.export import MAX_SHARD_BYTES
    from t5x_llm.models.vocabulary import HOW

    parser = plain_parser("t5x-llm resize", DESCRIPTION)
    parser.add_argument("model", help="a Hugging Face directory")
    parser.add_argument("out", help="directory to write; new, empty, or an earlier export")
    parser.add_argument("--tokenizer", help="the new one; the model's own if left out")
    parser.add_argument("--vocab_size", type=int, help="rows; the tokenizer's if left out")
    parser.add_argument("--multiple", type=int, default=1, help="pad rows to a multiple of this")
    parser.add_argument("--how", choices=HOW, default="mean", help="how new rows begin")
    parser.add_argument("--noise", type=float, default=0.1, help="of --how noise, in deviations")
    parser.add_argument("--seed", type=int, default=0, help="of --how noise and random")
    parser.add_argument(
        "--leading_space",
        action="store_true",
        help="of --how subpieces: pieces as at the start of a text, with a space in front",
    )
    parser.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    add_unproved(parser)
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf.resize import resize
    from t5x_llm.models.vocabulary import Growth
    from t5x_llm.text import load_tokenizer

    args = build_parser().parse_args(argv)

    before, after, report = resize(
        args.model,
        args.out,
        tokenizer=load_tokenizer(args.tokenizer) if args.tokenizer else None,
        vocab_size=args.vocab_size,
        multiple=args.multiple,
        growth=Growth(args.how, args.noise, args.seed, args.leading_space),
        max_shard_bytes=args.max_shard_bytes,
        unproved=args.unproved,
    )
    print(f"Wrote {args.out}: {before} -> {after} rows; {report.summary()}.")
