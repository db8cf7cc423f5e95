"""The step of a run on devices that are described: compiled, or reckoned from its shapes alone."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from t5x_llm.cli.assemble import make_step, token_flops
from t5x_llm.cli.compiler import options_named
from t5x_llm.cli.memory import cached_model, estimate
from t5x_llm.cli.run import Run, check_fits
from t5x_llm.core.slices import Slice
from t5x_llm.data.batch import Batch
from t5x_llm.data.row_objective import ENCODER
from t5x_llm.models.model import Model
from t5x_llm.parallel import batch_sharding, make_mesh, ways
from t5x_llm.plan.analytic import Task, gathered, reckoned_time, rule_collectives
from t5x_llm.plan.chips import CHIPS, described_devices
from t5x_llm.plan.compile import Plan, plan_step, since
from t5x_llm.plan.gpus import USABLE, Cluster
from t5x_llm.plan.host import Here
from t5x_llm.plan.memory import Memory
from t5x_llm.plan.report import Work
from t5x_llm.train.state import abstract_state, state_shardings, with_shardings
from t5x_llm.train.step import control_sharding, quiet_control


def compile_run(
    run: Run,
    slice_: Slice | Here,
    slices: int = 1,
    tokens: float | None = None,
    price: float | None = None,
) -> tuple[Plan, Work]:
    """Compiles the step that ``train.py`` would run on a slice.

    Args:
      run: whose mesh has as many devices as the slices.
      slice_: one slice, or this machine.
      slices: how many.
      tokens: see ``Work``.
      price: likewise.

    Raises:
      ConfigError: the run does not fit the mesh, libtpu is missing, or the compiler does not take
        ``Run.compiler_options``.
    """
    devices = jax.devices() if isinstance(slice_, Here) else described_devices(slice_, slices)
    mesh = make_mesh(run.mesh, devices)
    check_fits(run, mesh)
    model, _, step, arguments = step_of(run, mesh)
    work = _work(run, model, slice_, slices, mesh, tokens, price)
    with options_named(run.compiler_options):
        return plan_step(step, arguments, slice_, work.mesh), work


def step_of(run: Run, mesh: Any) -> tuple[Model, Any, Any, tuple[Any, ...]]:
    """(model, optimizer, jitted step, its abstract arguments), as ``train.py`` has them."""
    model, rules = run.build_model(), run.mesh.rules()
    sources = len(run.data.mixture.sources) if run.data.mixture else 1
    tx, step = make_step(run, model, mesh, rules, sources)
    rows, length = run.loop.batch_size, run.loop.sequence_length

    def array(dtype: Any, *shape: int) -> Any:
        sharding = batch_sharding(mesh, rules, len(shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    ids = array(jnp.int32, rows, length)
    extra = dict.fromkeys(ENCODER, ids) if model.config.kind == "encoder_decoder" else {}
    mask, source = array(jnp.float32, rows, length), array(jnp.int32, rows)
    batch = Batch(ids, ids, ids, ids, mask, source, extra)
    state = with_shardings(abstract_state(model, tx), state_shardings(model, tx, mesh, rules))
    control = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        quiet_control(mesh),
        control_sharding(mesh),
    )
    return model, tx, step, (state, batch, control)


def settings(run: Run) -> str:
    """What a search chooses besides the mesh, and what else changes the arithmetic."""
    parts = run.loop.microbatches
    said = [f"{parts} microbatch{'es'[: 2 * (parts > 1)]}", f"remat {run.remat}"]
    if run.precision.quantized:
        said.append(f"{run.precision.quantized} linear layers")
    if count := len(run.compiler_options):
        said.append(f"{count} compiler option{'s'[: count > 1]}")
    return ", ".join(said)


def _work(
    run: Run,
    model: Model,
    machine: Slice | Cluster | Here,
    slices: int,
    mesh: Any,
    tokens: float | None,
    price: float | None,
) -> Work:
    return Work(
        name=type(run.model).__name__,
        slice=machine,
        slices=slices,
        mesh=dict(mesh.shape),
        rows=run.loop.batch_size,
        length=run.loop.sequence_length,
        parameters=model.parameter_count()["total"],
        flops_per_token=token_flops(run, model),
        tokens=tokens,
        price=price,
        settings=settings(run),
    )


def abstract_mesh(run: Run, devices: int) -> AbstractMesh:
    """The run's mesh over so many devices that are nowhere.

    Raises:
      ConfigError: its axes are not so many.
    """
    sizes = run.mesh.shape(devices)
    kind = (AxisType.Auto,) * len(sizes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kind)


def reckon_run(
    run: Run,
    machine: Slice | Cluster,
    slices: int = 1,
    tokens: float | None = None,
    price: float | None = None,
) -> tuple[Plan, Work]:
    """The plan by arithmetic: exact state, and by ``plan/analytic.py`` the rest.

    Args:
      run: whose mesh has as many devices as there are.
      machine: a slice or GPUs.
      slices: of TPU, how many.
      tokens: see ``Work``.
      price: likewise.

    Raises:
      ConfigError: the run does not fit the mesh.
    """
    begun = time.monotonic(), time.process_time()
    if isinstance(machine, Cluster):
        devices, available = machine.chips, machine.facts.memory * USABLE
    else:
        chip = CHIPS[machine.generation]
        devices, available = machine.chips * slices * machine.facts.devices, chip.hbm
    mesh, rules = abstract_mesh(run, devices), run.mesh.rules()
    check_fits(run, mesh)
    model, loop = cached_model(run.decoder(), run.precision, run.remat), run.loop
    tx = run.optimizer.build(loop.steps, model.logical_axes())
    told = estimate(run, model, tx, mesh, rules)
    rows, length, parts = loop.batch_size, loop.sequence_length, loop.microbatches
    work = _work(run, model, machine, slices, mesh, tokens, price)
    task = Task(model, mesh, rules, rows, length, parts, work.flops_per_token)
    found = rule_collectives(task)
    # Four int32 and a float32 for each token, and those of the next batch.
    batch = 2 * 5 * 4 * rows * length // ways(mesh, rules, "batch") // ways(mesh, rules, "length")
    memory = Memory(
        parameters=told.params,
        optimizer=told.optimizer,
        batch=batch,
        activations=told.activations + told.logits,
        temporaries=told.gradients + told.casts + gathered(task),
        code=0,
        available=available,
    )
    seconds = reckoned_time(task, found, machine, told.activations)
    return Plan(memory, None, (), tuple(found), seconds, *since(begun), analytic=True), work
