"""Searches meshes, microbatches and remat choices for a run: candidates and their table."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.slices import Slice
from t5x_llm.core.units import size
from t5x_llm.nn.remat import REMAT
from t5x_llm.parallel import abstract_mesh
from t5x_llm.plan.compile import Plan
from t5x_llm.plan.gpus import Cluster
from t5x_llm.plan.of_run import reckon_run
from t5x_llm.plan.report import Work, figures
from t5x_llm.run.checks import check_fits
from t5x_llm.run.config import Run

_REMAT = ("save_projections", "save_attention_up", "save_attention", "save_qkv", "full")
# A candidate that by arithmetic needs more than this times a device's memory is not compiled: the
# activations are those before fusion, and have been half as much again as the compiler's.
FAR = 1.6
_TWIN = 1.1
_LONG = 16384  # tokens of a row from which splits of the sequence are tried


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Candidate of a search.

    Attributes:
      run: the run with its mesh, microbatches and remat choice.
      reckoned: its plan by arithmetic.
      work: the work of its step.
      plan: its compiled plan, or None if it was not compiled.
    """

    run: Run
    reckoned: Plan
    work: Work
    plan: Plan | None = None

    @property
    def exceeds_memory(self) -> bool:
        """Returns True if by arithmetic memory does not suffice: by far, or for what is exact."""
        memory = self.reckoned.memory
        assert memory is not None
        exact = memory.parameters + memory.optimizer
        return exact > memory.available or memory.total > FAR * memory.available

    @property
    def order(self) -> tuple[bool, float]:
        """Sort key of compilation: candidates that should fit come first, by their time."""
        assert self.reckoned.time is not None
        # To arithmetic a second data axis is all but the same: others are tried before.
        twin = _TWIN if self.work.mesh["data"] > 1 else 1.0
        return not self.reckoned.fits, twin * self.reckoned.time.total


def candidates(
    run: Run,
    machine: Slice | Cluster,
    slices: int = 1,
    tokens: float | None = None,
    price: float | None = None,
) -> list[Candidate]:
    """Returns the run, and others like it that its mesh and batch allow, the likeliest first.

    Args:
      run: see ``reckon_run``, as for the others.
      machine: a slice or GPUs.
      slices: number of TPU slices.
      tokens: see ``Work``.
      price: see ``Work``.
    """
    first = Candidate(run, *reckon_run(run, machine, slices, tokens, price))
    devices = math.prod(first.work.mesh.values())
    seen, found = {_key(run, devices)}, []
    for changes in _changes(run, devices):
        try:
            other = dataclasses.replace(run, **changes)
            if _key(other, devices) in seen:
                continue
            seen.add(_key(other, devices))
            check_fits(other, abstract_mesh(other.mesh, devices))
        except ConfigError:
            continue
        found.append(Candidate(other, *reckon_run(other, machine, slices, tokens, price)))
    return [first, *sorted(found, key=lambda c: c.order)]


def _key(run: Run, devices: int) -> tuple[object, ...]:
    shape = tuple(run.mesh.shape(devices).items())
    return shape, run.mesh.sequence_sharded, run.loop.microbatches, run.remat


def _changes(run: Run, devices: int) -> Iterator[dict[str, Any]]:
    """Yields fields of runs: splits of the devices between axes, microbatches, remat choices."""
    mesh, loop = run.mesh, run.loop
    rest = mesh.shape(devices)
    free = devices // (rest["replica"] * rest["stage"] * rest["expert"])
    contexts = {rest["context"], 1, 2, 4} if loop.sequence_length >= _LONG else {rest["context"]}
    microbatches = sorted({loop.microbatches, 1, 2, 4, 8, 16})
    for tensor, data, context in itertools.product((1, 2, 4, 8), (1, 2), sorted(contexts)):
        if free % (tensor * data * context):
            continue
        split: dict[str, Any] = {"data": data, "context": context, "tensor": tensor}
        split |= {axis: rest[axis] for axis in ("replica", "stage", "expert")}
        split["fsdp"] = free // (tensor * data * context)
        split["sequence_sharded"] = tensor > 1 or mesh.sequence_sharded
        try:
            other = dataclasses.replace(mesh, **split)
        except ConfigError:
            continue
        for parts, remat in itertools.product(microbatches, [r for r in _REMAT if r in REMAT]):
            if loop.batch_size % parts == 0:
                ahead = dataclasses.replace(loop, microbatches=parts)
                yield {"mesh": other, "loop": ahead, "remat": remat}


