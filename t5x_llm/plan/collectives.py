"""What devices say to each other in a step: kind, bytes, mesh axes, how often."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_llm.plan.hlo import Instruction, Module

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    *("ragged-all-to-all", "collective-broadcast"),
)
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_SUB_AXIS = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ASYNC = re.compile(r"Async|async")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the schedule.

    Attributes:
      kind: one of ``KINDS``.
      axes: mesh axes along which its groups lie.
      group: devices of a group.
      bytes: of the whole array on one device: the gathered one, the one that is reduced.
      times: how often a step does it.
      hidden: it runs beside computation (started and awaited apart).
      line: source line it comes from.
      op_name: JAX's name of that.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    times: int
    hidden: bool
    line: str
    op_name: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends over links in a step, by ring or pairwise algorithms."""
        if self.group < 2:
            return 0.0
        rest = (self.group - 1) / self.group
        share = {"all-reduce": 2 * rest, "collective-permute": 1.0}.get(self.kind, rest)
        return share * self.bytes * self.times


def collectives(module: Module, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All collectives of a step, the costliest first.

    The parts of one that runs beside computation carry one channel and count once.

    Args:
      module: compiled for as many devices as the mesh has.
      mesh_shape: axis sizes, in the mesh's order.
    """
    runs = module.runs
    found: list[tuple[str | None, Collective]] = []
    for name, instructions in module.computations.items():
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or name not in runs:
                continue
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # as TPUs have it: a kernel that keeps a slice
            started = instruction.opcode.endswith("-start")
            channel = None if started else _CHANNEL.search(instruction.text)
            split = started or bool(
                _ASYNC.search(name) or any(_ASYNC.search(i.text) for i in instructions)
            )
            groups = _groups(instruction.text, math.prod(mesh_shape.values()))
            one = Collective(
                kind=kind,
                axes=_axes(groups, mesh_shape),
                group=len(groups[0]) if groups else 1,
                bytes=_whole(instruction, module),
                times=runs[name],
                hidden=split,
                line=module.line(instruction),
                op_name=instruction.op_name,
            )
            found.append((channel and channel[1], one))
    # What shard_map writes has one channel for all, so a channel alone does not make one of two.
    parted = {channel: one for channel, one in found if channel and one.hidden}
    kept = [one for channel, one in found if channel not in parted] + list(parted.values())
    return sorted(kept, key=lambda c: -c.sent)


def _whole(instruction: Instruction, module: Module) -> int:
    """Bytes of the result, or of the operands where those are the larger (reduce-scatter)."""
    operands = (module.named.get(operand) for operand in instruction.operands)
    given = sum(other.bytes for other in operands if other is not None)
    if instruction.opcode.endswith("-start"):
        return max(given, max((s.bytes for s in instruction.shapes), default=0))
    return max(given, instruction.bytes)


def _groups(text: str, devices: int) -> list[list[int]]:
    """Devices of each group, whatever form XLA writes them in."""
    if found := _IOTA.search(text):
        ids = _iota(found[2], found[3])
        return ids.reshape(int(found[1].split(",")[0]), -1).tolist()
    if found := _MESH.search(text):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", found[1])}
        flat = np.arange(devices) if found[2] is None else _iota(found[2], found[3])
        return _along(flat, sizes, _SUB_AXIS.findall(found[4]))
    if found := _PAIRS.search(text) or _LISTED.search(text):
        rows = re.findall(r"\{([\d, ]*)\}", found[1])
        return [[int(n) for n in row.split(",")] for row in rows if row.strip()]
    return [list(range(devices))]


def _iota(shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in a shape, transposed."""
    sizes = [int(n) for n in shape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids


def _along(
    flat: np.ndarray, sizes: dict[str, int], named: Sequence[tuple[str, str, str]]
) -> list[list[int]]:
    """Groups along axes of a mesh of devices; ``(axis, before, size)`` names a part of one."""
    dims: list[int] = []
    moving: list[int] = []
    for axis, size in sizes.items():
        part = next(((b, n) for name, b, n in named if name == axis), None)
        if part is None or not part[1]:
            cut = [(size, part is not None)]
        else:
            before, inside = int(part[0]), int(part[1])
            cut = [(before, False), (inside, True), (size // before // inside, False)]
        for n, moves in cut:
            moving += [len(dims)] * moves
            dims.append(n)
    still = [i for i in range(len(dims)) if i not in moving]
    count = math.prod(dims[i] for i in moving)
    return flat.reshape(dims).transpose([*still, *moving]).reshape(-1, count).tolist()


def _axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes whose coordinates differ within a group; devices count in the mesh's order."""
    sizes = tuple(mesh_shape.values())
    varying: set[str] = set()
    for group in groups:
        places = np.array(np.unravel_index(list(group), sizes))
        moved = np.any(places != places[:, :1], axis=1)
        varying |= {axis for axis, moves in zip(mesh_shape, moved.tolist(), strict=True) if moves}
    return tuple(axis for axis in mesh_shape if axis in varying)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same axes.

    Attributes:
      kind: see ``Collective``.
      axes: likewise.
      count: calls in a step.
      bytes: of all their arrays in a step, on one device.
      sent: bytes that a device sends.
      hidden: share of ``sent`` that runs beside computation.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    sent: float
    hidden: float


def summed(found: Sequence[Collective]) -> list[Traffic]:
    """By kind and axes, the costliest first."""
    parts = collections.defaultdict(list)
    for one in found:
        parts[one.kind, one.axes].append(one)
    rows = [
        Traffic(
            kind,
            axes,
            sum(c.times for c in group),
            sum(c.bytes * c.times for c in group),
            (sent := sum(c.sent for c in group)),
            sum(c.sent for c in group if c.hidden) / sent if sent else 0.0,
        )
        for (kind, axes), group in parts.items()
    ]
    return sorted(rows, key=lambda row: -row.sent)
