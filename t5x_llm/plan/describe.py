"""Describes a run without running it: every check, and the plan in words and numbers.

Nothing is compiled or written. A mesh that this machine does not have is described all the same:
shardings are arithmetic on axis sizes.
"""

from __future__ import annotations

import math
import os
import pathlib
import textwrap

import jax
from jax.sharding import AbstractMesh, Mesh

from t5x_llm import parallel
from t5x_llm.config import Resolved
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.units import size
from t5x_llm.data.catalog import Opened, open_stores
from t5x_llm.data.data_plan import data_plan
from t5x_llm.data.reading import find_files
from t5x_llm.data.sources import Source
from t5x_llm.models.model import Model
from t5x_llm.models.pipelined import plan as plan_pipeline
from t5x_llm.optim import decay_summary
from t5x_llm.optim.freezing import select_trained
from t5x_llm.plan.estimate import Estimate, estimate
from t5x_llm.run.adapters import check_adapter
from t5x_llm.run.assembled import Assembled, assemble
from t5x_llm.run.checks import (
    check_fits,
    check_start_from,
    check_start_tokenizer,
    check_tokenizer_size,
)
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData, open_run_stream
from t5x_llm.run.identity import check_opened, newest_checkpoint
from t5x_llm.run.precision import describe_precision
from t5x_llm.run.reading import read_schedule
from t5x_llm.run.start import resumed_step
from t5x_llm.text import load_tokenizer
from t5x_llm.train.flops import CONVENTION


def describe(run: Run, resolved: Resolved) -> str:
    """Checks a run and describes it.

    Args:
      run: the run.
      resolved: the config that it came from.

    Returns:
      The resolved config, parameters, mesh and shardings, mixture, memory and FLOPs, as text.

    Raises:
      T5xLLMError: any error that the run itself would raise before its first step.
    """
    check_can_write("Run.directory", run.directory)
    mesh, note = planned_mesh(run)
    check_fits(run, mesh)
    check_start_from(run)
    check_adapter(run)
    opened, why = _prepared(run)
    if opened is not None:
        check_tokenizer_size(run, opened.tokenizer)
        check_opened(run, opened)
        if newest_checkpoint(run) is None:
            check_start_tokenizer(run, opened.tokenizer)
    elif isinstance(run.data.tokenizer, str):
        check_tokenizer_size(run, load_tokenizer(run.data.tokenizer))
    data = None if opened is None else OpenData(opened, open_run_stream(run, opened))
    assembled = assemble(run, mesh, data)
    model, rules = assembled.model, assembled.rules
    axes, shapes = assembled.task.logical_axes(), assembled.task.abstract_params()
    table = parallel.dump_shardings(axes, shapes, mesh, rules)
    tolerance = run.mesh.replication_tolerance
    whole = parallel.replicated_beyond(axes, shapes, mesh, rules, tolerance)
    table += "".join(f"warning: {parameter}\n" for parameter in whole)
    parts = [
        ("Config", resolved.operative_config_text()),
        ("Parameters", _parameters(run, model)),
        ("Precision", describe_precision(run.precision, model, None if note else jax.devices())),
        ("Mesh", _mesh(mesh, note)),
        *_pipeline(run, model, mesh),
        ("Parameter shardings", table),
        ("Mixture", _mixture(run, data, why)),
        ("Memory of a device", _memory(estimate(assembled))),
        ("Work", _work(assembled)),
        ("Run directory", _directory(run)),
    ]
    return "\n\n".join(f"== {title} ==\n{text.strip()}" for title, text in parts)


def planned_mesh(run: Run) -> tuple[Mesh | AbstractMesh, str]:
    """Returns this machine's mesh if the run fits it, else one of sizes alone and a note about it.

    Raises:
      ConfigError: the axes leave the number of devices open and this machine's cannot be it.
    """
    here = jax.device_count()
    asked = [getattr(run.mesh, axis) for axis in parallel.AXES]
    wanted = here if -1 in asked else math.prod(asked)
    if wanted == here:
        return parallel.make_mesh(run.mesh), ""
    note = f"this machine has {here} device{'s'[: here != 1]}; the plan is for {wanted}"
    return parallel.abstract_mesh(run.mesh, wanted), note


