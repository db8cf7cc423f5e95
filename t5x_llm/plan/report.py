"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.core.slices import Slice
from t5x_llm.core.units import size
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.collectives import summed
from t5x_llm.plan.compile import Plan
from t5x_llm.plan.time import KERNEL_SHARE
from t5x_llm.train.flops import CONVENTION

_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does, and what the run is for.

    Attributes:
      name: of the model and its size.
      slice: one slice.
      slices: how many.
      mesh: axis sizes.
      rows: B of a step.
      length: T.
      parameters: all of them.
      flops_per_token: by the convention of ``train/flops.py``.
      tokens: of the run, or None.
      price: of a chip-hour, or None.
      settings: what else was chosen, in words.
    """

    name: str
    slice: Slice
    slices: int
    mesh: dict[str, int]
    rows: int
    length: int
    parameters: int
    flops_per_token: float
    tokens: float | None
    price: float | None
    settings: str

    @property
    def chips(self) -> int:
        """All of them."""
        return self.slice.chips * self.slices


def figures(plan: Plan, work: Work) -> dict[str, Any]:
    """The plan as data: bytes, seconds, shares."""
    data: dict[str, Any] = {
        "model": work.name,
        "parameters": work.parameters,
        "slice": work.slice.accelerator_type or f"v7x-{work.chips * 2}",
        "slices": work.slices,
        "mesh": work.mesh,
        "settings": work.settings,
        "fits": plan.fits,
        "over_bytes": plan.over,
        "compile_seconds": plan.seconds,
        "compile_cpu_seconds": plan.cpu_seconds,
    }
    if plan.memory is None or plan.time is None:
        return data
    step = plan.time.total
    per_step = work.rows * work.length
    peak = work.slice.facts.peak * work.chips
    tokens_per_second = per_step / step
    data |= {
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total},
        "buffers": [dataclasses.asdict(b) for b in plan.buffers],
        "collectives": [dataclasses.asdict(t) for t in summed(plan.collectives)],
        "time": dataclasses.asdict(plan.time) | {"total": step},
        "tokens_per_step": per_step,
        "tokens_per_day": tokens_per_second * _DAY,
        "mfu": work.flops_per_token * tokens_per_second / peak,
    }
    if work.tokens is not None:
        data["days"] = work.tokens / tokens_per_second / _DAY
        # The rule of thumb with recomputation, 8 T P / (n X), at the peak that X is half of.
        data["textbook_days"] = 8 * work.tokens * work.parameters / (peak / 2) / _DAY
        if work.price is not None:
            data["cost"] = data["days"] * 24 * work.chips * work.price
    return data


def text(plan: Plan, work: Work) -> str:
    """The report."""
    axes = " x ".join(f"{axis}={n}" for axis, n in work.mesh.items() if n > 1) or "one device"
    many = f"{work.slices} x " if work.slices > 1 else ""
    lines = [
        f"{work.name}, {work.parameters:,} parameters",
        f"{many}{work.slice.chips} chips of {work.slice.generation} ({work.slice.topology_name}), "
        f"mesh {axes}",
        f"{work.rows} rows of {work.length}, {work.settings}",
        "",
        _verdict(plan, work),
    ]
    if plan.memory is not None and plan.time is not None:
        lines += ["", *_memory(plan), "", *_collectives(plan), "", *_time(plan, work)]
    took = f"{plan.seconds:.0f} s ({plan.cpu_seconds:.0f} s of CPU time)"
    lines += ["", f"Compiled by libtpu in {took}; nothing was run."]
    return "\n".join(lines)


def _verdict(plan: Plan, work: Work) -> str:
    available = CHIPS[work.slice.generation].hbm
    if plan.fits:
        used = size(available + plan.over)
        return f"FITS: {used} of {size(available)}, {size(-plan.over)} are left."
    return (
        f"DOES NOT FIT: {size(plan.over)} more than the {size(available)} of a device.\n"
        "What to change, the cheapest first: Run.remat = 'full'; Loop.microbatches doubled;\n"
        "more of the mesh in fsdp or tensor; fewer rows, or shorter ones; a larger slice.\n"
        "--search tries the first three."
    )


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    assert memory is not None
    rows = [(name, getattr(memory, name)) for name in ("parameters", "optimizer", "batch")]
    rows += [("temporaries", memory.temporaries), ("program", memory.code), ("all", memory.total)]
    lines = ["Memory of a device (exact; temporaries are the compiler's)"]
    lines += [f"  {name:<14}{size(n):>12}" for name, n in rows]
    lines += ["Largest temporaries alive at once (from the schedule, tiles not padded)"]
    for b in plan.buffers:
        count = f"{b.count} x " if b.count > 1 else ""
        lines.append(f"  {size(b.bytes * b.count):>12}  {count}{b.shape}  {b.line or b.op_name}")
    return lines


def _collectives(plan: Plan) -> list[str]:
    lines = [
        "Collectives of a step, on one device",
        f"  {'kind':<20}{'axes':<22}{'calls':>6}{'arrays':>13}{'sent':>13}{'hidden':>8}",
    ]
    for row in summed(plan.collectives):
        axes = "+".join(row.axes) or "-"
        lines.append(
            f"  {row.kind:<20}{axes:<22}{row.count:>6}{size(row.bytes):>13}"
            f"{size(row.sent):>13}{row.hidden:>8.0%}"
        )
    return lines if len(lines) > 2 else ["No collectives."]


def _time(plan: Plan, work: Work) -> list[str]:
    time, data = plan.time, figures(plan, work)
    assert time is not None
    lines = ["Estimated time of a step"]
    for name, seconds, what in (
        ("compute", time.compute, "libtpu's estimated cycles, loops by their trips"),
        ("kernels", time.kernels, f"attention kernels at {KERNEL_SHARE:.0%} of peak"),
        ("exposed", time.exposed, "collectives that are waited for, at full link bandwidth"),
        ("hidden", time.hidden, "collectives beside computation"),
        ("step", time.total, "compute, kernels, exposed, and what hiding has no room for"),
    ):
        lines.append(f"  {name:<10}{seconds:>9.4f} s  {what}")
    if time.unknown:
        lines.append(f"  not estimated: {', '.join(time.unknown)}")
    lines += [
        f"MFU {data['mfu']:.1%} ({CONVENTION})",
        f"{data['tokens_per_day']:.4g} tokens a day",
        "Left out: launches, host, stragglers, memory traffic beyond the cost model. On the one",
        "published figure at hand such an estimate was some 15% optimistic: compare plans with it.",
    ]
    if "days" in data:
        line = f"{work.tokens:.3g} tokens: {data['days']:.3g} days"
        line += f", {data['cost']:,.0f} at {work.price:g} a chip-hour" if "cost" in data else ""
        lines.append(f"{line} (8 T P / (n X) at half of peak: {data['textbook_days']:.3g} days)")
    return lines
