"""Hooks of a run, in the order in which they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.core.errors import ConfigError
from t5x_llm.evaluate.hooks import BASELINE, Baseline, Evaluation, Every, read_baseline
from t5x_llm.evaluate.perplexity import Evaluator
from t5x_llm.infer.sampler import generate
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData, held_out
from t5x_llm.run.step import token_flops
from t5x_llm.train import hooks as train_hooks
from t5x_llm.train.flops import peak_of
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.journal import Decision, Journal
from t5x_llm.train.loop import Run as Progress
from t5x_llm.train.step import signal_rows


def make_hooks(
    run: Run,
    directory: Any,
    model: Model,
    mesh: Mesh,
    rules: Rules,
    data: OpenData,
    checkpointer: Checkpointer,
    journal: Journal,
    decisions: list[Decision],
    preempted: Callable[[], bool],
) -> list[train_hooks.Hook]:
    """Journal, progress, metrics, profile, guard, evaluation, samples; the checkpoint last."""
    flops, peak = token_flops(run, model), peak_of(list(mesh.devices.flat), run.precision.compute)
    writers: list[train_hooks.Writer] = [
        train_hooks.JsonLines(directory / "metrics.jsonl"),
        train_hooks.TensorBoard(directory / "tensorboard"),
    ]
    hooks: list[train_hooks.Hook] = [
        train_hooks.Journaling(journal),
        train_hooks.Progress(train_hooks.Throughput(flops, peak)),
        train_hooks.Metrics(writers, train_hooks.Throughput(flops, peak)),
    ]
    if run.loop.profile_steps is not None:
        hooks.append(train_hooks.Profiler(run.loop.profile_steps))
    hooks.append(Guard(run.spike, decisions, functools.partial(signal_rows, mesh)))
    if documents := held_out(data.opened):
        length, rows = run.loop.sequence_length, run.evaluation.batch_size
        evaluator = Evaluator(model, mesh, rules, length, rows, data.stream.objective)
        compare = run.evaluation.compare
        compare = bool(run.start_from or run.evaluation.baseline) if compare is None else compare
        baseline = stage_baseline(run) if compare else None
        hooks.append(Evaluation(evaluator, documents, run.evaluation.limit, compare, baseline))
    if run.samples.prompts and jax.process_count() == 1:
        hooks.append(
            Every("samples", run.samples.every, sample_writer(run, directory, model, data))
        )
    hooks.append(train_hooks.Checkpoint(checkpointer, run.shared(), preempted))
    return hooks


def stage_baseline(run: Run) -> Baseline | None:
    """What ``Evaluation.baseline`` began with; None if no stage is named.

    Raises:
      ConfigError: there is none, or one of windows of another length.
    """
    if not (where := run.evaluation.baseline):
        return None
    if (found := read_baseline(where)) is None:
        raise ConfigError(
            *("Evaluation.baseline", where, f"a run directory with {BASELINE}"),
            "It is written by a run with Run.start_from or Evaluation.compare = True.",
        )
    if found.length != run.loop.sequence_length:
        raise ConfigError(
            "Evaluation.baseline",
            where,
            f"a run of Loop.sequence_length = {run.loop.sequence_length}, not {found.length}",
        )
    return found


def sample_writer(run: Run, directory: Any, model: Model, data: OpenData) -> Any:
    """A function that lets the model continue the prompts and appends them to samples.txt."""

    def write(progress: Progress) -> None:
        completions = generate(
            model,
            progress.state.params,
            data.opened.tokenizer,
            run.samples.prompts,
            run.samples.sampling,
        )
        texts = [f"=== step {progress.step} ===\n"]
        texts += [f"[{c.prompt}]{c.text}\n" for c in completions]
        path = directory / "samples.txt"
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        kept = earlier.split(texts[0])[0]  # what a resumed run writes again
        path.write_text(kept + "\n".join(texts) + "\n", encoding="utf-8")

    return write
