"""What a device's memory holds in a step: by kind from the compiler, and buffer by buffer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from t5x_llm.plan.hlo import Instruction, Module

# Results that are views of what is there already.
_VIEWS = ("bitcast", "get-tuple-element", "tuple", "parameter", "while", "conditional", "constant")
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
      temporaries: the compiler's: activations, gradients, copies, collectives' buffers.
      code: the program.
      available: what a program may use.
    """

    parameters: int
    optimizer: int
    batch: int
    temporaries: int
    code: int
    available: float

    @property
    def total(self) -> int:
        """All of it; results lie where the donated state lay."""
        return self.parameters + self.optimizer + self.batch + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Whether it is no more than there is."""
        return self.total <= self.available


def memory_of(compiled: Any, parameters: int, optimizer: int, available: float) -> Memory:
    """Splits the compiler's figures.

    Args:
      compiled: a compiled step whose state is donated.
      parameters: bytes of them on one device.
      optimizer: likewise.
      available: bytes that a program may use.
    """
    stats = compiled.memory_analysis()
    fresh = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=max(stats.argument_size_in_bytes - parameters - optimizer, 0),
        temporaries=stats.temp_size_in_bytes + fresh,
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
        for shape in instruction.shapes:
            if shape.space == 0:
                source = module.origin(instruction)
                key = str(shape), module.line(source), source.op_name
                grouped.setdefault(key, []).append(shape.bytes)
    found = [
        Buffer(sizes[0], shape, line, op_name, len(sizes))
        for (shape, line, op_name), sizes in grouped.items()
    ]
    return sorted(found, key=lambda b: -b.bytes * b.count)[:most]


_Moment = tuple[int, list[Instruction]]


def _fullest(module: Module, name: str, known: dict[str, _Moment]) -> _Moment:
    """(bytes, instructions alive) at the fullest moment of a computation and what it calls."""
    if name in known:
        return known[name]
    instructions = module.computations[name]
    last = _last_uses(instructions)
    alive: dict[str, Instruction] = {}
    held = 0
    best: _Moment = (0, [])
    for at, instruction in enumerate(instructions):
        inner: _Moment = (0, [])
        if instruction.opcode in ("while", "conditional", "call"):
            bodies = [c for k, v in instruction.called.items() if k != "condition" for c in v]
            inner = max((_fullest(module, c, known) for c in bodies), key=lambda m: m[0])
        if instruction.opcode not in _VIEWS:
            alive[instruction.name] = instruction
            held += _main(instruction)
        if held + inner[0] > best[0]:
            best = held + inner[0], [*alive.values(), *inner[1]]
        for gone in [n for n in alive if last.get(n, at) <= at]:
            held -= _main(alive.pop(gone))
    known[name] = best
    return best


def _last_uses(instructions: tuple[Instruction, ...]) -> Mapping[str, int]:
    """Index of the last instruction that reads each, by itself or through a view of it."""
    last: dict[str, int] = {}
    for at in range(len(instructions) - 1, -1, -1):
        instruction = instructions[at]
        view = instruction.opcode in _VIEWS
        end = max(last.get(instruction.name, at), at) if view else at
        if instruction.root:
            end = len(instructions)
        for operand in instruction.operands:
            last[operand] = max(last.get(operand, 0), end)
    return last


def _main(instruction: Instruction) -> int:
    return sum(shape.bytes for shape in instruction.shapes if shape.space == 0)
