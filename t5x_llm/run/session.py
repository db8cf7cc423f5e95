"""One run from its configuration to its end: trains, evaluates, samples, exports, reports."""

from __future__ import annotations

import sys
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.run import finish
from t5x_llm.run import hooks as run_hooks
from t5x_llm.run.checks import check_fits, check_start_from, check_tokenizer_size
from t5x_llm.run.data import open_data
from t5x_llm.run.prepare import prepare_in_subprocess
from t5x_llm.run.start import make_recovery, resumed_step, told_beginning
from t5x_llm.run.step import compile_ahead, make_step


def train(run: Any, operative_config: str, resume: str = "auto") -> None:
    """Trains, evaluates, samples, exports and reports: all that a run directory holds.

    Args:
      run: a ``run.config.Run``.
      operative_config: saved with the run; alone it reproduces it.
      resume: ``auto``, ``never`` or ``always``.

    Raises:
      ConfigError: if the run directory is not what ``resume`` asks for.
    """
    import jax

    from t5x_llm import parallel
    from t5x_llm.core.paths import check_writable
    from t5x_llm.run.precision import no_faster
    from t5x_llm.train.ahead import keep_compiled
    from t5x_llm.train.journal import JOURNAL, Journal
    from t5x_llm.train.signals import Preemption, shared_fate
    from t5x_llm.train.watchdog import Watchdog

    parallel.initialize()
    mesh = parallel.make_mesh(run.mesh)
    check_fits(run, mesh)
    directory = check_writable("Run.directory", run.directory)
    keep_compiled(directory)
    check_start_from(run)
    found = resumed_step(run)
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
        data = open_data(run)
        check_tokenizer_size(run, data.opened.tokenizer)
        journal = Journal(directory / JOURNAL, primary=jax.process_index() == 0)
        journals.append(journal)
        progress = _trained(
            *(run, operative_config, directory, model, mesh, data, found),
            *(journal, preemption, watchdog),
        )
    if jax.process_index() == 0:
        finish.finish(run, directory, progress.state, data)


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
    from t5x_llm.core.paths import write_atomic
    from t5x_llm.run.compiler import options_named
    from t5x_llm.run.config import OPERATIVE_CONFIG
    from t5x_llm.train.feed import feed
    from t5x_llm.train.journal import decisions as read_decisions
    from t5x_llm.train.loop import Run as Progress
    from t5x_llm.train.loop import train as loop

    rules = run.mesh.rules()
    tx, step = make_step(run, model, mesh, rules, len(data.stream.sources))
    step = compile_ahead(run, step, model, tx, mesh, data, found)

    def damaged(at: int, reason: str) -> None:
        journal.write("damaged", at, reason=reason)
        print(f"warning: the checkpoint of step {at} is damaged: {reason}", file=sys.stderr)

    checkpointer = Checkpointer(directory / "checkpoints", run.checkpoint, on_damage=damaged)
    try:
        decisions = read_decisions(journal.earlier)
        hooks = run_hooks.make_hooks(
            *(run, directory, model, mesh, rules, data, checkpointer, journal, decisions),
            lambda: preemption.requested,
        )
        recovery = make_recovery(
            run, model, tx, mesh, rules, data, checkpointer, hooks, decisions, journal
        )
        watchdog.beat("restore")
        state, position, begun = recovery.begin()
        if jax.process_index() == 0:
            write_atomic(directory / OPERATIVE_CONFIG, operative_config)
            if told := told_beginning(run, begun):
                print(told, file=sys.stderr)
        facts = finish.facts(run, model, mesh, data)
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
