"""The jitted train step of a run."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules
from t5x_llm.run.compiler import options_for
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData
from t5x_llm.train.ahead import Ahead
from t5x_llm.train.feed import abstract_batch
from t5x_llm.train.flops import flops_per_token
from t5x_llm.train.state import (
    abstract_state,
    state_shardings,
    with_shardings,
)
from t5x_llm.train.step import make_train_step, quiet_control


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
