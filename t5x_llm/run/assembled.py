"""One description of a run, made once: what training executes is what planning compiles."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, Mesh
from jax.stages import Wrapped

from t5x_llm.data.row_objective import planned_objective
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules, make_mesh
from t5x_llm.run.compiler import options_for
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData, planned_source_names
from t5x_llm.train.adapted import AdapterTask
from t5x_llm.train.flops import flops_per_token
from t5x_llm.train.scoring import ScoringTask
from t5x_llm.train.state import Placement, TrainState, abstract_state, place, with_shardings
from t5x_llm.train.step import (
    Control,
    StepOptions,
    control_sharding,
    make_train_step,
    quiet_control,
)
from t5x_llm.train.task import LmTask, TrainTask


@dataclasses.dataclass(frozen=True)
class Assembled:
    """The parts of a run, fitted together.

    Attributes:
      run: the configuration.
      model: without parameters.
      task: what is learned.
      tx: the optimizer of the task's trained part.
      placement: mesh, rules, and where state and batches lie.
    """

    run: Run
    model: Model
    task: TrainTask
    tx: optax.GradientTransformation
    placement: Placement

    @property
    def mesh(self) -> Mesh | AbstractMesh:
        """Returns the devices, or their number along each axis."""
        return self.placement.mesh

    @property
    def rules(self) -> Rules:
        """Returns the rules of how logical axes lie on the mesh."""
        return self.placement.rules

    @functools.cached_property
    def state(self) -> TrainState:
        """State of training as ``jax.ShapeDtypeStruct`` with shardings."""
        return with_shardings(abstract_state(self.task, self.tx), self.placement.state)

    def batch_of(self, rows: int) -> Any:
        """Returns a batch of ``rows`` rows as ``jax.ShapeDtypeStruct`` with shardings."""
        return with_shardings(self.task.abstract_batch(rows), self.placement.batch)

    @functools.cached_property
    def batch(self) -> Any:
        """Batch of ``Loop.batch_size`` rows, at which a ramp ends; see ``batch_of``."""
        return self.batch_of(self.run.loop.batch_size)

    @functools.cached_property
    def control(self) -> Control:
        """``Control`` of the step as ``jax.ShapeDtypeStruct`` with shardings."""
        mesh = self.placement.devices
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            quiet_control(mesh),
            control_sharding(mesh),
        )

    @property
    def arguments(self) -> tuple[TrainState, Any, Control]:
        """Returns the arguments of ``step``, as ``jax.ShapeDtypeStruct`` with shardings."""
        return self.state, self.batch, self.control

    @functools.cached_property
    def step(self) -> Wrapped:
        """Guarded step that training runs: (state, batch, control) -> (state, metrics)."""
        return self.make_step(guarded=True)

    def make_step(self, guarded: bool) -> Wrapped:
        """Makes the jitted step, with or without a ``Control``; see ``make_train_step``."""
        run = self.run
        options = StepOptions(
            schedule=run.optimizer.schedule.build(run.loop.steps),
            microbatches=run.loop.microbatches,
            guarded=guarded,
            compiler_options=options_for(self.placement.devices, run.compiler_options),
        )
        return make_train_step(self.task, self.tx, self.placement, options)

    @property
    def flops_per_token(self) -> float:
        """Returns the training FLOPs of one token; see ``token_flops``."""
        return token_flops(self.run, self.model)


def assemble(
    run: Run,
    mesh: Mesh | AbstractMesh | None = None,
    data: OpenData | None = None,
    task: TrainTask | None = None,
) -> Assembled:
    """Fits the parts of a run together; computes and reads nothing.

    Args:
      run: the configuration.
      mesh: devices that are here, are described, or are sizes alone; the run's on this machine's
        devices if None.
      data: what training reads; without it the batch is the one that the prepared data will give.
      task: what is learned instead of the prediction of the run's tokens.

    Raises:
      ConfigError: the run's mesh does not fit the devices; a path of ``Optimizer.trained`` is no
        parameter's; a row is too short for the objective.
    """
    model, rules = run.build_model(), run.mesh.rules()
    if task is None:
        task = scoring_task(run, model, data) if run.task else lm_task(run, model, data)
        if run.adapter is not None:
            task = AdapterTask(task, model, run.storage)
    tx = run.optimizer.build(run.loop.steps, task.trained_part(task.logical_axes()))
    if run.adapter is not None:
        tx = run.adapter.optimizer(tx, run.loop.steps)
    mesh = make_mesh(run.mesh) if mesh is None else mesh
    return Assembled(run, model, task, tx, place(task, tx, mesh, rules))


def lm_task(run: Run, model: Model, data: OpenData | None = None) -> LmTask:
    """Makes the task that predicts a run's tokens, by its objective; see ``assemble``."""
    if data is not None:
        sources, objective = tuple(data.stream.sources), data.stream.objective
    else:
        sources = planned_source_names(run.data)
        objective = planned_objective(run.data.denoising, run.loop.sequence_length)
    return LmTask(
        model=model,
        length=run.loop.sequence_length,
        sources=sources,
        objective=objective,
        z_loss=run.z_loss,
        label_smoothing=run.label_smoothing,
        embed_gradient=run.embed_gradient,
        seed=run.loop.seed,
        trained=run.optimizer.trained_mask(model.abstract_params()),
    )


def scoring_task(run: Run, model: Model, data: OpenData | None = None) -> ScoringTask:
    """Makes the task that scores documents, as ``Run.task`` says; see ``assemble``."""
    assert run.task is not None
    sources = tuple(data.stream.sources) if data is not None else planned_source_names(run.data)
    task = ScoringTask(model, run.task, run.loop.sequence_length, sources, run.label_smoothing)
    mask = run.optimizer.trained_mask(task.abstract_params())
    return dataclasses.replace(task, trained=mask)


def token_flops(run: Run, model: Model) -> float:
    """Computes the training FLOPs of one token, by the convention of ``train/flops.py``.

    What is frozen beside adapters has no gradient: 4 N instead of 6 N.
    """
    config, counts = model.config, model.bare.parameter_count()
    tables = counts.get("position_embed", 0) + (0 if config.tied else counts["embed"])
    used = counts["total"] - tables - model.bare.idle_parameters()
    if run.adapter is not None:
        used = 2 * used // 3 + model.parameter_count()["total"] - counts["total"]
    state = getattr(config, "state_size", 0)
    return flops_per_token(used, config.attention_width, run.loop.sequence_length, state)
