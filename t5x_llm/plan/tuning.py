"""Memory of fine-tuning a model in the usual ways, and of serving it, side by side.

All of it is arithmetic: parameters, gradients and optimizer state are exact, activations and
working memory are those of ``plan/estimate.py``. A way is the run with another ``precision``,
``adapter`` and ``base_storage``; the batch, the mesh and the remat choice are the run's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from t5x_llm.core.slices import Slice
from t5x_llm.core.units import size
from t5x_llm.models.base_storage import abstract_stored
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.parallel import abstract_mesh, ways
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.estimate import estimate
from t5x_llm.plan.gpus import USABLE, Cluster
from t5x_llm.run.assembled import assemble
from t5x_llm.run.checks import check_fits
from t5x_llm.run.config import Run

# As in QLoRA (arXiv 2305.14314, section 5), where the run has no adapter of its own.
_ADAPTER = LoRA(rank=64, alpha=16.0)


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one device that one way of tuning, or serving, needs.

    Attributes:
      name: of the way.
      parameters: of the model as it is stored, and of adapters.
      gradients: of what is trained.
      optimizer: its state.
      activations: what the backward pass keeps; the cache of keys and values where it is served.
      working: logits and kernels as they are used.
      devices: how many hold it.
    """

    name: str
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    devices: int

    @property
    def state(self) -> int:
        """Returns what does not grow with the batch."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Returns the bytes of a device."""
        return self.state + self.activations + self.working

    def least(self, available: float) -> int | None:
        """Returns how many devices hold it at least, its state in pieces over all of them.

        Args:
          available: bytes of a device.

        Returns:
          The number, each device with as many rows as now; None if these alone are too much.
        """
        free = available - self.activations - self.working
        return math.ceil(self.state * self.devices / free) if free > 0 else None


def ways_to_tune(run: Run) -> dict[str, Run]:
    """Returns the run in the usual ways of tuning, by name."""
    half = dataclasses.replace(run.precision, params="bfloat16")
    adapter = run.adapter or _ADAPTER
    rank = f" r={adapter.rank}" if isinstance(adapter, LoRA) else ""
    whole = dataclasses.replace(run, adapter=None)

    def beside(storage: str) -> Run:
        return dataclasses.replace(
            run,
            adapter=adapter,
            base_storage=storage,
            start_from=run.start_from or run.directory,
            optimizer=dataclasses.replace(run.optimizer, trained=()),
        )

    return {
        "full, float32 masters": whole,
        "full, bfloat16": dataclasses.replace(whole, precision=half),
        f"{adapter.method}{rank}, bfloat16": beside("bfloat16"),
        f"Q{adapter.method}{rank}, int8": beside("int8"),
        f"Q{adapter.method}{rank}, nf4": beside("nf4"),
    }


def tuning_memory(run: Run, devices: int) -> list[Need]:
    """Computes what each way of tuning and serving needs on a device of the run's mesh.

    Args:
      run: the run.
      devices: how many there are.

    Raises:
      ConfigError: the run does not fit the mesh.
    """
    mesh = abstract_mesh(run.mesh, devices)
    check_fits(run, mesh)
    found = []
    for name, way in ways_to_tune(run).items():
        each = estimate(assemble(way, mesh))
        beside = each.casts + each.working
        found.append(
            Need(
                *(name, each.params, each.gradients, each.optimizer, each.activations),
                *(beside, mesh.size),
            )
        )
    return [*found, *_served(run, mesh)]


def _served(run: Run, mesh: Any) -> Iterator[Need]:
    """Yields what it takes to answer as many rows as a device trains, of the same length."""
    model, rules = run.build_model().bare, run.mesh.rules()
    rows = max(run.loop.batch_size // run.loop.microbatches // ways(mesh, rules, "batch"), 1)
    cache = jax.eval_shape(lambda: model.init_cache(rows, run.loop.sequence_length))
    kept = -(-_bytes(cache) // ways(mesh, rules, "heads"))
    logits = 4 * rows * run.model.vocab_size
    for storage in ("bfloat16", "int8", "nf4"):
        weights = -(-_bytes(abstract_stored(model, storage)) // mesh.size)
        yield Need(f"serve, {storage}", weights, 0, 0, kept, logits, mesh.size)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available(machine: Slice | Cluster) -> float:
    """Returns the bytes of one device that a program may use."""
    if isinstance(machine, Cluster):
        return machine.facts.memory * USABLE
    return CHIPS[machine.generation].hbm


def table(run: Run, needs: list[Need], machine: Slice | Cluster) -> list[str]:
    """Returns the lines that ``t5x-llm plan --tuning`` prints."""
    room, columns = available(machine), ("weights", "gradients", "optimizer", "activations")
    heads = (*columns, "working", "a device", "in all")
    width = max(len(need.name) for need in needs)
    rows, length = run.loop.batch_size // run.loop.microbatches, run.loop.sequence_length
    lines = [
        f"{type(run.model).__name__} on {machine.accelerator_type}: {needs[0].devices} devices of "
        f"{size(room)}, {rows} rows of {length:,} tokens at once, remat {run.remat}",
        "",
        " " * width + "".join(f"{head:>13}" for head in heads) + "  fits  devices at least",
    ]
    for need in needs:
        parts = (need.parameters, need.gradients, need.optimizer, need.activations, need.working)
        figures = (*parts, need.total, need.total * need.devices)
        least = need.least(room)
        lines.append(
            f"{need.name:<{width}}"
            + "".join(f"{size(figure):>13}" for figure in figures)
            + f"{'yes' if need.total <= room else 'no':>6}  {least if least else 'none':>6}"
        )
    lines += [
        "",
        "Bytes of a device by arithmetic; activations are what the backward pass keeps, and of a "
        "server its cache.",
        "'devices at least': with the state in pieces over all, and as many rows a device.",
    ]
    return lines


def figures(needs: list[Need], machine: Slice | Cluster) -> list[dict[str, Any]]:
    """Returns the table as data that JSON takes: bytes of a device."""
    room = available(machine)
    return [
        dataclasses.asdict(need)
        | {"total": need.total, "fits": need.total <= room, "least_devices": need.least(room)}
        for need in needs
    ]
