"""Accounts for a device's memory in a step: by kind from the compiler, and buffer by buffer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from t5x_llm.plan.hlo import Instruction, Module, Shape

# Results that are views of what is there already.
_VIEWS = (
    *("bitcast", "get-tuple-element", "tuple", "parameter", "while", "conditional", "constant"),
    *("copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done"),
    *("dynamic-update-slice", "optimization-barrier", "async-update"),
    *("send", "send-done", "recv-done"),
)
# Results that lie where the first operand lay, of which they replace a part.
_REPLACING = ("dynamic-update-slice", "scatter")
_EMPTY = 'custom_call_target="AllocateBuffer"'
_INDEX = re.compile(r"\bindex=(\d+)")
_ALIASED = re.compile(
    r"output_to_operand_aliasing=\{((?:\{[\d, ]*\}: \(\d+, \{[\d, ]*\}\)(?:, )?)+)\}"
)
_OOM = re.compile(r"([\d.]+)([KMGT])?B?\) exceeds available HBM \(([\d.]+)([KMGT])?B?\)")
_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_UNITS = {None: 1, "": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters: exact, from shapes and shardings.
      optimizer: exact.
      batch: the step's other arguments.
      activations: values of the forward pass that are alive at the fullest moment, an account from
        the schedule; with ``temporaries`` they make up the compiler's figure.
      temporaries: gradients, copies, collectives' buffers, padding.
      code: the program.
      available: what a program may use.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int
    temporaries: int
    code: int
    available: float

    @property
    def total(self) -> int:
        """All of it; results lie where the donated state lay."""
        state = self.parameters + self.optimizer + self.batch
        return state + self.activations + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """True where no more is used than there is."""
        return self.total <= self.available


def memory_of(
    compiled: Any, module: Module, parameters: int, optimizer: int, available: float
) -> Memory:
    """Splits the compiler's figures.

    Args:
      compiled: a compiled step whose state is donated.
      module: its schedule.
      parameters: bytes of them on one device.
      optimizer: likewise.
      available: bytes that a program may use.
    """
    stats = compiled.memory_analysis()
    fresh = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    temporaries = stats.temp_size_in_bytes + fresh
    forward = min(activations(module), temporaries)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=max(stats.argument_size_in_bytes - parameters - optimizer, 0),
        activations=forward,
        temporaries=temporaries - forward,
        code=stats.generated_code_size_in_bytes,
        available=available,
    )


def refused(message: str) -> tuple[float, float] | None:
    """(bytes wanted, bytes available) of the compiler's refusal, or None if it is another error."""
    if found := _OOM.search(message):
        return float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
    if found := _USED.search(message):
        return float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
    return None


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that is alive where the schedule holds most.

    Attributes:
      bytes: without the padding of tiles.
      shape: on one device.
      line: source line.
      op_name: JAX's name of what makes it.
      count: how many of that size and origin.
    """

    bytes: int
    shape: str
    line: str
    op_name: str
    count: int = 1


def largest_live(module: Module, most: int = 10) -> list[Buffer]:
    """The largest temporaries alive at the schedule's fullest moment, the largest first.

    An account from definitions and last uses in main memory, not the compiler's own assignment: it
    reuses buffers in place, pads to tiles, and may lay out better.
    """
    alive = _fullest(module, module.entry, {})[1]
    grouped: dict[tuple[str, str, str], list[int]] = {}
    for instruction in alive:
        source = _maker(module, instruction)
        for shape in allocated(module, instruction):
            key = str(shape), module.line(source), source.op_name
            grouped.setdefault(key, []).append(shape.bytes)
    found = [
        Buffer(sizes[0], shape, line, op_name, len(sizes))
        for (shape, line, op_name), sizes in grouped.items()
    ]
    return sorted(found, key=lambda b: -b.bytes * b.count)[:most]


def activations(module: Module) -> int:
    """Bytes of the forward pass's values that are alive at the schedule's fullest moment."""
    alive = _fullest(module, module.entry, {})[1]
    return sum(
        shape.bytes
        for instruction in alive
        if _forward(_maker(module, instruction).op_name)
        for shape in allocated(module, instruction)
    )


def _forward(op_name: str) -> bool:
    return "jvp(" in op_name and "transpose(" not in op_name


def _maker(module: Module, instruction: Instruction) -> Instruction:
    """Returns the instruction that fills a result.

    An empty buffer that loops write is filled by the instruction that writes it there.
    """
    if not module.line(instruction) or _EMPTY in instruction.text:
        for loop, at in module.carried.get(instruction.name, ()):
            written = _written(module, loop, at)
            if written is not None and written.op_name:
                return written
    return module.origin(instruction)


def _written(module: Module, loop: Instruction, at: int) -> Instruction | None:
    """Returns the instruction whose result a loop's turn leaves at place ``at`` of its carry.

    None where the turn leaves what it found.
    """
    root = next(i for i in module.computations[loop.called["body"][0]] if i.root)
    result = module.named[root.operands[at]] if at < len(root.operands) else None
    while result is not None and not result.op_name and result.operands:
        source = module.named[result.operands[0]]
        if result.opcode == "get-tuple-element" and source.opcode in ("while", "parameter"):
            place = int(_INDEX.search(result.text)[1])  # type: ignore[index]
            if source.opcode == "parameter":
                return None
            if (inner := _written(module, source, place)) is not None:
                return inner
            start = module.named[source.operands[0]]
            result = module.named[start.operands[place]] if start.opcode == "tuple" else None
        else:
            result = source
    return result


def allocated(module: Module, instruction: Instruction) -> list[Shape]:
    """Arrays in main memory that an instruction makes anew: not views, nor what it updates."""
    if instruction.opcode in _VIEWS:
        return []
    shapes = list(instruction.shapes)
    if instruction.opcode == "copy-start":  # (destination, source, semaphore)
        shapes = shapes[:1]
    elif instruction.opcode == "recv":  # (result, context, token)
        shapes = shapes[:1]
    elif instruction.opcode.endswith("-start"):  # (operands, results, semaphores)
        for operand in instruction.operands:
            for shape in module.named[operand].shapes if operand in module.named else ():
                if len(shapes) > 1 and shape in shapes:
                    shapes.remove(shape)
    elif instruction.opcode == "fusion":
        inside = [module.computations[c] for c in instruction.called.get("calls", ())]
        roots = {i.name: i for c in inside for i in c}
        root = next((i for c in inside for i in c if i.root), None)
        names = root.operands if root is not None and root.opcode == "tuple" else ()
        results = [roots.get(n) for n in names] if names else [root]
        if len(results) == len(shapes):
            shapes = [
                shape
                for shape, result in zip(shapes, results, strict=True)
                if not _in_place(result, roots)
            ]
    elif found := _ALIASED.search(instruction.text):
        same = {int(n or 0) for n in re.findall(r"\{(\d*)[\d, ]*\}: \(", found[1])}
        shapes = [shape for i, shape in enumerate(shapes) if i not in same]
    return [shape for shape in shapes if shape.space == 0]


def _in_place(result: Instruction | None, inside: Mapping[str, Instruction]) -> bool:
    """Returns True where a fusion's result is one of its arguments, of which it replaces a part."""
    while result is not None and result.opcode in ("bitcast", *_REPLACING):
        first = inside.get(result.operands[0]) if result.operands else None
        if result.opcode in _REPLACING:
            while first is not None and first.opcode == "bitcast":
                first = inside.get(first.operands[0])
            return first is not None and first.opcode == "parameter"
        result = first
    return False