def check_can_write(field: str, directory: str) -> None:
    """Raises ConfigError unless ``directory`` is one, or could be made; makes nothing."""
    if "://" in directory:
        return
    path = pathlib.Path(directory).expanduser().absolute()
    place = next(p for p in (path, *path.parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "cannot be written" if place.is_dir() else "is a file"
        raise ConfigError(
            field,
            directory,
            f"a directory that can be written ({place} {reason})",
            "Choose another directory.",
        )


def _prepared(run: Run) -> tuple[Opened | None, str]:
    """Opens the stores; if there are none, checks the inputs and returns the reason."""
    try:
        return open_stores(run.data), ""
    except DataError as e:
        why = str(e)
    check_can_write("Data.store_dir", run.data.store_dir)
    for source in run.data.mixture.sources if run.data.mixture else ():
        if source.kind != "tfds":
            find_files(source)
    return None, why


def _parameters(run: Run, model: Model) -> str:
    counts = model.parameter_count()
    lines = [f"{name:<16} {count:>16,}" for name, count in counts.items()]
    params, axes = model.abstract_params(), model.logical_axes()
    decays = decay_summary(params, run.optimizer.decay_mask, axes)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    sizes = {".".join(str(k.key) for k in path): math.prod(x.shape) for path, x in flat}
    for word, chosen in (("decayed", True), ("not decayed", False)):
        names = [name for name in sizes if decays[name.lower()] is chosen]
        text = f"{word} by {run.optimizer.name} ({run.optimizer.decay_mask}): "
        text += f"{sum(sizes[n] for n in names):,} in {', '.join(names) or 'nothing'}"
        lines.append(textwrap.fill(text, 100, subsequent_indent="  ", break_long_words=False))
    if (mask := run.optimizer.trained_mask(params)) is not None:
        leaves = jax.tree.leaves(select_trained(mask, params))
        trained = sum(math.prod(x.shape) for x in leaves)
        lines.append(f"trained {trained:>25,} by Optimizer.trained; the others are frozen")
    return "\n".join(lines)


def _mesh(mesh: Mesh | AbstractMesh, note: str) -> str:
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    kind = "" if note else f", {jax.devices()[0].device_kind}"
    count = f"{mesh.size} device{'s'[: mesh.size != 1]}"
    return "\n".join([f"{axes or 'one device'} ({count}{kind})", *([note] if note else [])])


def _pipeline(run: Run, model: Model, mesh: Mesh | AbstractMesh) -> list[tuple[str, str]]:
    if (planned := plan_pipeline(model.config, mesh, run.mesh.rules())) is None:
        return []
    schedule, layout = planned
    lines = [layout.text(len(model.config.groups[0].blocks)), "", schedule.table(), ""]
    lines.append(
        f"idle for {schedule.bubble:.1%} of {schedule.ticks} ticks, forward and again backward: "
        "(p - 1) / (v m + p - 1)"
    )
    if layout.waste:
        lines.append(
            f"unequal stages: all take the time of the largest, {layout.waste:.1%} more than the "
            "layers' own work"
        )
    return [("Pipeline", "\n".join(lines))]


def _mixture(run: Run, opened_data: OpenData | None, why: str) -> str:
    data = run.data
    rates = data.mixture.rates if data.mixture else f"seqio {data.seqio_mixture}"
    lines = [f"{data.name} ({rates}, packing {data.packing})"]
    if opened_data is None:
        lines[0] += ": not prepared yet"
        rows = [_source_files(s) for s in data.mixture.sources] if data.mixture else []
    else:
        opened = opened_data.opened
        read = read_schedule(run)
        examples = read.examples_after(run.loop.steps)
        lines.append(str(data_plan(opened_data.stream, examples, read.step_at)))
        lines.append("sources:")
        rows = []
        for name, store in opened.stores.items():
            about = [x for x in (opened.languages[name], opened.licenses[name]) if x]
            rows.append(
                f"{name:<16} {store.train.tokens:,} tokens, {len(store.validation):,} documents "
                f"held out ({', '.join(about) or 'no licence given'})"
            )
    for i, row in enumerate(rows):
        lines.append(f"{'└─' if i == len(rows) - 1 else '├─'} {row}")
    if opened_data is None:
        lines.append(why)
    else:
        lines.append(f"tokenizer {opened.tokenizer_path}, {opened.tokenizer.vocab_size:,} tokens")
    return "\n".join(lines)


def _source_files(source: Source) -> str:
    if source.kind == "tfds":
        return f"{source.name:<16} tfds {source.tfds} {source.tfds_split}"
    return f"{source.name:<16} {source.kind} {', '.join(source.paths)}"


def _memory(e: Estimate) -> str:
    rows = [
        ("parameters", e.params, "exact"),
        ("gradients", e.gradients, "exact" if e.buffers == 1 else "exact: a sum and one part's"),
        ("optimizer state", e.optimizer, "exact"),
        ("activations", e.activations, "estimate: all that the backward pass keeps, unfused"),
        ("cast parameters", e.casts, "estimate: copies in the compute dtype that it keeps"),
        (
            "working memory",
            e.working,
            "estimate: logits and head, or a layer with its gradients",
        ),
        ("total", e.total, "the compiler's padding and copies come on top"),
    ]
    lines = [f"{name:<16} {size(n):>12}  {word}" for name, n, word in rows]
    if e.scores:
        lines.append(
            f"(With this machine's attention {size(e.scores)} of scores would be kept besides; "
            "the fused kernels of TPU and GPU keep none.)"
        )
    return "\n".join(lines)


def _work(assembled: Assembled) -> str:
    loop, flops = assembled.run.loop, assembled.flops_per_token
    tokens = loop.batch_size * loop.sequence_length
    parts = f" in {loop.microbatches} microbatches" if loop.microbatches > 1 else ""
    ramp = f", after a ramp from {loop.sizes[0]} rows" if loop.ramp else ""
    whole = loop.examples * loop.sequence_length
    return "\n".join(
        [
            f"tokens of a step {tokens:>16,}  ({loop.batch_size} rows of "
            f"{loop.sequence_length}{parts}{ramp})",
            f"FLOPs of a token {flops:>16.4e}  ({CONVENTION})",
            f"FLOPs of a step  {flops * tokens:>16.4e}",
            f"FLOPs of the run {flops * whole:>16.4e}  ({whole:,} tokens in {loop.steps:,} steps)",
        ]
    )


def _directory(run: Run) -> str:
    step, last = resumed_step(run), run.loop.steps
    if step is None:
        return f"{run.directory}: begins from scratch" + (
            f" with the weights of {run.start_from}" if run.start_from else ""
        )
    if step >= last:
        return f"{run.directory}: finished, step {step} of {last} is done"
    return f"{run.directory}: would continue from step {step} of {last}"
