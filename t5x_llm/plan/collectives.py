"""Reads the collectives of a compiled step: kind, bytes, mesh axes, how often."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from t5x_llm.plan.hlo import Instruction, Module
from t5x_llm.plan.network import AXIS, gathers, transfers

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
# How libtpu says what it made: colors are rings at a time, of one direction or of both.
_RINGS = re.compile(r"(\w+)\{colors:(\d+)")
_FOLLOWS = re.compile(r"-(update|done)$")
_DIMS = re.compile(r'"emitter":"(\d)D')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the schedule.

    Attributes:
      kind: one of ``KINDS``.
      axes: mesh axes along which its groups lie.
      group: devices of a group.
      bytes: of the whole array on one device: the gathered one, the one that is reduced.
      times: how often a step does it.
      hidden: share of its time that runs beside computation; before the schedule is timed, 1 for
        what is started and awaited apart.
      line: source line it comes from.
      op_name: JAX's name of that.
      links: axes of the torus that the compiler says it uses at once, or None.
      network: True of what goes between slices, over the data-centre network.
      start: name of the scheduled instruction that starts it.
      end: of the one that awaits it; the same where nothing runs meanwhile.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    times: int
    hidden: float
    line: str
    op_name: str
    links: int | None = None
    network: bool = False
    start: str = ""
    end: str = ""

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

    Args:
      module: compiled for as many devices as the mesh has.
      mesh_shape: axis sizes, in the mesh's order.
    """
    found: list[Collective] = []
    devices = module.partitions or math.prod(mesh_shape.values())
    for name, times in module.runs.items():
        if name in module.fused or name in module.elsewhere:
            continue
        for one, start, end in _spans(module, module.computations[name]):
            groups = _groups(one.text, devices)
            whole = Collective(
                kind=one.opcode.removesuffix("-start"),
                axes=_axes(groups, mesh_shape),
                group=len(groups[0]) if groups else 1,
                bytes=_whole(one, module),
                times=times,
                hidden=float(start != end),
                line=module.line(one),
                op_name=one.op_name,
                links=_links(one.text),
                start=start,
                end=end,
            )
            found += _as_done(whole, one, module)
        found += [
            Collective(
                kind=one.kind,
                axes=(AXIS,),
                group=one.slices,
                bytes=one.bytes,
                times=times,
                hidden=float(one.start != one.end),
                line=module.line(source := module.origin(one.source)),
                op_name=source.op_name,
                network=True,
                start=one.start,
                end=one.end,
            )
            for one in transfers(module, module.computations[name])
        ]
    return sorted(found, key=lambda c: -c.sent)


def _as_done(whole: Collective, one: Instruction, module: Module) -> list[Collective]:
    """Returns what an all-reduce is that does the work of another; others as they are."""
    if whole.kind != "all-reduce":
        return [whole]
    if module.home[one.name].startswith("all-reduce-scatter"):
        # As TPUs have it: a kernel that keeps a slice.
        return [dataclasses.replace(whole, kind="reduce-scatter")]
    gathered = sum(module.named[n].bytes for n in one.operands if gathers(module, n))
    if not gathered:
        return [whole]
    parts = {"all-gather": gathered, "all-reduce": whole.bytes - gathered}
    return [dataclasses.replace(whole, kind=k, bytes=n) for k, n in parts.items() if n > 0]


def _spans(
    module: Module, schedule: Sequence[Instruction]
) -> Iterator[tuple[Instruction, str, str]]:
    """(collective, what starts it, what awaits it) of one computation.

    Started and awaited apart are ``-start`` and ``-done``; ``async-start``, ``-update`` and
    ``-done`` around a computation of another core (SparseCores), which starts when it has its
    operands; and libtpu's fusions that carry a collective on beside their own work: of one channel,
    the first has a call of AsyncCollectiveStart, the last of AsyncCollectiveDone.
    """
    parts: dict[str, tuple[Instruction, str]] = {}
    awaits = {i.operands[0]: i for i in schedule if i.operands and _FOLLOWS.search(i.opcode)}
    for i in schedule:
        if i.opcode.removesuffix("-start") in KINDS:
            done = awaits.get(i.name)
            yield i, i.name, i.name if done is None else done.name
        elif i.opcode == "async-start":
            first = last = i
            while last.name in awaits:
                last = awaits[last.name]
                first = last if not first.operands else first
            for one in module.within(i):
                if one.opcode in KINDS:
                    yield one, first.name, last.name
        elif i.opcode == "fusion":
            inside = list(module.within(i))
            text = "".join(other.text for other in inside if other.opcode == "custom-call")
            for one in inside:
                if one.opcode not in KINDS:
                    continue
                channel = _CHANNEL.search(one.text)
                key = channel[1] if channel else ""
                if "AsyncCollectiveStart" in text:
                    parts[key] = one, i.name
                elif key not in parts:
                    yield one, i.name, i.name
                elif "AsyncCollectiveDone" in text:
                    yield (*parts.pop(key), i.name)


def _links(text: str) -> int | None:
    """Axes of the torus that libtpu's algorithm uses at once, where it tells."""
    if rings := _RINGS.search(text):
        return max(int(rings[2]) // (2 if "UniDirection" in rings[1] else 1), 1)
    if phases := text.count('"phase_rings"'):  # of the SparseCores
        return max(phases // (2 if "RING_TYPE_UNIDIR" in text else 1), 1)
    if dims := _DIMS.search(text):
        return int(dims[1])
    return None


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
        count = math.prod(sizes.values())
        flat = np.arange(count) if found[2] is None else _iota(found[2], found[3])
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
    """Sums collectives by kind and axes, the costliest first."""
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
            sum(c.sent * c.hidden for c in group) / sent if sent else 0.0,
        )
        for (kind, axes), group in parts.items()
    ]
    return sorted(rows, key=lambda row: -row.sent)
