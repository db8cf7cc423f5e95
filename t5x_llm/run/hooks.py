"""Hooks of a run, in the order in which they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.config import to_dict
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path
from t5x_llm.evaluate.hooks import BASELINE, Baseline, EvaluationHook, Every, read_baseline
from t5x_llm.evaluate.perplexity import Evaluator
from t5x_llm.evaluate.scoring import DocumentScorer, ScoringHook
from t5x_llm.infer.sampler import generate
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.base import base_record
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData, held_out
from t5x_llm.run.identity import made_from
from t5x_llm.run.planned import make_phases
from t5x_llm.train import hooks as train_hooks
from t5x_llm.train.flops import peak_of
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.journal import Journal
from t5x_llm.train.loop import Trainer
from t5x_llm.train.step import signal_rows


def make_hooks(
    assembled: Assembled,
    data: OpenData,
    checkpointer: Checkpointer,
    journal: Journal,
    preempted: Callable[[], bool],
) -> list[train_hooks.Hook]:
    """Makes journal, progress, metrics, profile, guard, evaluation, samples; the checkpoint last.

    Args:
      assembled: the run.
      data: what it reads, and evaluates on.
      checkpointer: the checkpoints of the run directory.
      journal: the journal of the run directory.
      preempted: returns True once this process was asked to end.
    """
    run, mesh = assembled.run, assembled.placement.devices
    directory = as_path(run.directory)
    peak = peak_of(list(mesh.devices.flat), run.precision.compute)

    def throughput() -> train_hooks.Throughput:
        return train_hooks.Throughput(assembled.flops_per_token, peak)

    writers: list[train_hooks.Writer] = [
        train_hooks.JsonLines(directory / "metrics.jsonl"),
        train_hooks.TensorBoard(directory / "tensorboard"),
        *train_hooks.tracked(run.tracking, run.directory, to_dict(run)),
    ]
    hooks: list[train_hooks.Hook] = [
        train_hooks.Journaling(journal),
        train_hooks.Progress(throughput()),
        train_hooks.Metrics(writers, throughput()),
    ]
    if run.loop.profile_steps is not None:
        hooks.append(train_hooks.Profiler(run.loop.profile_steps))
    signals = functools.partial(signal_rows, mesh)
    hooks.append(Guard(run.spike, journal.decisions, signals, make_phases(run, data)))
    if held_out(data.opened):
        make = evaluation_hook if run.task is None else scoring_hook
        hooks.append(make(assembled, data))
    if run.samples.prompts and jax.process_count() == 1:
        hooks.append(Every("samples", run.samples.every, sample_writer(assembled, data)))
    read = made_from(data.opened) | base_record(run)
    hooks.append(train_hooks.Checkpoint(checkpointer, run.shared(), preempted, read))
    return hooks


def evaluation_hook(assembled: Assembled, data: OpenData) -> EvaluationHook:
    """Makes the hook that evaluates held-out documents, as ``Run.evaluation`` says.

    Raises:
      ConfigError: see ``stage_baseline``.
    """
    run, config = assembled.run, assembled.run.evaluation
    evaluator = Evaluator(
        assembled.model,
        assembled.placement.devices,
        assembled.rules,
        run.loop.sequence_length,
        config.batch_size,
        data.stream.objective,
    )
    compare = config.compare
    if compare is None:
        compare = bool(run.start_from or config.baseline)
    baseline = stage_baseline(run) if compare else None
    return EvaluationHook(evaluator, held_out(data.opened), config.limit, compare, baseline)


def scoring_hook(assembled: Assembled, data: OpenData) -> ScoringHook:
    """Makes the hook that scores held-out documents, as ``Run.evaluation`` says."""
    run, mesh, rules = assembled.run, assembled.placement.devices, assembled.rules
    assert run.task is not None
    config, length = run.evaluation, run.loop.sequence_length
    scorer = DocumentScorer(assembled.model, mesh, rules, length, config.batch_size)
    stores = data.opened.stores.items()
    documents = {name: store.validation for name, store in stores if len(store.validation)}
    return ScoringHook(scorer, run.task, documents, config.limit)


def stage_baseline(run: Run) -> Baseline | None:
    """Reads the baseline of the stage that ``Evaluation.baseline`` names; None if it names none.

    Raises:
      ConfigError: that run has none, or one of windows of another length.
    """
    if not (where := run.evaluation.baseline):
        return None
    if (found := read_baseline(where)) is None:
        raise ConfigError(
            "Evaluation.baseline",
            where,
            f"a run directory with {BASELINE}",
            "It is written by a run with Run.start_from or Evaluation.compare = True.",
        )
    if found.length != run.loop.sequence_length:
        raise ConfigError(
            "Evaluation.baseline",
            where,
            f"a run of Loop.sequence_length = {run.loop.sequence_length}, not {found.length}",
        )
    return found


def sample_writer(assembled: Assembled, data: OpenData) -> Callable[[Trainer], None]:
    """Returns a function that lets the model continue the prompts and appends to samples.txt."""
    samples = assembled.run.samples

    def write(trainer: Trainer) -> None:
        completions = generate(
            assembled.model,
            trainer.params,
            data.opened.tokenizer,
            samples.prompts,
            samples.sampling,
            mesh=assembled.placement.devices,
            rules=assembled.rules,
        )
        texts = [f"=== step {trainer.step} ===\n"]
        texts += [f"[{c.prompt}]{c.text}\n" for c in completions]
        path = trainer.directory / "samples.txt"
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        before = earlier.split(texts[0])[0]  # a resumed run writes this step's again
        path.write_text(before + "\n".join(texts) + "\n", encoding="utf-8")

    return write
