"""Estimates the seconds of a step from its schedule, to compare plans with and no more.

Compute is what libtpu's own cost model says: the ``estimated_cycles`` of every instruction, loops
multiplied by their trips, over an assumed clock. Pallas kernels carry no estimate; attention's and
the experts' are counted by their matrix products at ``KERNEL_SHARE`` of the chip's peak.
Collectives take their bytes over the links of as many axes of the torus as the compiler says that
its algorithm uses (of one a mesh axis where it does not say), one after another. The schedule is
followed in its order: what is started and awaited apart is hidden as far as there is computation
between, and the rest is waited for; what goes between slices has the data-centre network, with
nobody else on it. Left out: launch overheads, the host, stragglers, thermal limits, and memory
traffic beyond the cost model.
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
      network: what goes between slices, hidden or waited for, at the network's full rate; part of
        the two above.
      network_exposed: of that, what computation waits for.
    """

    compute: float
    kernels: float
    exposed: float
    hidden: float
    unknown: tuple[str, ...]
    network: float = 0.0
    network_exposed: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the step."""
        beside = max(self.hidden - self.compute - self.kernels, 0.0)
        return self.compute + self.kernels + self.exposed + beside


def step_time(
    module: Module, found: Sequence[Collective], slice_: Slice
) -> tuple[StepTime, list[Collective]]:
    """Follows the schedule of a compiled step.

    Args:
      module: of the step.
      found: its collectives.
      slice_: what it was compiled for.

    Returns:
      The time, and the collectives with the share of each that is hidden.
    """
    followed = _Schedule(module, found, slice_)
    followed.run(module.entry, 1)
    spent = [one.times * followed.seconds(one) for one in found]
    shares = [
        0.0 if one.start == one.end or not all_ else max(1 - followed.waited[i] / all_, 0.0)
        for i, (one, all_) in enumerate(zip(found, spent, strict=True))
    ]
    time = StepTime(
        compute=followed.cycles / CHIPS[slice_.generation].clock,
        kernels=followed.kernels,
        exposed=math.fsum(followed.waited),
        hidden=math.fsum(s * share for s, share in zip(spent, shares, strict=True)),
        unknown=tuple(sorted(followed.unknown)),
        network=math.fsum(s for s, c in zip(spent, found, strict=True) if c.network),
        network_exposed=math.fsum(
            s for s, c in zip(followed.waited, found, strict=True) if c.network
        ),
    )
    timed = [dataclasses.replace(c, hidden=h) for c, h in zip(found, shares, strict=True)]
    return time, timed


class _Schedule:
    """Adds up what runs, in the schedule's order.

    Attributes:
      cycles: of the step.
      kernels: seconds of Pallas kernels.
      waited: seconds of the step for which computation waits, by collective.
      unknown: kernels whose work is not known.
    """

    def __init__(self, module: Module, found: Sequence[Collective], slice_: Slice):
        self.module, self.found, self.chip = module, found, CHIPS[slice_.generation]
        self.rate = slice_.facts.device_peak * KERNEL_SHARE
        self.starts: dict[str, list[int]] = {}
        self.ends: dict[str, list[int]] = {}
        for i, one in enumerate(found):
            self.starts.setdefault(one.start, []).append(i)
            self.ends.setdefault(one.end, []).append(i)
        self.cycles, self.kernels, self.unknown = 0, 0.0, set[str]()
        self.waited = [0.0] * len(found)

    def seconds(self, one: Collective) -> float:
        """Seconds of one call that has the links to itself."""
        axes = one.links or max(len(one.axes), 1)
        rate = self.chip.dcn if one.network else self.chip.link * axes
        return one.sent / one.times / rate

    def run(self, name: str, times: int) -> float:
        """Seconds of one run of a computation that the step runs so often."""
        now = 0.0
        free = {True: 0.0, False: 0.0}  # of the data-centre network, of the links
        until: dict[int, float] = {}
        for instruction in self.module.computations[name]:
            before, now = now, now + self._own(instruction, times)
            for i in self.starts.get(instruction.name, ()):
                one = self.found[i]
                ready = now if one.start == one.end else before
                until[i] = max(ready, free[one.network]) + self.seconds(one)
                free[one.network] = until[i]
            for i in self.ends.get(instruction.name, ()):
                if (wait := until.pop(i, 0.0) - now) > 0:
                    now += wait
                    self.waited[i] += wait * times
        return now

    def _own(self, instruction: Instruction, times: int) -> float:
        """Seconds of an instruction and what it calls; branches as if each ran."""
        if instruction.opcode in ("while", "conditional", "call"):
            inside = self.module.turns(instruction)
            return math.fsum(turns * self.run(name, times * turns) for name, turns in inside)
        if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.text:
            flops = kernel_flops(instruction, self.module)
            if flops is None:
                self.unknown.add(instruction.name)
                return 0.0
            self.kernels += times * flops / self.rate
            return flops / self.rate
        cycles = _cycles(instruction, self.module)
        self.cycles += times * cycles
        return cycles / self.chip.clock


def _cycles(instruction: Instruction, module: Module) -> int:
    """Returns libtpu's estimate for an instruction, or the sum for what it fuses."""
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
    """FLOPs of a splash attention kernel, causal; None if it is none.

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
    """FLOPs of a megablox kernel (arXiv 2211.15841), every row in use; None if it is none.

    Either [rows, K] by [E, K, N] gives [rows, N], or rows with rows give [E, K, N].
    """
    flat = [s for s in shapes if len(s.dims) == 2 and s.dtype != "s32"]
    stacked = [s for s in (result, *shapes) if len(s.dims) == 3]
    if not flat or not stacked:
        return None
    kernel = math.prod(stacked[0].dims[1:])
    return 2.0 * kernel * (result.dims[0] if len(result.dims) == 2 else flat[-1].dims[0])
