"""Reads what goes between slices, and gathers that libtpu compiles as sums.

Between slices a program has no collectives: libtpu cuts each in what a slice does and a pair of
``send`` and ``recv`` that Megascale carries over the data-centre network, whose attributes say
what they do together and with which slices.

libtpu describes several slices with open faces whatever it is told of their links (``wrap`` of
``plan/chips.py``), and on such a torus some all-gathers become all-reduces of arrays that are zero
but for the device's own piece. Slices whose links close gather, and the same bytes travel once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from t5x_llm.plan.hlo import Instruction, Module

# Mesh axis of what goes between slices (``parallel.make_mesh`` allows no other).
AXIS = "replica"
_TYPE = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_TARGET = re.compile(r'_xla_megascale_target="\{([^}]*)\}')
_KINDS = {"ONE_TO_ONE": "collective-permute"}
_MOVED = ("bitcast", "copy", "copy-start", "copy-done", "reshape", "transpose", "convert")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One exchange between slices.

    Attributes:
      kind: as of the collective that it carries out, e.g. ``all-reduce``.
      slices: how many take part.
      bytes: of the whole array on one device: what is sent or what is received, the larger.
      source: the instruction whose result is sent.
      start: name of the instruction that sends.
      end: of the one that awaits what is received.
    """

    kind: str
    slices: int
    bytes: int
    source: Instruction
    start: str
    end: str


def transfers(module: Module, schedule: Sequence[Instruction]) -> Iterator[Transfer]:
    """Yields what one computation exchanges with other slices."""
    received = {_key(i): i for i in schedule if i.opcode == "recv" and _TYPE.search(i.text)}
    ends = {i.operands[0]: i.name for i in schedule if i.opcode == "recv-done" and i.operands}
    for sent in schedule:
        if sent.opcode != "send" or not (found := _TYPE.search(sent.text)):
            continue
        arrived = received.get(_key(sent))
        arrays = [i.shapes[0].bytes for i in (sent, arrived) if i is not None and i.shapes]
        target = _TARGET.search(sent.text)
        yield Transfer(
            kind=_KINDS.get(found[1], found[1].lower().replace("_", "-")),
            slices=_members(target[1]) if target else 2,
            bytes=max(arrays, default=0),
            source=module.named.get(sent.operands[0], sent),
            start=sent.name,
            end=ends.get(arrived.name if arrived is not None else "", sent.name),
        )


def _key(instruction: Instruction) -> str:
    found = _RENDEZVOUS.search(instruction.text)
    return found[1] if found else instruction.name


def _members(listed: str) -> int:
    """Counts numbers as in ``1,2`` or ``1:4``, both ends included."""
    count = 0
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition(":")
        count += int(last or first) - int(first) + 1
    return count


def gathers(module: Module, name: str) -> bool:
    """Returns True where summing this array over devices gathers it.

    So it is where the array is made of zeros, into which one piece is written.
    """
    made, inside = _made(module, module.named.get(name))
    if made is None or made.opcode != "dynamic-update-slice":
        return False
    return _zeros(module, made.operands[0], inside)


def _made(
    module: Module, instruction: Instruction | None
) -> tuple[Instruction | None, Mapping[str, str]]:
    """Returns what makes an array, behind copies, and the operands of the fusion that it is in."""
    given: dict[str, str] = {}
    while instruction is not None:
        if instruction.opcode == "fusion" and not given:
            inner = module.computations[instruction.called["calls"][0]]
            parameters = [i for i in inner if i.opcode == "parameter"]
            numbered = sorted(parameters, key=_number)
            given = {
                p.name: operand for p, operand in zip(numbered, instruction.operands, strict=False)
            }
            instruction = next(i for i in inner if i.root)
        elif instruction.opcode in _MOVED and instruction.operands:
            instruction = module.named.get(instruction.operands[0])
        else:
            break
    return instruction, given


def _number(parameter: Instruction) -> int:
    found = re.search(r"parameter\((\d+)\)", parameter.text)
    return int(found[1]) if found else 0


def _zeros(module: Module, name: str, given: Mapping[str, str]) -> bool:
    """Returns True if an array is a broadcast zero; a loop may carry it."""
    for _ in range(20):
        one = module.named.get(given.get(name, name))
        if one is None:
            return False
        if one.opcode == "broadcast":
            constant = module.named.get(given.get(one.operands[0], one.operands[0]))
            return constant is not None and re.search(r"constant\(-?0\)", constant.text) is not None
        if one.opcode == "get-tuple-element":
            outside = module.enters(one)
            if outside is None:
                return False
            name = outside
        elif one.opcode in _MOVED and one.operands:
            name = one.operands[0]
        elif one.opcode == "fusion":
            made, given = _made(module, one)
            if made is None or made is one:
                return False
            name = made.name
        else:
            return False
    return False
