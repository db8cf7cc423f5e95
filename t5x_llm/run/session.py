"""Runs one run from its configuration to its end: trains, evaluates, samples, exports, reports."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import jax
from etils import epath

from t5x_llm import parallel
from t5x_llm.checkpoint import Checkpointer
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.memory import memory_explained
from t5x_llm.core.paths import as_path, check_writable, write_atomic
from t5x_llm.data.labelled import LabelledStream, check_labelled
from t5x_llm.hf.drafts import remove_abandoned
from t5x_llm.run import finish
from t5x_llm.run.adapters import OUT as ADAPTER_OUT
from t5x_llm.run.adapters import check_adapter
from t5x_llm.run.assembled import Assembled, assemble
from t5x_llm.run.base import check_base
from t5x_llm.run.chat import begin_chat, check_chat, save_template
from t5x_llm.run.checks import (
    check_fits,
    check_start_from,
    check_start_tokenizer,
    check_tokenizer_size,
)
from t5x_llm.run.compiler import options_named
from t5x_llm.run.config import OPERATIVE_CONFIG, Run
from t5x_llm.run.data import OpenData, open_data
from t5x_llm.run.held import held
from t5x_llm.run.hooks import make_hooks
from t5x_llm.run.identity import check_opened, check_texts
from t5x_llm.run.memory import TRAINING, check_memory
from t5x_llm.run.precision import no_faster
from t5x_llm.run.prepare import prepare_in_subprocess
from t5x_llm.run.start import make_origin, resumed_step, start_message
from t5x_llm.train import loop
from t5x_llm.train.ahead import Ahead, keep_compiled
from t5x_llm.train.feed import StreamFeed
from t5x_llm.train.hooks import check_tracking
from t5x_llm.train.journal import JOURNAL, Journal
from t5x_llm.train.recovery import Recovery
from t5x_llm.train.signals import Preemption, exit_together
from t5x_llm.train.step import StepFunction, quiet_control
from t5x_llm.train.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class ProcessWatch:
    """Objects that watch over the process that trains.

    Attributes:
      journal: the journal of the run.
      preemption: knows if the process was asked to end.
      watchdog: ends the process when it hangs.
    """

    journal: Journal
    preemption: Preemption
    watchdog: Watchdog


def train(run: Run, operative_config: str, resume: str = "auto") -> loop.Trainer:
    """Trains a run, and evaluates, samples, exports and reports: all that its directory holds.

    Args:
      run: the configuration.
      operative_config: gin text saved with the run; alone it reproduces the run.
      resume: ``auto``, ``never``, ``always`` or ``anew``.

    Returns:
      The trainer as the last step left it.

    Raises:
      ConfigError: the run directory is not what ``resume`` asks for.
      Held: another training, which lives, writes to the run directory.
    """
    distributed = parallel.initialize()
    directory = check_writable("Run.directory", run.directory)
    with held(directory, distributed):
        return _train_held(run, operative_config, resume, directory)


def _train_held(
    run: Run, operative_config: str, resume: str, directory: epath.Path
) -> loop.Trainer:
    """Trains a run whose directory this training holds; see ``train``."""
    mesh = parallel.make_mesh(run.mesh)
    check_fits(run, mesh)
    check_memory(run, mesh)
    check_tracking(run.tracking, run.directory, jax.process_index() == 0)
    keep_compiled(directory)
    check_start_from(run)
    check_chat(run)
    check_adapter(run)
    found = resumed_step(run, resume == "anew")
    check_resume(run, resume, found)
    primary = jax.process_index() == 0
    if primary:
        for name in ("hf", ADAPTER_OUT):
            remove_abandoned(pathlib.Path(directory) / name)
        _warn(run, mesh)
    journals: list[Journal] = []  # made when there is something to train on

    def report(event: str, **fields: str) -> None:
        for journal in journals:
            journal.write(event, 0, **fields)

    def stuck(reason: str) -> None:
        report("stuck", reason=reason)

    with (
        Preemption(run.life.grace_seconds) as preemption,
        exit_together(lambda error: report("end", status=type(error).__name__)),
        Watchdog(run.life.watchdog_minutes, directory, stuck) as watchdog,
    ):
        watchdog.heartbeat("preparation of the data")
        # What begins anew is compared with nothing that it leaves behind.
        compared = found is not None or resume != "anew"
        if primary and compared:
            check_texts(run)
            check_base(run)
        prepare_in_subprocess(run, operative_config, jax.process_index())
        data = open_data(run)
        check_tokenizer_size(run, data.opened.tokenizer)
        changes = check_opened(run, data.opened) if compared else []
        if found is None:
            check_start_tokenizer(run, data.opened.tokenizer)
        if run.task is not None:
            check_labelled(data.opened)
        begin_chat(run, data.opened, 3 if primary else 0)
        journals.append(Journal(directory / JOURNAL, primary=primary))
        _report_changes(journals[0], found, changes)
        watch = ProcessWatch(journals[0], preemption, watchdog)
        assembled = assemble(run, mesh, data)
        trainer = _train(assembled, data, found, operative_config, watch, resume == "anew")
    if primary:
        finish.finish(run, trainer.state, data)
    return trainer


def check_resume(run: Run, resume: str, found: int | None) -> None:
    """Raises ConfigError unless a run's directory is what ``resume`` asks for.

    Args:
      run: the configuration.
      resume: as for ``train``.
      found: step of the newest checkpoint, None if there is none.
    """
    if resume == "never" and found is not None:
        raise ConfigError(
            "Run.directory",
            run.directory,
            f"a directory without checkpoints, as --resume=never (there is step {found})",
            "Choose another directory, or leave --resume out to continue.",
        )
    if resume == "always" and found is None:
        raise ConfigError("Run.directory", run.directory, "a checkpoint, as --resume=always")


def _report_changes(journal: Journal, found: int | None, changes: list[str]) -> None:
    """Writes down and says what differs from the checkpoint, as the configuration allows."""
    if found is None or not changes:
        return
    journal.write("changed", found, changes=changes)
    if journal.primary:
        listed = "".join(f"\n  {line}" for line in changes)
        print(f"warning: changed since step {found}, as allowed:{listed}", file=sys.stderr)


def _warn(run: Run, mesh: jax.sharding.Mesh) -> None:
    """Names parameters that every device holds whole, and 8-bit products that gain nothing."""
    model, rules = run.build_model(), run.mesh.rules()
    axes, shapes = model.logical_axes(), model.abstract_params()
    tolerance = run.mesh.replication_tolerance
    for each in parallel.replicated_beyond(axes, shapes, mesh, rules, tolerance):
        print(f"warning: {each}", file=sys.stderr)
    if reason := no_faster(run.precision, jax.devices()):
        print(f"warning: {reason}", file=sys.stderr)


def compile_ahead(assembled: Assembled, found: int | None) -> StepFunction:
    """Returns the guarded step, whose compilation for the first batch begins in a thread.

    No compilation begins if the run is finished, or stands somewhere on a ramp of batch sizes.

    Args:
      assembled: the run.
      found: the step of the checkpoint that it continues from; None for a fresh run.
    """
    loop_config = assembled.run.loop
    if found is not None and (found >= loop_config.steps or len(loop_config.sizes) > 1):
        return assembled.step
    # The loop's controls are NumPy's; abstract ones would be traced, and compiled, by themselves.
    control = quiet_control(assembled.placement.devices)
    batch = assembled.batch_of(loop_config.sizes[0])
    return Ahead(assembled.step, assembled.state, batch, control)


def _train(
    assembled: Assembled,
    data: OpenData,
    found: int | None,
    operative_config: str,
    watch: ProcessWatch,
    anew: bool,
) -> loop.Trainer:
    """Trains to the end, from the newest checkpoint or from the beginning."""
    run, journal, heartbeat = assembled.run, watch.journal, watch.watchdog.heartbeat
    directory, primary = as_path(run.directory), jax.process_index() == 0
    step = compile_ahead(assembled, found)

    def damaged(at: int, reason: str) -> None:
        journal.write("damaged", at, reason=reason)
        print(f"warning: the checkpoint of step {at} is damaged: {reason}", file=sys.stderr)

    checkpointer = Checkpointer(directory / "checkpoints", run.checkpoint, on_damage=damaged)
    try:
        hooks = make_hooks(
            assembled, data, checkpointer, journal, lambda: watch.preemption.requested
        )
        origin = make_origin(assembled, data, checkpointer)
        recovery = Recovery(run.spike, checkpointer, hooks, journal, origin)
        heartbeat("restore")
        start = recovery.begin(anew)
        if primary:
            write_atomic(directory / OPERATIVE_CONFIG, operative_config)
            save_template(run, data.opened.tokenizer)
            if message := start_message(run, start.resumed):
                print(message, file=sys.stderr)
        record = loop.RunRecord(directory, finish.facts(assembled, data), journal, heartbeat)
        trainer = loop.Trainer(
            run.loop, start, assembled.task.measures, hooks, record, assembled.task
        )
        feed = StreamFeed(
            data.stream if run.task is None else LabelledStream(data.stream),
            run.loop.size_at,
            assembled.placement,
            run.loop.prefetch,
            expected=assembled.batch,
        )
        heartbeat("compilation of the first step")
        explained = memory_explained("A step of this run", TRAINING)
        with explained, options_named(run.compiler_options):
            loop.train(trainer, step, feed, recovery.rewind)
        return trainer
    except KeyboardInterrupt:
        print("The same command continues from the newest checkpoint.", file=sys.stderr)
        raise
    finally:
        checkpointer.close()
