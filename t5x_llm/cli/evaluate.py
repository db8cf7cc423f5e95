"""Held-out loss and bits per byte."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_model_arguments, gin_parser
from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags

DESCRIPTION = """Evaluate a run's checkpoint on its held-out documents.

  t5x-llm eval runs/quickstart
  t5x-llm eval runs/quickstart/hf --gin_file=configs/recipes/quickstart.gin

A Hugging Face directory needs gin flags that say which data; its tokenizer must be the data's."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm eval``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    parser = gin_parser("t5x-llm eval", DESCRIPTION)
    from t5x_llm.run import load

    add_model_arguments(parser)
    parser.add_argument("--sequence_length", type=int, help="tokens of a window; the run's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(flags.rest)

    import jax

    from t5x_llm.data.catalog import open_objective, open_stores
    from t5x_llm.evaluate.hooks import read_baseline
    from t5x_llm.evaluate.perplexity import evaluate
    from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings
    from t5x_llm.run.config import load_run
    from t5x_llm.run.data import held_out

    model = load.load(args.path, args.step)
    run = load_run(flags)[0] if flags.gin_files or flags.bindings else model.run
    if run is None:
        parser.error("a Hugging Face directory needs --gin_file=... that says which data")
    length = args.sequence_length or run.loop.sequence_length
    config = MeshConfig()
    mesh, rules = make_mesh(config), config.rules()
    axes, shapes = model.model.logical_axes(), model.model.abstract_params()
    rows = -(-run.evaluation.batch_size // mesh.size) * mesh.size
    opened = open_stores(run.data)
    results = evaluate(
        model.model,
        jax.device_put(model.params, param_shardings(axes, shapes, mesh, rules)),
        held_out(opened),
        mesh,
        rules,
        length,
        rows,
        objective=open_objective(run.data, opened, length),
    )
    baseline = read_baseline(args.path) if load.is_run(args.path) else None
    if baseline is not None and baseline.length == length:
        results = baseline.compared(results, full=True)
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
