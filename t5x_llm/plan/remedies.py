"""Proposes what to change where a run does not fit: settings, then a larger slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.slices import Slice, parse_slice
from t5x_llm.plan.compile import Plan
from t5x_llm.plan.gpus import Cluster
from t5x_llm.plan.of_run import reckon_run
from t5x_llm.plan.report import Change, Remedies
from t5x_llm.run.config import Run

_FULL = "Run.remat = 'full'"


def remedies(run: Run, machine: Slice | Cluster, slices: int) -> Remedies:
    """Returns changes that make a run fit, the fastest first, and the memory of the run itself.

    One change at a time, then two. Where parameters and optimizer alone are too much, only what
    makes those smaller is looked at; where nothing fits, larger slices.
    """
    own = reckon_run(run, machine, slices)[0]
    assert own.memory is not None
    state = own.memory.parameters + own.memory.optimizer
    hopeless = state > own.memory.available
    found = []
    for words, change in _changes(run, machine, slices):
        planned = _planned(dataclasses.replace(run, **change), machine, slices)
        if planned is None or planned.memory is None or planned.time is None:
            continue
        if hopeless and planned.memory.parameters + planned.memory.optimizer >= state:
            continue
        proposed = Change(words, planned.memory.total, planned.fits)
        rank = planned.time.total if planned.fits else planned.over
        found.append((not planned.fits, rank, proposed))
    found.sort(key=lambda each: each[:2])
    enough = any(each[2].fits for each in found)
    larger = None
    if isinstance(machine, Slice) and not enough:
        larger = _larger(run, machine, slices)
    return Remedies(
        changes=tuple(each[2] for each in found),
        reckoned=own.memory.total,
        state=state,
        available=own.memory.available,
        larger=larger,
    )


def _planned(run: Run, machine: Slice | Cluster, slices: int) -> Plan | None:
    try:
        return reckon_run(run, machine, slices)[0]
    except ConfigError:
        return None


def _changes(
    run: Run, machine: Slice | Cluster, slices: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields gin lines and the fields of the run that they change."""
    loop, mesh = run.loop, run.mesh
    shape = reckon_run(run, machine, slices)[1].mesh
    less: dict[str, dict[str, Any]] = {}
    for times in (2, 4):
        parts = loop.microbatches * times
        if loop.batch_size % parts == 0:
            fewer = dataclasses.replace(loop, microbatches=parts)
            less[f"Loop.microbatches = {parts}"] = {"loop": fewer}
    options = {_FULL: {"remat": "full"}, **less}
    if shape["fsdp"] % 2 == 0:
        split: dict[str, Any] = {"fsdp": shape["fsdp"] // 2, "tensor": 2 * shape["tensor"]}
        words = "".join(f"MeshConfig.{axis} = {n}; " for axis, n in split.items())
        words += "MeshConfig.sequence_sharded = True"
        options[words] = {"mesh": dataclasses.replace(mesh, **split, sequence_sharded=True)}
    if mesh.strategy != "fsdp":
        cut = {"mesh": dataclasses.replace(mesh, strategy="fsdp")}
        options["MeshConfig.strategy = 'fsdp'"] = cut
    if not mesh.optimizer_on_host:
        hosted = {"mesh": dataclasses.replace(mesh, optimizer_on_host=True)}
        options["MeshConfig.optimizer_on_host = True"] = hosted
        options[f"{_FULL}; MeshConfig.optimizer_on_host = True"] = {"remat": "full", **hosted}
    for words, change in less.items():
        options[f"{_FULL}; {words}"] = {"remat": "full", **change}
    words, change = _least(run, shape)
    options[words] = change
    if not mesh.optimizer_on_host:
        options[f"{words}; MeshConfig.optimizer_on_host = True"] = {**change, **hosted}
    for words, change in options.items():
        if dataclasses.replace(run, **change) != run:
            yield words, change


def _least(run: Run, shape: dict[str, int]) -> tuple[str, dict[str, Any]]:
    """Returns the settings of the smallest activations: one row of a device at a time."""
    devices = shape["replica"] * shape["data"] * shape["fsdp"] * shape["expert"]
    parts, odd = divmod(run.loop.batch_size, devices)
    loop = run.loop if odd else dataclasses.replace(run.loop, microbatches=parts)
    return f"{_FULL}; Loop.microbatches = {loop.microbatches}", {"remat": "full", "loop": loop}


def _larger(run: Run, machine: Slice, slices: int) -> Change | None:
    """Returns the smallest slice of the generation that the run fits, more of it in ``fsdp``."""
    shape = reckon_run(run, machine, slices)[1].mesh
    facts = machine.facts
    for chips in range(machine.chips + 1, facts.most + 1):
        name = f"{machine.generation}-{chips * facts.cores}"
        fsdp, odd = divmod(shape["fsdp"] * chips, machine.chips)
        if odd:
            continue
        try:
            slice_ = parse_slice("--slice", name)
        except ConfigError:
            continue
        words = f"--slice={name}; MeshConfig.fsdp = {fsdp}"
        mesh = dataclasses.replace(run.mesh, fsdp=fsdp)
        least, smallest = _least(run, {**shape, "fsdp": fsdp})
        more: dict[str, dict[str, Any]] = {"": {}, _FULL: {"remat": "full"}, least: smallest}
        for other, change in more.items():
            plan = _planned(dataclasses.replace(run, mesh=mesh, **change), slice_, slices)
            if plan is not None and plan.fits and plan.memory is not None:
                return Change("; ".join(filter(None, (words, other))), plan.memory.total, True)
    return None
