"""The command ``t5x-llm adapter``: adapters in PEFT's directories, shown and merged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_unproved, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Look at an adapter, or make one model of it and its base.

  t5x-llm adapter show my_adapter
  t5x-llm adapter show my_adapter --base models/base
  t5x-llm adapter merge models/base my_adapter merged

Merge adds in float32 and rounds once; it says by how much rounding moves the model, and refuses if
that is too much. What is written is checked like any export."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm adapter``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.hf.convert import STORED
    from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES
    from t5x_llm.hf.peft.merge import MAX_KL

    parser = plain_parser("t5x-llm adapter", DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="what an adapter is", allow_abbrev=False)
    show.add_argument("adapter", help="a PEFT directory")
    show.add_argument("--base", help="a Hugging Face directory that it should fit")
    merge = actions.add_parser("merge", help="OUT = BASE with ADAPTER", allow_abbrev=False)
    merge.add_argument("base", help="a Hugging Face directory")
    merge.add_argument("adapter", help="a PEFT directory")
    merge.add_argument("out", help="directory to write; new, empty, or an earlier export")
    merge.add_argument("--dtype", choices=(STORED, *DTYPES), default=STORED)
    merge.add_argument(
        "--untie", action="store_true", help="give a tied model a head of its own if need be"
    )
    merge.add_argument(
        "--max_kl", type=float, default=MAX_KL, help="nats a token that rounding may cost"
    )
    merge.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    add_unproved(merge)
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf.peft.merge import merge_adapter
    from t5x_llm.hf.peft.shown import described

    args = build_parser().parse_args(argv)
    if args.action == "show":
        print(described(args.adapter, args.base))
        return
    done = merge_adapter(
        args.base,
        args.adapter,
        args.out,
        dtype=args.dtype,
        untie=args.untie,
        max_kl=args.max_kl,
        max_shard_bytes=args.max_shard_bytes,
        unproved=args.unproved,
    )
    print(f"Wrote {args.out}: {done.summary()}.")
