"""This machine's own devices: the same reading of the compiled step, with rates that are measured.

The compiler of CPUs estimates no cycles. Each instruction of the schedule takes what its matrix
products take at the measured rate of a large product, or what its arrays take at the measured rate
of memory (of a cache where all of them fit into it), whichever is longer; loops count by their
trips. Left out: the rates of small products and of what is dearer than an addition, such as an
exponential, threads that wait for each other, collectives.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5x_llm.plan.hlo import Instruction, Module
from t5x_llm.plan.time import StepTime

_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
CACHE = 2**20
_TURNS = 20  # over an array that is measured, in place: fresh pages would cost more than the array
# What moves nothing, or what calls others, which are counted by themselves.
_FREE = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional"),
    *("call", "optimization-barrier", "after-all"),
)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured rates of a device of this machine.

    Attributes:
      flops: FLOP/s of a large matrix product.
      bandwidth: bytes/s that a simple loop over a large array reads and writes.
      cached: likewise over an array of ``CACHE`` bytes.
    """

    flops: float
    bandwidth: float
    cached: float


@dataclasses.dataclass(frozen=True)
class Here:
    """The devices of this machine; stands where a ``Slice`` may.

    Attributes:
      generation: JAX's platform.
      topology_name: what kind of device.
      chips: how many.
      memory: bytes of a device.
      rates: of a device, or None where nothing was measured.
    """

    generation: str
    topology_name: str
    chips: int
    memory: float
    rates: Rates | None

    accelerator_type = "here"

    @property
    def facts(self) -> Here:
        """The device's constants under the name that a slice gives them."""
        return self

    @property
    def peak(self) -> float:
        """FLOP/s of a device."""
        return self.rates.flops if self.rates else math.nan


def this_machine(dtype: str) -> Here:
    """JAX's devices; on CPU their rates are measured, shared by several host devices.

    Args:
      dtype: of the products.
    """
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    memory = float(stats.get("bytes_limit", 0)) or (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(jax.local_devices())
    )
    rates = None
    if devices[0].platform == "cpu":
        whole, many = measured_rates(dtype), len(jax.local_devices())
        rates = Rates(*(each / many for each in dataclasses.astuple(whole)))
    return Here(devices[0].platform, devices[0].device_kind, len(devices), memory, rates)


def host_time(module: Module, rates: Rates) -> StepTime:
    """Adds up a step that was compiled for the CPU."""
    compute = 0.0
    for instruction, times in module.scheduled():
        flops, moved = dot_flops(instruction, module), moved_bytes(instruction, module)
        speed = rates.cached if moved <= 2 * CACHE else rates.bandwidth
        compute += times * max(flops / rates.flops, moved / speed)
    return StepTime(compute, 0.0, 0.0, 0.0, ())


def dot_flops(instruction: Instruction, module: Module) -> float:
    """FLOPs of the matrix products of an instruction, with what it fuses."""
    if instruction.opcode == "fusion":
        called = instruction.called.get("calls", ())
        return sum(dot_flops(i, module) for name in called for i in module.computations[name])
    if instruction.opcode != "dot":
        return 0.0
    left = module.named[instruction.operands[0]].shapes[0].dims
    found = _CONTRACTED.search(instruction.text)
    dims = [int(d) for d in found[1].split(",") if d] if found else []
    return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left[d] for d in dims)


def moved_bytes(instruction: Instruction, module: Module) -> float:
    """Bytes that an instruction reads and writes; of an array that it slices, the slice alone."""
    if instruction.opcode in _FREE:
        return 0.0
    if instruction.opcode == "dynamic-slice":
        return 2.0 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _bytes(instruction.operands[1], module)
    if instruction.opcode != "fusion":
        return instruction.bytes + sum(_bytes(name, module) for name in instruction.operands)
    inside = [i for name in instruction.called.get("calls", ()) for i in module.computations[name]]
    readers: dict[str, list[Instruction]] = {}
    for each in inside:
        for name in each.operands:
            readers.setdefault(name, []).append(each)
    read = sum(_read(i, readers, module) for i in inside if i.opcode == "parameter")
    named = {i.name: i for i in inside}
    root = next(i for i in inside if i.root)
    results = [named[n] for n in root.operands] if root.opcode == "tuple" else [root]
    return read + sum(
        _bytes(r.operands[1], module) if r.opcode == "dynamic-update-slice" else r.bytes
        for r in results
    )


def _read(
    parameter: Instruction, readers: Mapping[str, list[Instruction]], module: Module
) -> float:
    users = list(readers.get(parameter.name, ()))
    while any(user.opcode == "bitcast" for user in users):
        users = [
            reader
            for user in users
            for reader in (readers.get(user.name, ()) if user.opcode == "bitcast" else (user,))
        ]
    if users and all(user.opcode == "dynamic-slice" for user in users):
        return sum(user.bytes for user in users)
    if users and all(user.opcode == "dynamic-update-slice" for user in users):
        return 0.0
    return parameter.bytes


def _bytes(name: str, module: Module) -> int:
    return module.named[name].bytes if name in module.named else 0


def measured_rates(
    dtype: str, clock: Callable[[], float] = time.perf_counter, seconds: float = 0.3
) -> Rates:
    """This machine's rates, the median of repetitions.

    Args:
      dtype: of the products.
      clock: what time is; ``time.process_time`` where others use the machine too.
      seconds: that each measurement takes at least.
    """
    size = 1024
    x = jnp.ones((size, size), dtype)
    product = _median(jax.jit(lambda a: a @ a), x, clock, seconds)
    swept = []
    for held in (64 * CACHE, CACHE):
        y = jnp.ones((held // 4,), jnp.float32)
        turns = jax.jit(lambda a: jax.lax.fori_loop(0, _TURNS, lambda _, b: b * 1.5 + 1, a))
        swept.append(2 * held * _TURNS / _median(turns, y, clock, seconds))
    return Rates(2.0 * size**3 / product, *swept)


def _median(function: Any, x: Any, clock: Callable[[], float], seconds: float) -> float:
    function(x).block_until_ready()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 5:
        started = clock()
        function(x).block_until_ready()
        taken.append(clock() - started)
    return sorted(taken)[len(taken) // 2]
