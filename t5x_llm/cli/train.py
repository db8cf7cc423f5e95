"""Assembles a run from its configuration and trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags

DESCRIPTION = """Train a model as gin files describe.

  python train.py --gin_file=configs/recipes/quickstart.gin
  python train.py --gin_file=... --gin.Loop.steps=100 --gin.Run.directory="'runs/mine'"
  python train.py --gin_file=... --dry_run

A run directory that holds checkpoints is continued."""
GIN_HELP = """gin flags:
  --gin_file=FILE           a gin file; repeatable, later files win
  --gin_bindings='A.b = 1'  a binding; repeatable
  --gin.A.b=1               the same, shorter
  --gin_search_paths=DIRS   further directories for files and includes, by commas
  --gin_allow_import=NAME   a module that gin files may import"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``python train.py`` and ``t5x-llm train``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=DESCRIPTION,
        epilog=GIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan of the run and stop before training"
    )
    args = parser.parse_args(flags.rest)

    from t5x_llm.cli.run import load_run

    run, resolved = load_run(flags)
    if resolved.unused_own:
        print(f"note: this run does not use {', '.join(resolved.unused_own)}", file=sys.stderr)
    if args.dry_run:
        from t5x_llm.cli.dry_run import describe

        print(describe(run, resolved))
        return
    train(run, resolved.operative_config_text())


def train(run: Any, operative_config: str) -> None:
    """Trains, evaluates, samples, exports and reports: all that a run directory holds.

    Args:
      run: a ``cli.run.Run``.
      operative_config: saved with the run; alone it reproduces it.
    """
    import jax

    from t5x_llm import parallel
    from t5x_llm.checkpoint import Checkpointer
    from t5x_llm.cli import assemble
    from t5x_llm.cli.prepare import prepare_in_subprocess
    from t5x_llm.cli.run import OPERATIVE_CONFIG, check_fits, check_tokenizer_size
    from t5x_llm.core.paths import check_writable, write_atomic
    from t5x_llm.train.feed import feed
    from t5x_llm.train.loop import Run as Progress
    from t5x_llm.train.loop import train as loop
    from t5x_llm.train.state import state_shardings
    from t5x_llm.train.step import make_train_step

    parallel.initialize()
    mesh, rules = parallel.make_mesh(run.mesh), run.mesh.rules()
    check_fits(run, mesh)
    directory = check_writable("Run.directory", run.directory)
    assemble.check_start_from(run)
    assemble.resumed_step(run)
    prepare_in_subprocess(run, operative_config, jax.process_index())
    data = assemble.open_data(run)
    check_tokenizer_size(run, data.opened.tokenizer)

    model = run.build_model()
    tx = run.optimizer.build(run.loop.steps, model.logical_axes())
    step = make_train_step(
        model,
        tx,
        run.optimizer.schedule.build(run.loop.steps),
        mesh=mesh,
        rules=rules,
        state_shardings=state_shardings(model, tx, mesh, rules),
        n_sources=len(data.stream.sources),
        microbatches=run.loop.microbatches,
        z_loss=run.z_loss,
    )
    checkpointer = Checkpointer(directory / "checkpoints", run.checkpoint)
    try:
        hooks = assemble.make_hooks(run, directory, model, mesh, rules, data, checkpointer)
        state, position = assemble.start(run, model, tx, mesh, rules, data, checkpointer, hooks)
        if jax.process_index() == 0:
            write_atomic(directory / OPERATIVE_CONFIG, operative_config)
        facts = assemble.facts(run, model, mesh, data)
        progress = Progress(run.loop, directory, state, position, data.stream.sources, hooks, facts)
        size_at, depth = run.loop.size_at, run.loop.prefetch
        loop(progress, step, lambda at: feed(data.stream, at, size_at, mesh, rules, depth))
    except KeyboardInterrupt:
        print("The same command continues from the newest checkpoint.", file=sys.stderr)
        raise
    finally:
        checkpointer.close()
    if jax.process_index() == 0:
        assemble.finish(run, directory, progress.state, data)
