"""Rewinds a run to the newest checkpoint before a spike, and skips the data that caused it.

A rewind is decided once and written down before anything is restored. A process that is killed
afterwards finds the decision in the journal when it is started again: ``not_rewound_past`` says
which checkpoints still hold, and their data states take the skips of all decisions (see
``Recovery.begin``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.core.errors import CheckpointError, DataError, SpikeError
from t5x_llm.data.blending import Blend
from t5x_llm.data.positions import DataState, History, Skips, merge_ranges
from t5x_llm.train.hooks.base import Hook, restore_hooks
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.journal import Decision, Journal
from t5x_llm.train.loop import Start, Trainer
from t5x_llm.train.spike import Spike, SpikeConfig
from t5x_llm.train.state import TrainState

Restored = tuple[TrainState, DataState, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Functions that restore states and describe the data of a spike.

    Attributes:
      restore: step -> (state, its data state, meta of the checkpoint); None gives the initial one.
      describe: (data state, first position, number of positions) -> their documents and sources,
        for the journal.
      blend: the mixtures as configured now.
    """

    restore: Callable[[int | None], Restored]
    describe: Callable[[DataState, int, int], Mapping[str, Any]]
    blend: Blend


def not_rewound_past(decisions: Sequence[Decision], meta: Mapping[str, Any]) -> bool:
    """Returns True if no rewind went back further than this checkpoint after it was made."""
    known = meta.get("rewinds", 0)
    return all(meta["step"] <= later.to_step for later in decisions[known:])


