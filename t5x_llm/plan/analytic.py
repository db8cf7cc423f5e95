"""A step reckoned from shapes, rule tables and rates: for GPUs, and to rank what to compile.

Collectives are those that the tables ask for: parameters in pieces are gathered for use, gradients
reduced to where they lie, new parameters gathered from where they were computed; activations are
reduced over ``tensor``, passed on over ``context`` and ``stage``, exchanged over ``expert``. Time
is products at a share of the peak (a GPU's is in its table, a TPU's ``MATMUL``), attention at
``ATTENTION`` of it, memory traffic at ``TRAFFIC`` of its bandwidth, links at ``LINKS`` of theirs.
Nothing is compiled, so nothing is known of fusions, layouts and schedules: tens of per cent either
way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from t5x_llm.core.slices import Slice
from t5x_llm.models.model import Model
from t5x_llm.models.pipelined import plan as plan_pipeline
from t5x_llm.parallel import Rules, ways
from t5x_llm.parallel.mesh import dotted
from t5x_llm.parallel.rules import mesh_axes, resolve
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.collectives import Collective
from t5x_llm.plan.gpus import Cluster
from t5x_llm.plan.network import AXIS
from t5x_llm.plan.time import StepTime

MATMUL, ATTENTION, TRAFFIC, LINKS = 0.75, 0.4, 0.8, 0.8
# Projections that each remat choice computes again; the last product of a layer never is, as its
# result is part of the next layer's input, which is saved.
_ALL = ("query", "key", "value", "out", "gate", "up")
_AGAIN = {
    **{"none": (), "dots": (), "save_projections": (), "offload_projections": ()},
    **{"save_qkv_context": _ALL[3:], "save_qkv": _ALL[3:]},
    **{"save_attention": _ALL[4:], "save_attention_up": ("gate",)},
}
# Bytes of a parameter that an update of Adam reads and writes: parameter and two moments both ways,
# the gradient once.
_UPDATE = 7 * 4


@dataclasses.dataclass(frozen=True)
class StepWork:
    """Work of one step, as far as arithmetic needs to know it.

    Attributes:
      model: with its remat choice.
      mesh: may be abstract.
      rules: the tables.
      rows: B of a step.
      length: T.
      microbatches: parts of the batch.
      flops_per_token: by the convention of ``train/flops.py``.
      slices: of TPUs, that the data-centre network joins.
    """

    model: Model
    mesh: Any
    rules: Rules
    rows: int
    length: int
    microbatches: int
    flops_per_token: float
    slices: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch on a device that has all heads and channels."""
        rows = self.rows // self.microbatches // ways(self.mesh, self.rules, "batch")
        return rows * self.length // ways(self.mesh, self.rules, "length")

    @property
    def itemsize(self) -> int:
        """Bytes of the compute dtype."""
        return jax.numpy.dtype(self.model.policy.compute_dtype).itemsize

    def leaves(self) -> Iterator[tuple[str, Any, tuple[str | None, ...]]]:
        """(dotted path, abstract array, logical axes) of every parameter."""
        shapes = self.model.abstract_params()
        flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
        axes = treedef.flatten_up_to(self.model.logical_axes())
        for (path, x), names in zip(flat, axes, strict=True):
            yield dotted(path), x, names

    def tables(self) -> Iterator[tuple[int, bool]]:
        """(elements on a device as it is used, whether it is stored so) of what is in no layer."""
        for _, x, names in self.leaves():
            if "layers" not in names:
                stored = _ways(self, resolve(self.rules.params, names, self.mesh, x.shape))
                used = math.prod(kept_ways(self, names, x.shape))
                if "vocab" in names:  # rows that the mesh does not divide are padded for use
                    used = max(used, ways(self.mesh, self.rules, "vocab"))
                yield -(-math.prod(x.shape) // used), math.prod(stored) == used


def rule_collectives(work: StepWork) -> list[Collective]:
    """The collectives of a step that the rule tables ask for, the costliest first."""
    asked = [*_of_parameters(work), *_of_activations(work)]
    found = [part for one in asked for part in _between_slices(work, one)]
    return sorted((c for c in found if c.group > 1 and c.times), key=lambda c: -c.sent)


def _collective(
    work: StepWork,
    kind: str,
    axes: tuple[str, ...],
    size: float,
    times: int,
    hidden: bool,
    why: str,
) -> Collective:
    axes = tuple(a for a in work.mesh.shape if a in axes and work.mesh.shape[a] > 1)
    group = math.prod(work.mesh.shape[a] for a in axes)
    return Collective(kind, axes, group, int(size), times, hidden, "", why)


def _between_slices(work: StepWork, one: Collective) -> Iterator[Collective]:
    """Yields a collective as it is, or its parts inside the slices and between them."""
    if work.slices == 1 or AXIS not in one.axes:
        yield one
        return
    inside = one.group // work.slices
    axes = tuple(a for a in one.axes if a != AXIS or work.mesh.shape[AXIS] > work.slices)
    piece = one.bytes // inside if one.kind in ("all-reduce", *_CUTTING) else one.bytes
    for kind in {"all-reduce": _CUTTING}.get(one.kind, (one.kind,)):
        yield dataclasses.replace(one, kind=kind, axes=axes, group=inside)
    yield dataclasses.replace(one, axes=(AXIS,), group=work.slices, bytes=piece, network=True)


def _of_parameters(work: StepWork) -> Iterator[Collective]:
    mesh, rules = work.mesh, work.rules
    summed = {a for n in ("batch", "length") for a in mesh_axes(rules.compute[n])}
    for path, x, names in work.leaves():
        stored, added, kept = (
            resolve(table, names, mesh, x.shape)
            for table in (rules.params, rules.grads, rules.optimizer)
        )
        # Axes along which the computation itself has a parameter in pieces.
        stays: set[str] = {"stage"} if "layers" in names else set()
        for name in names:
            stays |= set(mesh_axes(rules.compute.get(name))) if name else set()

        def cut(spec: Any, but: set[str] = stays) -> tuple[str, ...]:
            return tuple(a for entry in spec for a in mesh_axes(entry) if a not in but)

        layers = x.shape[0] if "layers" in names else 1
        own = {a for entry in stored for a in mesh_axes(entry)} & stays
        used = math.prod(x.shape) / math.prod(mesh.shape[a] for a in own)
        layers = max(layers // mesh.shape["stage"], 1) if "layers" in names else 1
        part, size = work.microbatches * layers, used / layers * work.itemsize
        yield _collective(work, "all-gather", cut(stored), size, 2 * part, True, path)
        yield _collective(work, "reduce-scatter", cut(added), size, part, True, path)
        rest = tuple(summed - set(cut(added)) - own)
        pieces = math.prod(mesh.shape[a] for a in cut(added))
        yield _collective(work, "all-reduce", rest, size / pieces, part, True, path)
        fresh = tuple(set(cut(kept)) - set(cut(stored)))
        here = used / math.prod(mesh.shape[a] for a in cut(stored))
        yield _collective(work, "all-gather", fresh, here * x.dtype.itemsize, 1, False, path)


def _of_activations(work: StepWork) -> Iterator[Collective]:
    mesh, rules, config = work.mesh, work.rules, work.model.config
    parts, again = work.microbatches, work.model.remat not in _SAVING
    stream = work.tokens * config.d_model * work.itemsize
    tensor = mesh_axes(rules.compute["heads"])
    for group in config.groups:
        layers = parts * max(group.repeat // mesh.shape["stage"], 1)
        for block in group.blocks:
            for layer in block.layers:
                times = layers * (2 + (again and layer.part != "mlp"))
                why = f"{layer.part}'s sums"
                yield _collective(work, "all-reduce", tensor, stream, times, False, why)
                yield from _moves(work, layer, layers * (3 + again))
    yield _collective(work, "all-reduce", tensor, stream, 2 * parts, False, "vocabulary")
    if (staged := plan_pipeline(config, mesh, rules)) is not None:
        size = stream / staged[0].microbatches
        times = 2 * parts * staged[0].ticks
        yield _collective(work, "collective-permute", ("stage",), size, times, True, "stages")


def _moves(work: StepWork, layer: Any, times: int) -> Iterator[Collective]:
    """Yields what a layer sends over ``context`` and ``expert`` in ``times`` passes."""
    ring = work.mesh.shape["context"]
    if layer.part == "attention" and ring > 1 and hasattr(layer, "n_kv_heads"):
        heads = ways(work.mesh, work.rules, "kv_heads")
        size = 2 * work.tokens * layer.n_kv_heads // heads * layer.head_dim * work.itemsize
        ulysses = work.rules.context_attention == "ulysses"
        kind, often = ("all-to-all", 2) if ulysses else ("collective-permute", ring - 1)
        yield _collective(work, kind, ("context",), size, times * often, True, "keys and values")
    if (router := getattr(layer, "router", None)) is not None:
        size = work.tokens * router.top_k * work.model.config.d_model * work.itemsize
        yield _collective(work, "all-to-all", ("expert",), size, 2 * times, False, "tokens")


_CUTTING = ("reduce-scatter", "all-gather")
_SAVING = tuple(name for name in _AGAIN if not name.startswith("save_qkv"))


def recomputed(work: StepWork) -> float:
    """Parameters whose products the backward pass computes again, a token's own experts alone."""
    names = _AGAIN.get(work.model.remat)
    total = 0.0
    for path, x, axes in work.leaves():
        if "layers" not in axes or "norm" in axes:
            continue
        parts = path.split(".")
        words = set(parts)
        if "down" in words or (names is not None and not words & set(names)):
            continue
        share = 1.0
        if "experts" in axes and "router" not in words:
            i, j = (int(p.rsplit("_", 1)[1]) for p in parts[:2])
            forward = work.model.config.groups[i].blocks[j].feed_forward
            share = getattr(forward, "active_fraction", 1.0)
        total += share * math.prod(x.shape)
    return total


def reckoned_time(
    work: StepWork, found: list[Collective], machine: Slice | Cluster, activations: int
) -> StepTime:
    """Seconds of a step by these rates.

    Args:
      work: what is done.
      found: its ``rule_collectives``.
      machine: where.
      activations: bytes that it keeps for the backward pass of a microbatch.
    """
    peak, bandwidth, share = _rates(machine)
    tokens, devices = work.rows * work.length, work.mesh.size
    width = getattr(work.model.config, "attention_width", 0)
    attention = 6.0 * work.length * width
    products = work.flops_per_token - attention + 2 * recomputed(work)
    # A backward pass of attention takes five products for the two of the forward pass.
    again = 2 if work.model.remat in ("full", "save_qkv", "dots", "offload_stream") else 0
    kernels = attention * (7 + again) / 6 * tokens / devices / (peak * ATTENTION)
    weights = sum(
        math.prod(x.shape) / math.prod(kept_ways(work, names, x.shape))
        for _, x, names in work.leaves()
    )
    updated = sum(
        math.prod(x.shape)
        / math.prod(_ways(work, resolve(work.rules.optimizer, names, work.mesh, x.shape)))
        for _, x, names in work.leaves()
    )
    # Weights are read for forward, backward and their gradients; what is kept is written and read,
    # and its gradient likewise.
    traffic = 3 * work.microbatches * weights * work.itemsize + updated * _UPDATE
    traffic += 4 * work.microbatches * activations
    compute = products * tokens / devices / (peak * share) + traffic / (bandwidth * TRAFFIC)
    if (staged := plan_pipeline(work.model.config, work.mesh, work.rules)) is not None:
        compute, kernels = (t / (1 - staged[0].bubble) for t in (compute, kernels))
    seconds = [one.sent / (_reach(one, work, machine) * LINKS) for one in found]

    def of(hidden: bool, network: bool) -> float:
        pairs = zip(seconds, found, strict=True)
        return sum(s for s, c in pairs if (c.hidden > 0) is hidden and c.network >= network)

    waited, beside = of(False, True), of(True, True)
    return StepTime(
        *(compute, kernels, of(False, False), of(True, False), ()),
        network=waited + beside,
        network_exposed=waited,
    )


def gathered(work: StepWork) -> dict[str, int]:
    """Bytes of two layers' parameters as they are used: this one's, and the next, which is coming.

    Returns:
      {path of a group: bytes of two of its repeats}; empty where all lie as they are used.
    """
    sizes: dict[str, float] = {}
    pieces = False
    for path, x, names in work.leaves():
        if "layers" in names:
            used = kept_ways(work, names, x.shape)[1:]
            size = math.prod(x.shape[1:]) / math.prod(used) * work.itemsize
            group = path.split(".block_")[0]
            sizes[group] = sizes.get(group, 0) + size
            lies = resolve(work.rules.params, names, work.mesh, x.shape)[1:]
            pieces |= lies != resolve(_used(work, names), names, work.mesh, x.shape)[1:]
    return {group: 2 * int(size) for group, size in sizes.items()} if pieces else {}


def _used(work: StepWork, names: Any) -> dict[str, Any]:
    """The table of a parameter as it is used."""
    table = {n: work.rules.compute.get(n, work.rules.params[n]) for n in names if n}
    return table | {"layers": work.rules.params["layers"]}


def kept_ways(work: StepWork, names: Any, shape: Any) -> list[int]:
    """Pieces of each dimension of a parameter as it is used."""
    return _ways(work, resolve(_used(work, names), names, work.mesh, shape))


def _ways(work: StepWork, spec: Any) -> list[int]:
    return [math.prod(work.mesh.shape[a] for a in mesh_axes(entry)) for entry in spec]


def _rates(machine: Slice | Cluster) -> tuple[float, float, float]:
    """(FLOP/s, bytes/s of memory, share of the former that products reach) of a device."""
    if isinstance(machine, Cluster):
        return machine.facts.peak, machine.facts.bandwidth, machine.facts.share
    return machine.facts.device_peak, CHIPS[machine.generation].hbm_bandwidth, MATMUL


def _reach(one: Collective, work: StepWork, machine: Slice | Cluster) -> float:
    """Bytes/s out of a device to its group.

    A group that spans nodes goes as fast as the network adapters of its members in a node.
    """
    if isinstance(machine, Slice):
        chip = CHIPS[machine.generation]
        return chip.dcn if one.network else chip.link * len(one.axes)
    gpu, stride, members, spans = machine.facts, 1, 1, False
    for axis, size in reversed(work.mesh.shape.items()):
        if axis in one.axes:
            members *= min(size, max(gpu.node // stride, 1))
            spans |= stride * size > gpu.node
        stride *= size
    return min(gpu.link, gpu.network * members) if spans else gpu.link
