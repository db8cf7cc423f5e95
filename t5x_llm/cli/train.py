"""Assembles a run from its configuration and trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from t5x_llm.cli.main import guard
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError

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


def gin_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for what ``parse_flags`` leaves over; its help tells of the gin flags too."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=GIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``python train.py`` and ``t5x-llm train``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    parser = gin_parser("train.py", DESCRIPTION)
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan of the run and stop before training"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "always"),
        default="auto",
        help="auto continues a run that has checkpoints; never refuses to; always insists on it",
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
    train(run, resolved.operative_config_text(), args.resume)


def train(run: Any, operative_config: str, resume: str = "auto") -> None:
    """Trains, evaluates, samples, exports and reports: all that a run directory holds.

    Args:
      run: a ``cli.run.Run``.
      operative_config: saved with the run; alone it reproduces it.
      resume: ``auto``, ``never`` or ``always``.

    Raises:
      ConfigError: if the run directory is not what ``resume`` asks for.
    """
    import jax

    from t5x_llm import parallel
    from t5x_llm.cli import assemble
    from t5x_llm.cli.precision import no_faster
    from t5x_llm.cli.prepare import prepare_in_subprocess
    from t5x_llm.cli.run import check_fits, check_tokenizer_size
    from t5x_llm.core.paths import check_writable
    from t5x_llm.train.ahead import keep_compiled
    from t5x_llm.train.journal import JOURNAL, Journal
    from t5x_llm.train.signals import Preemption, shared_fate
    from t5x_llm.train.watchdog import Watchdog

    parallel.initialize()
    mesh = parallel.make_mesh(run.mesh)
    check_fits(run, mesh)
    directory = check_writable("Run.directory", run.directory)
    keep_compiled(directory)
    assemble.check_start_from(run)
    found = assemble.resumed_step(run)
    if resume == "never" and found is not None:
        raise ConfigError(
            "Run.directory",
            run.directory,
            f"a directory without checkpoints, as --resume=never (there is step {found})",
            "Choose another directory, or leave --resume out to continue.",
        )
    if resume == "always" and found is None:
        raise ConfigError("Run.directory", run.directory, "a checkpoint, as --resume=always")
    model = run.build_model()
    if jax.process_index() == 0:
        for each in parallel.replicated_beyond(
            *(model.logical_axes(), model.abstract_params(), mesh, run.mesh.rules()),
            run.mesh.replication_tolerance,
        ):
            print(f"warning: {each}", file=sys.stderr)
        if reason := no_faster(run.precision, jax.devices()):
            print(f"warning: {reason}", file=sys.stderr)
    journals: list[Journal] = []  # made when there is something to train on

    def tell(event: str, **fields: str) -> None:
        for journal in journals:
            journal.write(event, 0, **fields)

    life = run.life
    with (
        Preemption(life.grace_seconds) as preemption,
        shared_fate(lambda error: tell("end", status=type(error).__name__)),
        Watchdog(
            life.watchdog_minutes, directory, lambda reason: tell("stuck", reason=reason)
        ) as watchdog,
    ):
        watchdog.beat("preparation of the data")
        prepare_in_subprocess(run, operative_config, jax.process_index())
        data = assemble.open_data(run)
        check_tokenizer_size(run, data.opened.tokenizer)
        journal = Journal(directory / JOURNAL, primary=jax.process_index() == 0)
        journals.append(journal)
        progress = _trained(
            *(run, operative_config, directory, model, mesh, data, found),
            *(journal, preemption, watchdog),
        )
    if jax.process_index() == 0:
        assemble.finish(run, directory, progress.state, data)


def _trained(
    run: Any,
    operative_config: str,
    directory: Any,
    model: Any,
    mesh: Any,
    data: Any,
    found: int | None,
    journal: Any,
    preemption: Any,
    watchdog: Any,
) -> Any:
    """Trains to the end, from wherever the run stands."""
    import jax

    from t5x_llm.checkpoint import Checkpointer
    from t5x_llm.cli import assemble
    from t5x_llm.cli.compiler import options_named
    from t5x_llm.cli.run import OPERATIVE_CONFIG
    from t5x_llm.core.paths import write_atomic
    from t5x_llm.train.feed import feed
    from t5x_llm.train.journal import decisions as read_decisions
    from t5x_llm.train.loop import Run as Progress
    from t5x_llm.train.loop import train as loop

    rules = run.mesh.rules()
    tx, step = assemble.make_step(run, model, mesh, rules, len(data.stream.sources))
    step = assemble.compile_ahead(run, step, model, tx, mesh, data, found)

    def damaged(at: int, reason: str) -> None:
        journal.write("damaged", at, reason=reason)
        print(f"warning: the checkpoint of step {at} is damaged: {reason}", file=sys.stderr)

    checkpointer = Checkpointer(directory / "checkpoints", run.checkpoint, on_damage=damaged)
    try:
        decisions = read_decisions(journal.earlier)
        hooks = assemble.make_hooks(
            *(run, directory, model, mesh, rules, data, checkpointer, journal, decisions),
            lambda: preemption.requested,
        )
        recovery = assemble.make_recovery(
            run, model, tx, mesh, rules, data, checkpointer, hooks, decisions, journal
        )
        watchdog.beat("restore")
        state, position, begun = recovery.begin()
        if jax.process_index() == 0:
            write_atomic(directory / OPERATIVE_CONFIG, operative_config)
            if told := assemble.told_beginning(run, begun):
                print(told, file=sys.stderr)
        facts = assemble.facts(run, model, mesh, data)
        progress = Progress(
            *(run.loop, directory, state, position, data.stream.sources, hooks, facts),
            control=recovery.guard.control,
            journal=journal,
            beat=watchdog.beat,
            rewinds=len(decisions),
        )
        size_at, depth = run.loop.size_at, run.loop.prefetch
        watchdog.beat("compilation of the first step")
        with options_named(run.compiler_options):
            loop(
                progress,
                step,
                lambda at: feed(data.stream, at, size_at, mesh, rules, depth),
                recovery.rewind,
            )
        return progress
    except KeyboardInterrupt:
        print("The same command continues from the newest checkpoint.", file=sys.stderr)
        raise
    finally:
        checkpointer.close()
