"""The text of a compiled module (scheduled HLO): its instructions, and how often each runs.

Only what the planner asks is read. The form is XLA's own printing, which is stable enough to parse
and is the same for TPU, GPU and CPU.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4},
    **{"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5},
    **{"f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1, "token": 0},
}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_END = re.compile(r'^\}(, execution_thread="[^"]*")?$')
_OPCODE = re.compile(r" ([a-z][\w-]*)\(")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|called_computations)"
    r"=(\{[^}]*\}|%[\w.-]+)"
)
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of an instruction's result.

    Attributes:
      dtype: as HLO writes it, e.g. ``bf16``.
      dims: of the array on one device.
      space: memory space; 0 is the device's main memory, on TPU 1 is VMEM and 5 the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        return math.ceil(math.prod(self.dims) * BYTES.get(self.dtype, 4))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      opcode: e.g. ``fusion``.
      shapes: arrays of the result.
      operands: names.
      called: computations by attribute: ``body``, ``condition``, ``calls``, ...
      text: all behind the name.
      root: the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    called: dict[str, tuple[str, ...]]
    text: str
    root: bool

    @property
    def cycles(self) -> int | None:
        """Cycles that libtpu estimates for the instruction, or None."""
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """JAX's name of what it comes from."""
        found = _OP_NAME.search(self.text)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def bytes(self) -> int:
        """Bytes of all result arrays."""
        return sum(shape.bytes for shape in self.shapes)


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module.

    Attributes:
      computations: instructions of each, in the order they run.
      entry: name of the first.
      frames: source line (``file:line``) by stack frame id.
      partitions: devices that it is compiled for, of one slice; 0 where it does not say.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    frames: dict[int, str]
    partitions: int = 0

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """Times that a step runs each computation; loops count by their trips.

        Branches of a conditional count as if each ran; fused computations as their callers.
        """
        counts: collections.Counter[str] = collections.Counter()
        for name, times in self._visits(self.entry, 1):
            counts[name] += times
        return dict(counts)

    def _visits(self, name: str, times: int) -> Iterator[tuple[str, int]]:
        yield name, times
        for instruction in self.computations[name]:
            for other, turns in self.turns(instruction):
                yield from self._visits(other, times * turns)

    def turns(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """(computation, how often) of what one run of an instruction runs: not what it tests with
        or reduces by; each branch of a conditional."""
        for attribute, called in instruction.called.items():
            applied = attribute == "to_apply" and instruction.opcode != "call"
            if not applied and attribute != "condition":
                turns = self.trips(instruction) if attribute == "body" else 1
                for name in called:
                    yield name, turns

    def trips(self, loop: Instruction) -> int:
        """Iterations of a while loop: what XLA knows, or the bound that its condition compares to.

        1 where neither is known (a loop whose end depends on data).
        """
        if found := _KNOWN_TRIPS.search(loop.text):
            return int(found[1])
        condition = self.computations[loop.called["condition"][0]]
        named = {i.name: i for i in condition}
        root = next(i for i in condition if i.root)
        if root.opcode == "fusion":
            inner = self.computations[root.called["calls"][0]]
            named |= {i.name: i for i in inner}
            root = next(i for i in inner if i.root)
        for operand in (*root.operands, *(i.name for i in condition)):
            constant = named.get(operand)
            if constant is not None and constant.opcode == "constant":
                value = re.search(r"constant\((-?\d+)\)", constant.text)
                if value and int(value[1]) > 0:
                    return int(value[1])
        return 1

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """Computations that are the inside of a fusion, which XLA runs as one kernel."""
        return self._below_all("fusion")

    @functools.cached_property
    def elsewhere(self) -> frozenset[str]:
        """Computations that another core runs beside the schedule."""
        return self._below_all("async-start")

    def _below_all(self, opcode: str) -> frozenset[str]:
        these = (i for i in self.named.values() if i.opcode == opcode)
        return frozenset(name for instruction in these for name in self._below(instruction))

    @functools.cached_property
    def home(self) -> dict[str, str]:
        """The computation that each instruction is in."""
        return {i.name: name for name, inside in self.computations.items() for i in inside}

    def within(self, instruction: Instruction) -> Iterator[Instruction]:
        """All of what it calls, and what that calls."""
        for name in self._below(instruction):
            yield from self.computations[name]

    def _below(self, instruction: Instruction) -> Iterator[str]:
        for called in instruction.called.values():
            for name in called:
                yield name
                for other in self.computations[name]:
                    yield from self._below(other)

    def scheduled(self) -> Iterator[tuple[Instruction, int]]:
        """(instruction, how often) of the schedule: not the insides of fusions, nor other cores."""
        for name, times in self.runs.items():
            if name not in self.fused and name not in self.elsewhere:
                for instruction in self.computations[name]:
                    yield instruction, times

    @functools.cached_property
    def named(self) -> dict[str, Instruction]:
        """Every instruction; names are unique in a module."""
        return {i.name: i for inside in self.computations.values() for i in inside}

    @functools.cached_property
    def carried(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Loops that an instruction's result goes into, and its place in what they carry."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for loop in self.named.values():
            start = self.named.get(loop.operands[0]) if loop.opcode == "while" else None
            if start is not None and start.opcode == "tuple":
                for at, name in enumerate(start.operands):
                    found.setdefault(name, []).append((loop, at))
        return found

    def enters(self, element: Instruction) -> str | None:
        """Name of the array outside the loop that is first at a place of what a loop carries.

        Args:
          element: a ``get-tuple-element`` of a loop's parameter, or of a tuple.
        """
        place = _INDEX.search(element.text)
        source = self.named.get(element.operands[0]) if element.operands else None
        if source is not None and source.opcode == "parameter":
            source = self._loops.get(self.home[source.name])
        while source is not None and source.opcode == "while":
            source = self.named.get(source.operands[0])
        if place is None or source is None or source.opcode != "tuple":
            return None
        return source.operands[int(place[1])]

    @functools.cached_property
    def _loops(self) -> dict[str, Instruction]:
        """The loop of each body."""
        loops = (i for i in self.named.values() if i.opcode == "while")
        return {body: loop for loop in loops for body in loop.called.get("body", ())}

    def line(self, instruction: Instruction) -> str:
        """``file:line`` it comes from, or ''."""
        found = _FRAME.search(instruction.text)
        return self.frames.get(int(found[1]), "") if found else ""

    def origin(self, instruction: Instruction) -> Instruction:
        """The instruction that made what this one merely moves; itself where it has a name."""
        for _ in range(20):
            if instruction.op_name or not instruction.operands:
                break
            instruction = self.named.get(instruction.operands[0], instruction)
        return instruction


def parse(text: str) -> Module:
    """Reads what ``compiled.as_text()`` gives.

    Raises:
      ValueError: if there is no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    tables: dict[str, list[str]] = {}
    entry = current = table = None
    lines: list[tuple[str, str, bool]] = []
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, [])
        elif head := _COMPUTATION.match(line):
            table, current, lines = None, head[2], []
            entry = current if head[1] else entry
        elif _END.match(line) and current is not None:
            computations[current] = tuple(_instruction(*each) for each in lines)
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            lines.append((found[2], found[3], bool(found[1])))
        elif current is not None and lines:  # attributes of kernels have lines of their own
            name, head_line, root = lines[-1]
            lines[-1] = name, head_line + line, root
        elif table is not None and line.strip():
            table.append(line)
    if entry is None:
        raise ValueError("this is no compiled module: it has no ENTRY computation")
    partitions = _PARTITIONS.search(text[: text.find("\n")])
    return Module(computations, entry, _frames(tables), int(partitions[1]) if partitions else 0)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    opcode = _OPCODE.search(" " + text if not text.startswith("(") else text)
    # A tuple's shapes come first and contain parentheses of their own only as comments and layouts.
    start = opcode.start() if opcode else len(text)
    result = text[:start]
    rest = text[start:]
    arguments, depth = "", 0
    for i, character in enumerate(rest):
        depth += character == "("
        depth -= character == ")"
        if depth == 0 and character == ")":
            arguments = rest[: i + 1]
            break
    called = {
        attribute: tuple(re.findall(r"%([\w.-]+)", names))
        for attribute, names in _CALLED.findall(rest[len(arguments) :])
    }
    shapes = tuple(
        Shape(
            dtype,
            tuple(int(d) for d in dims.split(",") if d),
            int(space[1]) if (space := _SPACE.search(layout)) else 0,
        )
        for dtype, dims, layout in _SHAPE.findall(result)
    )
    operands = tuple(re.findall(r"%([\w.-]+)", arguments))
    return Instruction(name, opcode[1] if opcode else "", shapes, operands, called, text, root)


def _frames(tables: dict[str, list[str]]) -> dict[int, str]:
    """Frame id to ``file:line``, the file without its directories above the package's."""

    def number(field: str, text: str) -> int:
        found = re.search(rf"\b{field}=(\d+)", text)
        return int(found[1]) if found else 0

    names = {}
    for row in tables.get("FileNames", ()):
        number_, _, name = row.partition(" ")
        parts = name.strip('"').split("/")
        first = parts.index("t5x_llm") if "t5x_llm" in parts else max(len(parts) - 2, 0)
        names[int(number_)] = "/".join(parts[first:])
    places: dict[int, str] = {}
    for row in tables.get("FileLocations", ()):
        key = int(row.split(" ", 1)[0])
        places[key] = f"{names.get(number('file_name_id', row), '?')}:{number('line', row)}"
    # A frame and the one that called it; XLA writes that one's number plus one, 1 for none.
    rows = {int(row.split(" ", 1)[0]): row for row in tables.get("StackFrames", ())}
    parents = {key: number("parent_frame_id", row) - 1 for key, row in rows.items()}
    lines = {k: places.get(number("file_location_id", row), "") for k, row in rows.items()}

    def ours(key: int) -> str:
        """The innermost line of this package, or the innermost of all."""
        at, seen = key, 0
        while at in lines and not lines[at].startswith("t5x_llm/") and seen < len(lines):
            at, seen = parents[at], seen + 1
        return lines.get(at) or lines[key]

    return {key: ours(key) for key in lines}
