"""GPUs that a plan may be made for: ``core.gpus.GPUS``, so many of them."""

from __future__ import annotations

import dataclasses
import re

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.gpus import GPUS, Gpu
from t5x_llm.core.slices import GENERATIONS, Slice, parse_slice

# What is left of a device's memory to a program, beside the driver's context, NCCL's buffers and
# the gaps of an allocator.
USABLE = 0.92
_ALIASES = {"a100-80": "a100", "a100-80gb": "a100", "a100-40": "a100-40gb"}
_NAME = re.compile(r"([a-z][a-z0-9-]*)-(\d{1,6})")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """GPUs of one kind in whole nodes; stands where a ``Slice`` may.

    Attributes:
      generation: key of ``GPUS``.
      chips: how many.
    """

    generation: str
    chips: int

    @property
    def facts(self) -> Gpu:
        """Constants of a device."""
        return GPUS[self.generation]

    @property
    def topology_name(self) -> str:
        """The way the GPUs are joined, in words."""
        if self.chips <= self.facts.node:
            return "one node"
        return f"{self.chips // self.facts.node} nodes of {self.facts.node}"

    @property
    def accelerator_type(self) -> str:
        """The cluster's name as ``parse_machine`` reads it."""
        return f"{self.generation}-{self.chips}"


def parse_machine(field: str, name: str) -> Slice | Cluster:
    """The TPU slice or the GPUs of a name such as ``v5p-128`` or ``h100-64``.

    Args:
      field: where the name stands, for messages.
      name: a kind and how many; what a slice's number counts, ``parse_slice`` says.

    Raises:
      ConfigError: it is neither.
    """
    found = _NAME.fullmatch(name.lower()) if isinstance(name, str) else None
    kind = found and _ALIASES.get(found[1], found[1])
    if found is None or kind not in GPUS:
        known = kind in (*GENERATIONS, "v5litepod", "tpu7x")
        if found is not None and known:
            return parse_slice(field, name)
        raise ConfigError(
            field,
            name,
            f"a TPU slice such as 'v5p-128' ({', '.join(GENERATIONS)}) or GPUs such as 'h100-64' "
            f"({', '.join(GPUS)})",
        )
    count, node = int(found[2]), GPUS[kind].node
    if count < 1 or (count > node and count % node):
        raise ConfigError(
            field,
            name,
            f"at most {node} GPUs, or whole nodes of {node}",
            f"Sizes near are {max(count // node, 1) * node} and {(count // node + 1) * node}.",
        )
    return Cluster(kind, count)