class Recovery:
    """Restores a run at its start and at a rewind.

    Args:
      config: thresholds and remedies.
      checkpointer: checkpoints of the run.
      hooks: hooks, whose state a checkpoint carries.
      journal: journal of the run, with the rewinds so far.
      origin: restores states and describes data.

    Attributes:
      guard: the ``Guard`` among the hooks.
    """

    def __init__(
        self,
        config: SpikeConfig,
        checkpointer: Checkpointer,
        hooks: Sequence[Hook],
        journal: Journal,
        origin: Origin,
    ):
        self.config, self.checkpointer, self.hooks = config, checkpointer, hooks
        self.decisions = journal.decisions
        self.guard = next(hook for hook in hooks if isinstance(hook, Guard))
        self._initial = {hook.name: hook.state() for hook in hooks}
        self._journal, self._origin = journal, origin
        self._history = mixture_history(journal.earlier)

    def begin(self) -> Start:
        """Restores the newest checkpoint that no rewind gave up, or begins from scratch."""
        start = time.perf_counter()
        step = self._newest(None)
        # What is newer is damaged, half-written or of a stretch that was given up.
        if step is not None or self.decisions:
            self.checkpointer.drop_after(-1 if step is None else step)
        state, data = self._restored(step)
        if step is not None:
            spent = time.perf_counter() - start
            self._journal.write("restore", step, seconds=spent, position=data.position)
        # From here on; what was read before stays as it was.
        at = Skips(data.skips).stream_position(data.position) if data.history else 0
        planned = self._origin.blend.history(data.history, at)
        if planned != data.history:
            for start, weights in added_entries(data.history, planned):
                self._journal.write("mixture", step or 0, stream_position=start, weights=weights)
            self._history = planned
            data = dataclasses.replace(data, history=planned)
        return Start(state, data, len(self.decisions), step)

    def _newest(self, at_most: int | None) -> int | None:
        return self.checkpointer.newest_sound(
            at_most=at_most, accept=lambda meta: not_rewound_past(self.decisions, meta)
        )

    def _restored(self, step: int | None) -> tuple[TrainState, DataState]:
        state, data, meta = self._origin.restore(step)
        restore_hooks(self.hooks, self._initial if step is None else meta["hooks"])
        skips = merge_ranges([*data.skips, *(d.skip for d in self.decisions)])
        history = self._history or data.history
        return state, dataclasses.replace(data, skips=skips, history=history)

    def rewind(self, trainer: Trainer, spike: Spike) -> None:
        """Decides, writes it down, and takes the run back.

        Raises:
          SpikeError: the limits on rewinds are reached.
        """
        self._allow(trainer, spike)
        start = time.perf_counter()
        target = spike.onset - self.config.rewind_steps
        with contextlib.suppress(CheckpointError):
            self.checkpointer.wait()
        step = self._newest(target) if target > 0 else None
        first = max(target, step or 0)
        position, _ = self.guard.position_before(first + 1)
        onset, size = self.guard.position_before(spike.onset)
        count = self.config.skip_batches * size
        data = trainer.data
        assert isinstance(data, DataState)  # what ``begin`` gave, moved forward by the feed
        where = Skips(data.skips).stream_position
        decision = Decision(
            onset=spike.onset,
            detected=spike.detected,
            to_step=step or 0,
            skip=(where(position), where(position + count - 1) + 1),
            kind=spike.kind,
            reason=spike.reason,
        )
        behind, last = self.guard.position_before(spike.detected)
        span = onset, behind + last - onset
        described = self._origin.describe(data, *span) if trainer.primary else {}
        verdict = dict(onset=spike.onset, kind=spike.kind, reason=spike.reason)
        trainer.report("spike", spike.detected, **verdict, **described)
        self._journal.decide(spike.detected, decision)
        if trainer.primary:
            print(_summary(decision, self.config), file=sys.stderr)
        self.checkpointer.drop_after(-1 if step is None else step)
        trainer.state, trainer.data = self._restored(step)
        trainer.step, trainer.rewinds = step or 0, len(self.decisions)
        spent = time.perf_counter() - start
        trainer.seconds["restore"] += spent
        trainer.report("restore", trainer.step, seconds=spent, position=trainer.data.position)

    def _allow(self, trainer: Trainer, spike: Spike) -> None:
        config = self.config
        near = [d for d in self.decisions if abs(spike.onset - d.onset) <= config.rewind_window]
        if len(self.decisions) < config.max_rewinds and len(near) < config.max_rewinds_per_window:
            return
        verdict = dict(onset=spike.onset, kind=spike.kind, reason=spike.reason)
        trainer.report("spike", spike.detected, **verdict)
        earlier = "\n".join(
            f"  spike at step {d.onset}, back to {d.to_step}: {d.reason}" for d in self.decisions
        )
        limit = (
            f"SpikeConfig.max_rewinds = {config.max_rewinds}"
            if len(self.decisions) >= config.max_rewinds
            else f"SpikeConfig.max_rewinds_per_window = {config.max_rewinds_per_window} "
            f"(within {config.rewind_window} steps)"
        )
        raise SpikeError(
            f"A spike began at step {spike.onset} ({spike.reason}), and the limit is reached: "
            f"{limit}.\nRewinds so far:\n{earlier or '  none'}\nSkipping data does not help here. "
            "Lower Schedule.peak or Optimizer.clip_norm, set Run.z_loss = 1e-4, or look at the "
            "documents of these steps (t5x-llm journal). The same command continues from the last "
            "checkpoint; raise the limit to let it go on as it is."
        )


def before(history: History, start: int) -> History:
    """Returns the part of a mixture's history that a change at stream position ``start`` leaves."""
    return tuple(entry for entry in history if entry[0] < start)


def added_entries(old: History, new: History) -> History:
    """Returns the entries that turn ``old`` into ``new``, each added to what ``before`` leaves."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return new[same:] or new[-1:]


def mixture_history(lines: Sequence[Mapping[str, Any]]) -> History:
    """Reads the history of the mixture from a journal: (stream position, weights) of each change.

    Raises:
      DataError: an entry cannot be read.
    """
    history: History = ()
    for line in lines:
        if line["event"] == "mixture":
            try:
                start = int(line["stream_position"])
                weights = {str(k): float(w) for k, w in line["weights"].items()}
            except (KeyError, TypeError, ValueError, AttributeError) as e:
                raise DataError(f"The journal's mixture cannot be read: {line!r}") from e
            history = (*before(history, start), (start, weights))
    return history


def _summary(decision: Decision, config: SpikeConfig) -> str:
    return (
        f"Spike at step {decision.onset}, seen at {decision.detected}: {decision.reason}. Back to "
        f"step {decision.to_step}; {config.skip_batches} batches are skipped, positions "
        f"{decision.skip[0]:,} to {decision.skip[1]:,} of the stream."
    )
