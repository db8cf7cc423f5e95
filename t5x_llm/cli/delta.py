"""The command ``t5x-llm delta``: a tuned model as its difference from a base."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Pass on a tuned model without its base.

  t5x-llm delta make base tuned delta
  t5x-llm delta apply base delta tuned

A delta of kind 'bits', the default, gives back every bit, proved by checksums. One of kind 'sum' is
what Vicuna published and FastChat adds; it gives back what rounding leaves, and make says how much.
Apply takes both, and directories of differences made elsewhere."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm delta``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.hf import delta
    from t5x_llm.hf.export import MAX_SHARD_BYTES

    parser = plain_parser("t5x-llm delta", DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="OUT = TUNED - BASE", allow_abbrev=False)
    apply = actions.add_parser("apply", help="OUT = BASE + DELTA", allow_abbrev=False)
    for action, second in ((make, "tuned"), (apply, "delta")):
        action.add_argument("base", help="a Hugging Face directory")
        action.add_argument(second, help="a Hugging Face directory")
        action.add_argument("out", help="directory to write; new or empty")
        action.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    make.add_argument("--kind", choices=delta.KINDS, default="bits")
    apply.add_argument(
        "--grown",
        choices=delta.GROWN,
        default="zeros",
        help="what rows beyond the base's are differences from, in a delta made elsewhere",
    )
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf import delta

    args = build_parser().parse_args(argv)

    limit = args.max_shard_bytes
    if args.action == "make":
        made = delta.make(args.base, args.tuned, args.out, args.kind, limit)
        said = "it gives back every bit of the tuned model"
        if made.inexact:
            said = (
                f"{made.inexact:,} of {made.values:,} values do not come back to the bit; the "
                f"largest error is {made.largest:.3g}"
            )
        print(f"Wrote {args.out}: {said}.")
        return
    proved = delta.apply(args.base, args.delta, args.out, args.grown, limit)
    said = "every bit is the tuned model's" if proved else "no checksum proves that it is exact"
    print(f"Wrote {args.out}: {said}.")
