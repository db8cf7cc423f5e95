"""Check of a run's sizes against the memory of its devices, before anything is compiled.

What is reckoned is less than what a run needs: parameters and their gradients, and one saved input
of each layer. A run that exceeds the memory by that alone cannot work. The planner says what a run
that may work needs.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.memory import host_memory
from t5x_llm.core.units import size
from t5x_llm.parallel import param_shardings, ways
from t5x_llm.run.config import Run

TRAINING = (
    "Lower Loop.batch_size or Loop.sequence_length, raise Loop.microbatches, set Run.remat = "
    "'full', or give MeshConfig.fsdp more devices; train.py --dry_run says what a step needs."
)
_SMALLER = "Train a smaller model, or give MeshConfig.fsdp or tensor more devices."
_STATE = "parameters and gradients"
# A need beyond this share of the memory is refused; one beyond all of it is warned of.
_REFUSED = 2.0


def device_memory(device: jax.Device) -> int:
    """Returns the bytes of a device's memory; on CPU its share of the host's."""
    stats = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return int(limit)
    return host_memory() // len(jax.local_devices())


def check_memory(run: Run, mesh: Mesh | AbstractMesh) -> None:
    """Compares the least that a run needs with the memory of its devices.

    Raises:
      ConfigError: it needs more than twice the memory, naming the field that asks for most.
    """
    if isinstance(mesh, AbstractMesh):
        return
    memory = device_memory(mesh.devices.flat[0])
    for field, value, needed, what in _needs(run, mesh):
        if needed <= memory:
            continue
        text = f"{what} alone take {size(needed)} of a device's {size(memory)}"
        remedy = _SMALLER if what == _STATE else TRAINING
        if needed > _REFUSED * memory:
            raise ConfigError(field, value, f"a size for which there is memory: {text}", remedy)
        if jax.process_index() == 0:
            print(f"warning: {field} = {value!r}: {text}. {remedy}", file=sys.stderr)


def _needs(run: Run, mesh: Mesh) -> list[tuple[str, Any, int, str]]:
    """Returns (field, value, bytes a device, what they hold) of each part of a run."""
    model, rules, loop = run.build_model(), run.mesh.rules(), run.loop
    shapes = model.abstract_params()
    shardings = param_shardings(model.logical_axes(), shapes, mesh, rules)
    parameters = sum(
        math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )
    family = type(run.model).__name__
    largest = max(
        (n for n in ("vocab_size", "d_model", "d_ff", "n_layers") if getattr(run.model, n, None)),
        key=lambda n: getattr(run.model, n),
        default="d_model",
    )
    pieces = ways(mesh, rules, "batch")
    lengths = ways(mesh, rules, "length")
    width = getattr(model.config, "d_model", getattr(run.model, "d_model", 1))
    bytes_a_number = np.dtype(run.precision.compute).itemsize
    groups = getattr(model.config, "groups", ())
    layers = (sum(g.repeat * len(g.blocks) for g in groups) or 1) // mesh.shape.get("stage", 1)
    a_row = -(-loop.sequence_length // lengths) * width * bytes_a_number
    rows = -(-max(loop.sizes) // (pieces * loop.microbatches))
    evaluated = -(-run.evaluation.batch_size // pieces)
    alone = "Loop.sequence_length", loop.sequence_length
    a_batch = max(loop.sizes) * loop.sequence_length * 4 * 4 // jax.process_count()
    return [
        (
            f"{family}.{largest}", getattr(run.model, largest), 2 * parameters,
            _STATE,
        ),
        (*alone, a_row * layers, "the inputs of every layer for one row"),
        ("Loop.batch_size", loop.batch_size, rows * a_row * layers, "inputs of every layer"),
        (
            "Evaluation.batch_size", run.evaluation.batch_size, evaluated * a_row,
            "the inputs of a layer",
        ),
        ("Loop.prefetch", loop.prefetch, loop.prefetch * a_batch, "batches prepared ahead"),
    ]  # fmt: skip
