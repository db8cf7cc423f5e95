"""Plans the step of a run on described devices: compiled, or reckoned from its shapes alone."""

from __future__ import annotations

import time

import jax

from t5x_llm.core.slices import Slice
from t5x_llm.parallel import abstract_mesh, make_mesh
from t5x_llm.plan.analytic import StepWork, reckoned_time, rule_collectives
from t5x_llm.plan.chips import CHIPS, described_devices
from t5x_llm.plan.compile import Plan, held, plan_step, since
from t5x_llm.plan.estimate import estimate
from t5x_llm.plan.gpus import USABLE, Cluster
from t5x_llm.plan.host import Here
from t5x_llm.plan.memory import Memory
from t5x_llm.plan.report import Work
from t5x_llm.run.assembled import Assembled, assemble
from t5x_llm.run.checks import check_fits
from t5x_llm.run.compiler import options_named
from t5x_llm.run.config import Run


def compile_run(
    run: Run,
    slice_: Slice | Here,
    slices: int = 1,
    tokens: float | None = None,
    price: float | None = None,
) -> tuple[Plan, Work]:
    """Compiles the step that ``train.py`` would run on a slice.

    Args:
      run: a run whose mesh has as many devices as the slices.
      slice_: one slice, or this machine.
      slices: number of slices.
      tokens: see ``Work``.
      price: see ``Work``.

    Raises:
      ConfigError: the run does not fit the mesh, libtpu is missing, or the compiler does not take
        ``Run.compiler_options``.
    """
    devices = jax.devices() if isinstance(slice_, Here) else described_devices(slice_, slices)
    mesh = make_mesh(run.mesh, devices)
    check_fits(run, mesh)
    assembled = assemble(run, mesh)
    work = _work(assembled, slice_, slices, tokens, price)
    with options_named(run.compiler_options):
        return plan_step(assembled.step, assembled.arguments, slice_, work.mesh), work


def settings(run: Run) -> str:
    """Describes what a search chooses besides the mesh, and what else changes the arithmetic."""
    parts = run.loop.microbatches
    said = [f"{parts} microbatch{'es'[: 2 * (parts > 1)]}", f"remat {run.remat}"]
    if run.precision.quantized:
        said.append(f"{run.precision.quantized} linear layers")
    if count := len(run.compiler_options):
        said.append(f"{count} compiler option{'s'[: count > 1]}")
    return ", ".join(said)


def _work(
    assembled: Assembled,
    machine: Slice | Cluster | Here,
    slices: int,
    tokens: float | None,
    price: float | None,
) -> Work:
    run = assembled.run
    return Work(
        name=type(run.model).__name__,
        slice=machine,
        slices=slices,
        mesh=dict(assembled.mesh.shape),
        rows=run.loop.batch_size,
        length=run.loop.sequence_length,
        parameters=assembled.model.parameter_count()["total"],
        flops_per_token=assembled.flops_per_token,
        tokens=tokens,
        price=price,
        settings=settings(run),
    )


def reckon_run(
    run: Run,
    machine: Slice | Cluster,
    slices: int = 1,
    tokens: float | None = None,
    price: float | None = None,
) -> tuple[Plan, Work]:
    """Plans by arithmetic: state is exact, the rest is estimated by ``plan/analytic.py``.

    Args:
      run: a run whose mesh has as many devices as there are.
      machine: a slice or GPUs.
      slices: number of TPU slices.
      tokens: see ``Work``.
      price: see ``Work``.

    Raises:
      ConfigError: the run does not fit the mesh.
    """
    started = time.monotonic(), time.process_time()
    if isinstance(machine, Cluster):
        devices, available = machine.chips, machine.facts.memory * USABLE
    else:
        chip = CHIPS[machine.generation]
        devices, available = machine.chips * slices * machine.facts.devices, chip.hbm
    mesh = abstract_mesh(run.mesh, devices)
    check_fits(run, mesh)
    assembled, loop = assemble(run, mesh), run.loop
    estimated = estimate(assembled, lanes=1 if isinstance(machine, Cluster) else None)
    work = _work(assembled, machine, slices, tokens, price)
    model, parts = assembled.model, loop.microbatches
    sizes = loop.batch_size, loop.sequence_length
    step_work = StepWork(model, mesh, assembled.rules, *sizes, parts, work.flops_per_token, slices)
    found = rule_collectives(step_work)
    memory = Memory(
        parameters=estimated.params,
        optimizer=estimated.optimizer,
        batch=2 * held(assembled.batch),  # and that of the next step
        activations=estimated.activations,
        temporaries=estimated.gradients + estimated.casts + estimated.working,
        code=0,
        available=available,
    )
    seconds = reckoned_time(step_work, found, machine, estimated.activations)
    return Plan(memory, None, (), tuple(found), seconds, *since(started), analytic=True), work
