"""How long a step takes, read off its schedule. An estimate: compare plans with it, no more.

Compute is what libtpu's own cost model says: the ``estimated_cycles`` of every instruction, loops
multiplied by their trips, over an assumed clock. Pallas kernels carry no estimate; attention's and
the experts' are counted by their matrix products at ``KERNEL_SHARE`` of the chip's peak.
Collectives that run beside computation are taken as hidden as far as there is computation; the
others add what they take at full link bandwidth. Left out: launch overheads, the host, stragglers,
thermal limits, and memory traffic beyond the cost model.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from t5x_llm.core.slices import Slice
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.collectives import Collective
from t5x_llm.plan.hlo import Instruction, Module, Shape

KERNEL_SHARE = 0.6
# Matrix products of a splash attention kernel, of [T, S] x H each.
_PRODUCTS = (("fwd", 2), ("dq", 3), ("dkv", 4))


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one device.

    Attributes:
      compute: libtpu's cycles over the clock.
      kernels: Pallas kernels, analytically.
      exposed: collectives that computation waits for.
      hidden: collectives beside computation, if each had its links to itself.
      unknown: kernels of other kinds, by name.
    """

    compute: float
    kernels: float
    exposed: float
    hidden: float
    unknown: tuple[str, ...]

    @property
    def total(self) -> float:
        """Of the step."""
        beside = max(self.hidden - self.compute - self.kernels, 0.0)
        return self.compute + self.kernels + self.exposed + beside


def step_time(module: Module, found: Sequence[Collective], slice_: Slice) -> StepTime:
    """Adds up a compiled step.

    Args:
      module: of the step.
      found: its collectives.
      slice_: what it was compiled for.
    """
    chip = CHIPS[slice_.generation]
    peak = slice_.facts.device_peak
    cycles, kernels, unknown = 0, 0.0, set()
    for instruction, times in module.scheduled():
        if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.text:
            flops = kernel_flops(instruction, module)
            if flops is None:
                unknown.add(instruction.name)
            else:
                kernels += times * flops / (peak * KERNEL_SHARE)
        else:
            cycles += times * _cycles(instruction, module)
    seconds = {True: 0.0, False: 0.0}
    for one in found:
        bandwidth = chip.dcn if "replica" in one.axes else chip.link * max(len(one.axes), 1)
        seconds[one.hidden] += one.sent / bandwidth
    return StepTime(
        compute=cycles / chip.clock,
        kernels=kernels,
        exposed=seconds[False],
        hidden=seconds[True],
        unknown=tuple(sorted(unknown)),
    )


def _cycles(instruction: Instruction, module: Module) -> int:
    """Its own estimate, or that of what it fuses."""
    if (own := instruction.cycles) is not None:
        return own
    if instruction.opcode != "fusion":
        return 0
    inner = (module.computations[name] for name in instruction.called.get("calls", ()))
    return sum(_cycles(i, module) for instructions in inner for i in instructions)


def kernel_flops(instruction: Instruction, module: Module) -> float | None:
    """FLOPs of one call of a kernel whose work its shapes tell; None of another kernel."""
    given = (module.named.get(operand) for operand in instruction.operands)
    shapes = [shape for other in given if other is not None for shape in other.shapes]
    if "splash" in instruction.name:
        return _splash_flops(instruction.name, shapes)
    if re.search(r"\bt?gmm\b", instruction.op_name) and instruction.shapes:
        return _grouped_flops(instruction.shapes[0], shapes)
    return None


def _splash_flops(name: str, shapes: Sequence[Shape]) -> float | None:
    """Of splash attention, causal.

    The largest array [B, N, T, H] among its operands are the queries; keys are as long, and half
    of the T x T products are skipped.
    """
    products = next((n for kind, n in _PRODUCTS if re.search(rf"splash\w*_{kind}", name)), None)
    queries = max((s for s in shapes if len(s.dims) >= 3), key=lambda s: s.bytes, default=None)
    if queries is None or products is None:
        return None
    *rows, length, head = queries.dims
    return products * math.prod(rows) * float(length) ** 2 * head


def _grouped_flops(result: Shape, shapes: Sequence[Shape]) -> float | None:
    """Of megablox (arXiv 2211.15841), every row taken to be in use.

    Either [rows, K] by [E, K, N] gives [rows, N], or rows with rows give [E, K, N].
    """
    flat = [s for s in shapes if len(s.dims) == 2 and s.dtype != "s32"]
    stacked = [s for s in (result, *shapes) if len(s.dims) == 3]
    if not flat or not stacked:
        return None
    kernel = math.prod(stacked[0].dims[1:])
    return 2.0 * kernel * (result.dims[0] if len(result.dims) == 2 else flat[-1].dims[0])
