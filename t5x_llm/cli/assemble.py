"""The pieces of a run, put together from its configuration; the only place that knows all rooms."""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_llm.checkpoint import Checkpointer, check_compatible
from t5x_llm.cli.compiler import options_for
from t5x_llm.cli.run import Run
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path
from t5x_llm.core.rng import named_key
from t5x_llm.data.catalog import Opened, open_stores, open_stream
from t5x_llm.data.data_plan import data_plan
from t5x_llm.data.positions import DataState, merge_ranges
from t5x_llm.data.stream import Stream
from t5x_llm.evaluate.hooks import BASELINE, Baseline, Evaluation, Every, read_baseline
from t5x_llm.evaluate.perplexity import Evaluator, HeldOut
from t5x_llm.infer.sampler import generate
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules
from t5x_llm.train import hooks as train_hooks
from t5x_llm.train.ahead import Ahead
from t5x_llm.train.environment import environment
from t5x_llm.train.feed import abstract_batch
from t5x_llm.train.flops import flops_per_token, peak_of
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.journal import Decision, Journal
from t5x_llm.train.loop import Run as Progress
from t5x_llm.train.recovery import Recovery
from t5x_llm.train.report import write_report
from t5x_llm.train.state import (
    TrainState,
    abstract_state,
    init_state,
    state_from_params,
    state_shardings,
    with_shardings,
)
from t5x_llm.train.step import make_train_step, quiet_control, signal_rows

_DESCRIBED = 512  # examples of a spike whose documents are looked up


@dataclasses.dataclass(frozen=True)
class OpenData:
    """What training reads.

    Attributes:
      opened: stores and tokenizer.
      stream: the training rows.
    """

    opened: Opened
    stream: Stream


def held_out(opened: Opened) -> list[HeldOut]:
    """The held-out documents of every source that has any."""
    return [
        HeldOut(name, store.validation, opened.languages[name])
        for name, store in opened.stores.items()
        if len(store.validation)
    ]


def open_data(run: Run) -> OpenData:
    """Prepared stores and the stream over them.

    Raises:
      ConfigError: if the run asks for more than its budgets or ``Mixture.max_epochs`` allow.
      DataError: if they were not prepared, or for another configuration.
    """
    opened = open_stores(run.data)
    return OpenData(opened, open_run_stream(run, opened))


def open_run_stream(run: Run, opened: Opened) -> Stream:
    """Returns the stream of a run, its data plan checked; see ``open_data``."""
    loop = run.loop
    stream = open_stream(run.data, opened, loop.sequence_length, loop.seed, loop.examples_after)
    mixture = run.data.mixture
    data_plan(stream, loop.examples).check(mixture.max_epochs if mixture else None)
    return stream


def make_step(
    run: Run, model: Model, mesh: Mesh, rules: Rules, n_sources: int, guarded: bool = True
) -> tuple[Any, Any]:
    """The optimizer, and the jitted step as ``train.step.make_train_step`` makes it."""
    tx = run.optimizer.build(run.loop.steps, model.logical_axes())
    step = make_train_step(
        model,
        tx,
        run.optimizer.schedule.build(run.loop.steps),
        mesh=mesh,
        rules=rules,
        state_shardings=state_shardings(model, tx, mesh, rules),
        n_sources=n_sources,
        microbatches=run.loop.microbatches,
        z_loss=run.z_loss,
        guarded=guarded,
        noise_seed=run.loop.seed,
        embed_gradient=run.embed_gradient and run.embed_gradient.build(),
        trained=run.optimizer.trained_mask(model.abstract_params()),
        compiler_options=options_for(mesh, run.compiler_options),
    )
    return tx, step


def compile_ahead(
    run: Run, step: Any, model: Model, tx: Any, mesh: Mesh, data: OpenData, found: int | None
) -> Any:
    """The guarded step of ``make_step``, whose compilation for the first batch begins in a thread.

    Not so where the run is finished, nor where it stands somewhere on a ramp of batch sizes.
    """
    if found is not None and (found >= run.loop.steps or len(run.loop.sizes) > 1):
        return step
    rules = run.mesh.rules()
    state = with_shardings(abstract_state(model, tx), state_shardings(model, tx, mesh, rules))
    batch = abstract_batch(data.stream, run.loop.sizes[0], mesh, rules)
    return Ahead(step, state, batch, quiet_control(mesh))


def token_flops(run: Run, model: Model) -> float:
    """Training FLOPs of one token, by the convention of ``train/flops.py``."""
    config, counts = model.config, model.parameter_count()
    tables = counts.get("position_embed", 0) + (0 if config.tied else counts["embed"])
    used = counts["total"] - tables - model.idle_parameters()
    state = getattr(config, "state_size", 0)
    return flops_per_token(used, config.attention_width, run.loop.sequence_length, state)


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


def resumed_step(run: Run) -> int | None:
    """The step from which the run would continue, None if it would begin.

    Raises:
      CheckpointError: if the checkpoint was made by a configuration that differs, naming fields.
    """
    directory = as_path(run.directory) / "checkpoints"
    if not directory.exists():
        return None
    checkpointer = Checkpointer(directory, run.checkpoint, read_only=True)
    try:
        if (found := checkpointer.newest_meta()) is None:
            return None
        step, meta = found
        where = f"The checkpoint {checkpointer.path(step)}"
        check_compatible(meta["config"], run.shared(), where, run.checkpoint.allow_changes)
        return step
    finally:
        checkpointer.close()


