"""The command ``t5x-llm eval``: held-out loss and bits per byte."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_adapter, add_model_arguments, gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags

DESCRIPTION = """Evaluate a run's checkpoint on its held-out documents.

  t5x-llm eval runs/quickstart
  t5x-llm eval runs/quickstart/hf --gin_file=configs/recipes/quickstart.gin

A Hugging Face directory needs gin flags that say which data; its tokenizer must be the data's."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm eval``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    parser = gin_parser("t5x-llm eval", DESCRIPTION)
    add_model_arguments(parser)
    add_adapter(parser)
    parser.add_argument("--sequence_length", type=int, help="tokens of a window; the run's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    args = build_parser().parse_args(flags.rest)

    from t5x_llm import api
    from t5x_llm.run.resolved import resolve

    run = resolve(flags) if flags.gin_files or flags.bindings else None
    model = args.path
    if args.adapter is not None:
        model = api.load_model(args.path, args.step, adapter=args.adapter)
    results = api.evaluate(model, run, step=args.step, sequence_length=args.sequence_length)
    if args.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
        return
    changed = any("change" in r for r in results.values())
    head = f"{'source':<20} {'bits/byte':>9} {'loss':>8} {'perplexity':>10} {'tokens':>10}"
    print(head + (" since the start" if changed else ""))
    for name, r in results.items():
        bits = f"{r['bits_per_byte']:.4f}" if "bits_per_byte" in r else ""
        row = f"{name:<20} {bits:>9} {r['loss']:>8.4f} {r['perplexity']:>10.2f} {r['tokens']:>10,}"
        print(row + (f" {r['change']:>+15.2%}" if "change" in r else ""))
