"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.core.slices import Slice
from t5x_llm.core.units import size
from t5x_llm.plan import analytic
from t5x_llm.plan.collectives import summed
from t5x_llm.plan.compile import Plan
from t5x_llm.plan.gpus import Cluster
from t5x_llm.plan.host import Here
from t5x_llm.plan.time import KERNEL_SHARE
from t5x_llm.train.flops import CONVENTION

_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Work:
    """Description of the planned step and its run, for the report.

    Attributes:
      name: of the model and its size.
      slice: one slice, or all GPUs, or this machine.
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
    slice: Slice | Cluster | Here
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
        "analytic": plan.analytic,
        "fits": plan.fits,
        "over_bytes": plan.over,
        "compile_seconds": plan.seconds,
        "compile_cpu_seconds": plan.cpu_seconds,
    }
    if plan.memory is None:
        return data
    data |= {
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total},
        "buffers": [dataclasses.asdict(b) for b in plan.buffers],
        "collectives": [dataclasses.asdict(t) for t in summed(plan.collectives)],
    }
    if plan.time is None:
        return data
    step = plan.time.total
    per_step = work.rows * work.length
    peak = work.slice.facts.peak * work.chips
    tokens_per_second = per_step / step
    data |= {
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


@dataclasses.dataclass(frozen=True)
class Change:
    """Something that a plan that does not fit could change.

    Attributes:
      binding: gin lines.
      bytes: of a device then, by arithmetic.
      fits: whether that is no more than there is.
    """

    binding: str
    bytes: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Remedies:
    """Changes to try where a plan does not fit, by arithmetic; bytes of a device.

    Attributes:
      changes: the fastest first.
      reckoned: bytes of the plan itself.
      state: of its parameters and optimizer, exact.
      available: of a device.
      larger: the smallest slice that it fits, as a flag and gin lines; None where one of the
        changes fits, or no slice.
    """

    changes: tuple[Change, ...]
    reckoned: float
    state: float
    available: float
    larger: Change | None


def text(plan: Plan, work: Work, remedies: Remedies | None = None) -> str:
    """The report.

    Args:
      plan: what was found.
      work: what it was found for.
      remedies: what to try where it does not fit.
    """
    axes = " x ".join(f"{axis}={n}" for axis, n in work.mesh.items() if n > 1) or "one device"
    many = f"{work.slices} x " if work.slices > 1 else ""
    lines = [
        f"{work.name}, {work.parameters:,} parameters",
        f"{many}{work.slice.chips} chips of {work.slice.generation} ({work.slice.topology_name}), "
        f"mesh {axes}",
        f"{work.rows} rows of {work.length}, {work.settings}",
        "",
    ]
    if plan.analytic:
        lines += [
            "ANALYTIC: reckoned from shapes, rule tables and data sheets; nothing was compiled.",
            "State is exact; the rest may be off by tens of per cent.",
            "",
        ]
    lines += _verdict(plan, remedies)
    if plan.memory is not None:
        lines += ["", *_memory(plan), "", *_collectives(plan)]
    if plan.time is not None:
        lines += ["", *_time(plan, work)]
    if not plan.analytic:
        took = f"{plan.seconds:.0f} s ({plan.cpu_seconds:.0f} s of CPU time)"
        by = "for this machine" if isinstance(work.slice, Here) else "by libtpu"
        lines += ["", f"Compiled {by} in {took}; nothing was run."]
    return "\n".join(lines)


def _verdict(plan: Plan, remedies: Remedies | None) -> list[str]:
    available = plan.available
    if plan.fits:
        used = size(available + plan.over)
        return [f"FITS: {used} of {size(available)}, {size(-plan.over)} are left."]
    lines = [f"DOES NOT FIT: {size(plan.over)} more than the {size(available)} of a device."]
    if remedies is None:
        return [
            *lines,
            "What to change, the cheapest first: Run.remat = 'full'; Loop.microbatches doubled;",
            "more of the mesh in fsdp or tensor; fewer rows, or shorter ones; a larger slice.",
        ]
    if remedies.state > remedies.available:
        lines += [
            f"Parameters and optimizer alone take {size(remedies.state)} of "
            f"{size(remedies.available)}: smaller activations cannot help.",
        ]
    if remedies.changes or remedies.larger:
        lines.append("What to change, and the memory of a device then, by arithmetic")
        lines.append(f"(which gives {size(remedies.reckoned)} for this plan):")
    for each in (*remedies.changes, *filter(None, [remedies.larger])):
        word = "fits" if each.fits else "does not fit"
        lines.append(f"  {each.binding:<58}{size(each.bytes):>12}  {word}")
    if not remedies.larger and not any(each.fits for each in remedies.changes):
        lines.append(
            "Nothing of it fits, nor a larger machine of this kind with more of its mesh in fsdp."
        )
    return lines


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    assert memory is not None
    rows = [
        ("parameters", memory.parameters, "exact"),
        ("optimizer", memory.optimizer, "exact"),
        ("batch", memory.batch, "the step's other arguments"),
        ("activations", memory.activations, "the forward pass's values at the fullest moment"),
        ("temporaries", memory.temporaries, "gradients, copies, collectives, padding"),
        ("program", memory.code, ""),
        ("all", memory.total, "" if plan.analytic else "the compiler's account"),
    ]
    lines = ["Memory of a device"]
    lines += [f"  {name:<14}{size(n):>12}  {what}".rstrip() for name, n, what in rows]
    if plan.buffers:
        lines.append("Largest temporaries alive at once (from the schedule, tiles not padded)")
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
    for name, what in _model(plan, work).items():
        lines.append(f"  {name:<10}{getattr(time, name):>9.4f} s  {what}")
    lines.append(f"  {'step':<10}{time.total:>9.4f} s  these, and what hiding has no room for")
    if time.network:
        said = f"of the two above, between slices; {time.network_exposed:.4f} s are waited for"
        lines.append(f"  {'network':<10}{time.network:>9.4f} s  {said}")
    if time.unknown:
        lines.append(f"  not estimated: {', '.join(time.unknown)}")
    lines += [
        f"MFU {data['mfu']:.1%} ({CONVENTION})",
        f"{data['tokens_per_day']:.4g} tokens a day",
    ]
    if not plan.analytic and isinstance(work.slice, Slice):
        lines += [
            "Left out: launches, host, stragglers, memory traffic beyond the cost model. On the",
            "one published figure at hand this was some 15% optimistic: compare plans with it.",
        ]
    elif plan.analytic:
        lines.append("Left out: launches, host, stragglers, caches, what fusion saves.")
    else:
        lines += [
            "Left out: what is dearer than a product or an addition, threads that wait. On five",
            "small shapes such an estimate was 4% to 34% optimistic.",
        ]
    if "days" in data:
        line = f"{work.tokens:.3g} tokens: {data['days']:.3g} days"
        line += f", {data['cost']:,.0f} at {work.price:g} a chip-hour" if "cost" in data else ""
        lines.append(f"{line} (8 T P / (n X) at half of peak: {data['textbook_days']:.3g} days)")
    return lines


def _model(plan: Plan, work: Work) -> dict[str, str]:
    """Returns by part of the step's time, in words, what it is reckoned from."""
    if plan.analytic:
        share = work.slice.facts.share if isinstance(work.slice, Cluster) else analytic.MATMUL
        rates = f"products at {share:.0%} of peak, memory traffic at "
        return {
            "compute": f"{rates}{analytic.TRAFFIC:.0%} of its bandwidth",
            "kernels": f"attention at {analytic.ATTENTION:.0%} of peak",
            "exposed": f"collectives that are waited for, links at {analytic.LINKS:.0%}",
            "hidden": "collectives beside computation",
        }
    if isinstance(work.slice, Here):
        return {"compute": "products and bytes at measured rates, loops by their trips"}
    return {
        "compute": "libtpu's estimated cycles, loops by their trips",
        "kernels": f"attention kernels at {KERNEL_SHARE:.0%} of peak",
        "exposed": "collectives that are waited for, at full link bandwidth",
        "hidden": "collectives beside computation",
    }