def make_recovery(
    run: Run,
    model: Model,
    tx: Any,
    mesh: Mesh,
    rules: Rules,
    data: OpenData,
    checkpointer: Checkpointer,
    hooks: list[train_hooks.Hook],
    decisions: list[Decision],
    journal: Journal,
) -> Recovery:
    """What finds the beginning of the run, and takes it back after a spike."""
    made = model, tx, mesh, rules

    def load(step: int | None) -> tuple[TrainState, DataState, dict[str, Any]]:
        if step is None:
            fresh = DataState(skips=merge_ranges(run.loop.skips))
            if run.start_from is not None:
                return state_from_params(imported(run, *made), *made), fresh, {}
            key = named_key(run.loop.seed, "params")
            return init_state(model, tx, key, mesh, rules), fresh, {}
        wanted = with_shardings(abstract_state(model, tx), state_shardings(model, tx, mesh, rules))
        state, meta = train_hooks.resume(checkpointer, wanted, run.shared(), step=step)
        return state, DataState.from_json(meta["data"]), meta

    def describe(state: DataState, first: int, count: int) -> dict[str, Any]:
        stream = data.stream.at(state)
        sources: collections.Counter[str] = collections.Counter()
        documents: dict[tuple[str, int], Any] = {}
        for position in range(first, first + min(count, _DESCRIBED)):
            for piece in stream.documents(position):
                sources[piece.source] += piece.stop - piece.start
                documents.setdefault((piece.source, piece.document), piece.provenance)
        named = [[name, p.file, p.line] for (name, _), p in documents.items()]
        return {"examples": [first, count], "tokens_by_source": sources, "documents": named[:200]}

    blend = data.stream.blend
    return Recovery(run.spike, checkpointer, decisions, hooks, load, describe, journal, blend)


def told_beginning(run: Run, step: int | None) -> str:
    """Where training begins, for people; '' for a fresh run."""
    if step is None:
        return ""
    if step >= run.loop.steps:
        return f"{run.directory} is finished: step {step} of Loop.steps = {run.loop.steps} is done."
    return f"Continuing {run.directory} from step {step}."


def imported(run: Run, model: Model, tx: Any, mesh: Mesh, rules: Rules) -> Any:
    """Parameters of ``Run.start_from``, checked against the run's model.

    Each goes to its devices as soon as it is read: the host never holds the model.
    """
    from t5x_llm.hf.import_ import import_hf
    from t5x_llm.models.weight_map import flatten

    check_start_from(run)
    assert run.start_from is not None
    shardings = flatten(state_shardings(model, tx, mesh, rules).params)
    dtypes = {path: leaf.dtype for path, leaf in flatten(model.abstract_params()).items()}

    def place(path: str, array: Any) -> jax.Array:
        return jax.device_put(array.astype(dtypes[path]), shardings[path])

    return import_hf(run.start_from, place=place)[1]


def check_start_from(run: Run) -> None:
    """Raises ConfigError unless the model of ``Run.start_from`` is the run's; reads no weights.

    How fresh weights are drawn, and the length an export is meant for, are no part of that.
    """
    if run.start_from is None:
        return
    from t5x_llm.checkpoint.compat import differences
    from t5x_llm.config import to_dict
    from t5x_llm.hf.import_ import family_of, read_config

    path = as_path(run.start_from)
    if path.suffix == ".gguf":
        from t5x_llm.hf.gguf_io import GgufReader

        theirs = GgufReader(path).config
    else:
        theirs = read_config(path)
    skipped = {"init_std", "residual_scale"}
    if run.model.decoder().learned_positions is None:
        skipped.add("max_length")
    # Both by way of config.json, which writes out what a preset may leave to its other fields.
    there, here = (
        {k: v for k, v in to_dict(family_of(config)).items() if k not in skipped}
        for config in (theirs, run.model.to_hf_config())
    )
    if found := differences(there, here):
        raise ConfigError(
            "Run.start_from",
            run.start_from,
            f"the model of this run, but there -> here: {'; '.join(found)}",
            "Set these fields to what they are there; t5x-llm import prints them all.",
        )
    plain, mine = (Model(each).abstract_params() for each in (run.model.decoder(), run.decoder()))
    if plain != mine:
        raise ConfigError(
            "Run.stability",
            run.stability,
            "None, or options without parameters, where Run.start_from gives the weights",
        )


def facts(run: Run, model: Model, mesh: Mesh, data: OpenData) -> dict[str, Any]:
    """What the record of a run begins with."""
    sources = data_plan(data.stream, run.loop.examples).sources
    return {
        "parameters": model.parameter_count()["total"],
        "mixture": {name: source.share for name, source in sources.items()},
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "environment": environment(list(mesh.devices.flat)),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def finish(run: Run, directory: Any, state: TrainState, data: OpenData) -> None:
    """Exports, reports, and says what to do next."""
    from t5x_llm.hf.export import export_hf

    lines = [f"Run directory: {run.directory}"]
    lines.append(f"  report        {write_report(directory)}")
    if run.export.enabled and jax.process_count() > 1:
        lines.append(f"  to export     t5x-llm export {run.directory}")
    elif run.export.enabled:
        out = directory / "hf"
        params = jax.device_get(state.params)
        parity = export_hf(
            params,
            run.model,
            data.opened.tokenizer,
            out,
            max_shard_bytes=run.export.max_shard_bytes,
            dtype=run.export.dtype,
        )
        worst = max(p.max_abs for p in parity.prompts.values())
        lines.append(f"  Hugging Face  {out} (logits within {worst:.1e} of {parity.reference})")
    if (samples := directory / "samples.txt").exists():
        lines.append(f"  samples       {samples}")
    encoder = run.decoder().kind == "encoder"
    then = f"eval {run.directory}" if encoder else f"generate {run.directory} --prompt '...'"
    lines.append(f"Next: t5x-llm {then}")
    print("\n".join(lines), file=sys.stderr)