_Moment = tuple[int, list[Instruction]]


def _fullest(module: Module, name: str, known: dict[str, _Moment]) -> _Moment:
    """(bytes, instructions alive) at the fullest moment of a computation and what it calls."""
    if name in known:
        return known[name]
    instructions = module.computations[name]
    updating = {i.name for i in instructions if i.opcode == "fusion" and _updates(module, i)}
    last = _last_uses(instructions, updating)
    results = _results(module, instructions) if name == module.entry else set()
    alive: dict[str, Instruction] = {}
    sizes: dict[str, int] = {}
    held = 0
    best: _Moment = (0, [])
    for at, instruction in enumerate(instructions):
        inner: _Moment = (0, [])
        if instruction.opcode in ("while", "conditional", "call"):
            bodies = module.turns(instruction)
            inner = max((_fullest(module, c, known) for c, _ in bodies), key=lambda m: m[0])
        size = sum(shape.bytes for shape in allocated(module, instruction))
        if size and instruction.name not in results:
            alive[instruction.name] = instruction
            sizes[instruction.name] = size
            held += size
        if held + inner[0] > best[0]:
            best = held + inner[0], [*alive.values(), *inner[1]]
        for gone in [n for n in alive if last.get(n, at) <= at]:
            del alive[gone]
            held -= sizes[gone]
    known[name] = best
    return best


def _results(module: Module, instructions: tuple[Instruction, ...]) -> set[str]:
    """Instructions whose result is the program's, and lies where the donated state lay."""
    found: set[str] = set()
    names = [i.name for i in instructions if i.root]
    while names:
        name = names.pop()
        if name not in found and module.named[name].opcode != "while":
            found.add(name)
            if module.named[name].opcode in _VIEWS:
                names += [n for n in module.named[name].operands if n in module.named]
    return found


def _updates(module: Module, fusion: Instruction) -> bool:
    whole = sum(shape.space == 0 for shape in fusion.shapes)
    return len(allocated(module, fusion)) < whole


def _last_uses(instructions: tuple[Instruction, ...], updating: set[str]) -> Mapping[str, int]:
    """Index of the last instruction that reads each, by itself or through a view of it.

    What goes through a loop in a tuple is read as long as its own element of the result.
    """
    last: dict[str, int] = {}
    elements: dict[tuple[str, int], int] = {}  # of tuples and loops, by place

    def read(key: Any, end: int, known: dict[Any, int]) -> None:
        known[key] = max(known.get(key, 0), end)

    for at in range(len(instructions) - 1, -1, -1):
        instruction = instructions[at]
        name, operands = instruction.name, instruction.operands
        view = instruction.opcode in _VIEWS or name in updating
        end = max(last.get(name, at), at) if view else at
        if instruction.root:
            end = len(instructions)
        if instruction.opcode == "get-tuple-element" and (place := _INDEX.search(instruction.text)):
            read((operands[0], int(place[1])), end, elements)
        elif instruction.opcode == "tuple":
            for k, operand in enumerate(operands):
                read(operand, max(end, elements.get((name, k), at)), last)
        elif instruction.opcode == "while":
            for k in range(len(instruction.shapes)):
                read((operands[0], k), max(end, elements.get((name, k), at)), elements)
        else:
            # An element of another result keeps all of it.
            whole = [n for (owner, _), n in elements.items() if owner == name] if view else []
            for operand in operands:
                read(operand, max([end, *whole]), last)
    return _with_elements(last, elements)


def _with_elements(last: dict[str, int], elements: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Adds that a result with several arrays is there as long as any of them is read."""
    for (name, _), end in elements.items():
        last[name] = max(last.get(name, 0), end)
    return last
