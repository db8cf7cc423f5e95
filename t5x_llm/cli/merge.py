"""The command ``t5x-llm merge``: models, or checkpoints of a run, averaged into one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.arguments import add_unproved, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Average models of one shape, or the checkpoints of a run.

  t5x-llm merge models/a models/b merged --weights 0.7 0.3
  t5x-llm merge models/a models/b merged --method slerp
  t5x-llm merge runs/quickstart merged --last 5
  t5x-llm merge runs/quickstart merged --steps 800 900 1000

What is written is checked like any export."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm merge``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""
    from t5x_llm.hf.convert import STORED
    from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES
    from t5x_llm.hf.merge import METHODS

    parser = plain_parser("t5x-llm merge", DESCRIPTION)
    parser.add_argument(
        "paths", nargs="+", help="Hugging Face directories, or one run; then the one to write"
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one a model; equal if left out")
    parser.add_argument("--method", choices=METHODS, default="linear")
    parser.add_argument("--last", type=int, help="so many newest checkpoints of a run")
    parser.add_argument("--steps", type=int, nargs="+", help="these checkpoints of a run")
    parser.add_argument("--dtype", choices=(STORED, *DTYPES), default=STORED)
    parser.add_argument("--max_shard_bytes", type=int, default=MAX_SHARD_BYTES)
    add_unproved(parser)
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm.hf.merge import merge
    from t5x_llm.run import load

    parser = build_parser()
    args = parser.parse_args(argv)
    if len(args.paths) < 2:
        parser.error("say what to merge and where to write")
    *paths, out = args.paths
    options: dict[str, Any] = dict(max_shard_bytes=args.max_shard_bytes, unproved=args.unproved)
    if len(paths) == 1 and load.is_run(paths[0]):
        if args.method != "linear":
            parser.error("checkpoints of a run are averaged: --method linear")
        report = _merge_run(paths[0], out, args, options)
    elif args.last is not None or args.steps is not None:
        parser.error("--last and --steps are of one run directory")
    else:
        report = merge(
            paths, out, weights=args.weights, method=args.method, dtype=args.dtype, **options
        )
    print(f"Wrote {out}: {report.summary()}.")


def _merge_run(path: str, out: str, args: Any, options: dict[str, Any]) -> Any:
    from t5x_llm.checkpoint import Checkpointer
    from t5x_llm.core.errors import ConfigError
    from t5x_llm.core.paths import as_path
    from t5x_llm.hf.convert import STORED
    from t5x_llm.hf.export import export_hf
    from t5x_llm.hf.merge import averaged, check_weights
    from t5x_llm.run.config import load_saved
    from t5x_llm.run.identity import trained_tokenizer
    from t5x_llm.run.load import saved_generation

    run, _ = load_saved(path)
    run.check_exportable("There is no form of it that other programs read.")
    checkpointer = Checkpointer(as_path(path) / "checkpoints", read_only=True)
    try:
        steps = checkpointer.steps()
        if (args.last is None) == (args.steps is None):
            raise ConfigError("merge", path, "either --last N or --steps A B ... for a run")
        if args.last is not None and not 2 <= args.last <= len(steps):
            have = ", ".join(map(str, steps)) or "none"
            raise ConfigError("last", args.last, f"2 to {len(steps)}: the checkpoints are {have}")
        chosen = args.steps or steps[-args.last :]
        shares = check_weights(args.weights, len(chosen))
        tokenizer = trained_tokenizer(run.data, checkpointer, chosen)
        params = averaged([checkpointer.open_params(step) for step in chosen], shares)
    finally:
        checkpointer.close()
    print(f"Averaging steps {', '.join(map(str, chosen))} of {path}.")
    dtype = "float32" if args.dtype == STORED else args.dtype
    return export_hf(
        params, run.model, tokenizer, out, dtype=dtype,
        generation=saved_generation(path), **options,
    )  # fmt: skip