def search(
    found: Sequence[Candidate], most: int, plan_of: Callable[[Run], tuple[Plan, Work]]
) -> list[Candidate]:
    """Compiles the likeliest and says on stderr how it goes.

    Args:
      found: the run first; then the likeliest first.
      most: compilations.
      plan_of: compiles a run.

    Returns:
      The compiled, the fastest that fits first; then what arithmetic rules out, by how much; then
      what it calls slower.
    """
    tried = [found[0], *(c for c in found[1:] if not c.exceeds_memory)][:most]
    chosen = {id(c) for c in tried}
    others = [c for c in found if id(c) not in chosen]
    excluded = sum(c.exceeds_memory for c in others)
    print(
        f"{len(found)} candidates: {len(tried)} are compiled, {excluded} cannot fit by arithmetic, "
        f"{len(others) - excluded} are slower by it.",
        file=sys.stderr,
    )
    started, done = time.monotonic(), []
    for i, candidate in enumerate(tried):
        plan, work = plan_of(candidate.run)
        done.append(dataclasses.replace(candidate, plan=plan, work=work))
        spent = time.monotonic() - started
        left = spent / (i + 1) * (len(tried) - i - 1)
        print(
            f"{i + 1:>3}/{len(tried)} {row(done[-1])}  ({spent:.0f} s, about {left:.0f} s to go)",
            file=sys.stderr,
            flush=True,
        )
    done.sort(key=_rank)
    return [*done, *sorted(others, key=lambda c: (not c.exceeds_memory, c.order))]


def reckoned(found: Sequence[Candidate]) -> list[Candidate]:
    """Plans candidates by arithmetic, for GPUs, which nothing is compiled for."""
    likely = [dataclasses.replace(c, plan=c.reckoned) for c in found if not c.exceeds_memory]
    return [*sorted(likely, key=_rank), *(c for c in found if c.exceeds_memory)]


def _rank(candidate: Candidate) -> tuple[bool, float]:
    plan = candidate.plan
    assert plan is not None
    return not plan.fits, plan.time.total if plan.fits and plan.time else plan.over


def row(candidate: Candidate) -> str:
    """Formats a line of the table."""
    plan, work = candidate.plan or candidate.reckoned, candidate.work
    axes = " ".join(f"{axis}={n}" for axis, n in work.mesh.items() if n > 1) or "one device"
    loop = candidate.run.loop
    line = f"{axes:<28}{loop.microbatches:>4}  {candidate.run.remat:<18}"
    if plan.memory is None:
        return f"{line}{'':>12}{'':>11}{'':>8}  refused: over by {size(plan.over)}"
    line += f"{size(plan.memory.total):>12}"
    if plan.time is not None:
        line += f"{plan.time.total:>9.4f} s{figures(plan, work)['mfu']:>8.1%}"
    note = "" if plan.fits else f"over by {size(plan.over)}"
    if candidate.plan is None:
        note = "by arithmetic" + (f": {note}" if note else "")
    return f"{line}  {note}".rstrip()


def table(done: Sequence[Candidate], most: int = 12) -> list[str]:
    """Formats the plans, and as much of the rest as ``most`` lines have room for."""
    head = f"{'mesh':<28}{'parts':>4} {'remat':<18}{'memory':>12}{'step':>11}{'MFU':>8}"
    compiled = [c for c in done if c.plan is not None]
    out = [c for c in done if c.plan is None and c.exceeds_memory]
    slower = [c for c in done if c.plan is None and not c.exceeds_memory]
    lines = [head, *map(row, compiled[: 2 * most])]
    if len(compiled) > 2 * most:
        lines.append(f"... and {len(compiled) - 2 * most} more")
    for title, rows in (("ruled out", out), ("not tried", slower)):
        if rows:
            lines.append(f"{title}, by arithmetic alone:")
            lines += [row(c) for c in rows[: most // 2]]
        if len(rows) > most // 2:
            lines.append(f"... and {len(rows) - most // 2} more")
    return lines


def bindings(candidate: Candidate) -> list[str]:
    """Returns the gin bindings that a search chooses."""
    run, shape = candidate.run, candidate.work.mesh
    lines = [f"MeshConfig.{axis} = {n}" for axis, n in shape.items() if axis != "stage"]
    lines.append(f"MeshConfig.sequence_sharded = {run.mesh.sequence_sharded}")
    return [*lines, f"Loop.microbatches = {run.loop.microbatches}", f"Run.remat = {run.remat!r}"]
