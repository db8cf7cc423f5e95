"""Changes that a run plans, for the guard: what another configuration changes among them."""

from __future__ import annotations

import functools
from typing import Any

import jax

from t5x_llm.config import to_dict
from t5x_llm.data.positions import DataState, History, Ranges
from t5x_llm.data.stream import Stream
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData
from t5x_llm.train.feed import Position
from t5x_llm.train.planned import RunPhases, Values


def make_phases(run: Run, data: OpenData) -> RunPhases:
    """Returns the phases of a run.

    A run that is continued with other settings begins a phase there: the settings are part of the
    phases' names, which checkpoints hold.
    """
    loop, stream = run.loop, data.stream
    growing: list[Values] = [jax.jit(run.optimizer.schedule.build(loop.steps))]
    if run.embed_gradient is not None:
        growing.append(jax.jit(run.embed_gradient.build()))
    least = 2 * run.spike.warmup * loop.batch_size
    binned = any(reader.order.bins > 1 for reader in stream.readers.values())
    return RunPhases(
        loop,
        growing,
        functools.partial(_section, stream, least) if binned else None,
        data={
            "rows": stream.fingerprint,
            "model": to_dict(run.model),
            "stability": to_dict(run.stability),
            "neftune": run.neftune,
            "precision": to_dict(run.precision),
        },
        course=course(run),
    )


def course(run: Run) -> dict[str, Any]:
    """Returns what decides the updates of a run, by name; runs of equal ones are alike in it."""
    some = {"label_smoothing": run.label_smoothing} if run.label_smoothing else {}
    some |= {"task": to_dict(run.task)} if run.task else {}
    return some | {
        "optimizer": to_dict(run.optimizer),
        # More steps of the same learning rates are no change.
        "steps": run.optimizer.schedule.end(run.loop.steps),
        "batch": run.loop.sizes,
        "z_loss": run.z_loss,
        "embed_gradient": to_dict(run.embed_gradient),
    }


def _section(stream: Stream, least: int, state: Position, position: int) -> str:
    assert isinstance(state, DataState)
    return _at(stream, state.history, state.skips).section(position, least)


_kept: list[tuple[Stream, History, Ranges, Stream]] = []


def _at(stream: Stream, history: History, skips: Ranges) -> Stream:
    """Returns ``stream.at`` of a state; a run asks for the same one at every step."""
    for known in _kept:
        if known[0] is stream and known[1] is history and known[2] is skips:
            return known[3]
    made = stream.at(DataState(0, history, skips))
    _kept[:] = [(stream, history, skips, made)]
    return made
