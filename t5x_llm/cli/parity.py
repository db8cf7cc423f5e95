"""The command ``t5x-llm parity``: a Hugging Face model compared with our reading of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_ignore_field, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Compare our logits of a Hugging Face directory or GGUF file with the reference's.

  t5x-llm parity runs/quickstart/hf

The reference is transformers where it and torch are installed, else an independent NumPy forward
pass; both compute in float32 on a prompt of 512 tokens, or of more where windows and rotations
take effect later."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm parity``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = plain_parser("t5x-llm parity", DESCRIPTION)
    parser.add_argument("path", help="a Hugging Face directory or a .gguf file")
    add_ignore_field(parser)
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf.import_ import import_model

    args = build_parser().parse_args(argv)

    report = import_model(args.path, ignore=args.ignore_field).report
    assert report is not None
    print(f"Reference: {report.reference}, float32, weights stored as {report.dtype}")
    for name, prompt in report.prompts.items():
        print(
            f"  {name:5} prompt, {prompt.tokens:4} tokens: logits within {prompt.max_abs:.2e} "
            f"(mean {prompt.mean_abs:.1e}, scale {prompt.scale:.1f}), "
            f"KL {prompt.kl_mean:.1e} nats a token, top-1 agreement {prompt.top1:.1%}"
        )
    for note in report.notes:
        print(f"  note: {note}")
