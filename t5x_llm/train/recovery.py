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

from etils import epath

from t5x_llm.checkpoint import Checkpointer, agree
from t5x_llm.checkpoint.lost import meta_if_sound, once_complete, set_aside
from t5x_llm.core.errors import CheckpointError, DataError, SpikeError
from t5x_llm.data.blending import Blend
from t5x_llm.data.positions import DataState, History, Skips, merge_ranges
from t5x_llm.train.hooks.base import Hook, restore_hooks
from t5x_llm.train.hooks.guard import Guard
from t5x_llm.train.journal import Decision, Journal, decisions, read_journal
from t5x_llm.train.jsonl import Line
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


def saved_steps(lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """Returns the steps whose checkpoints a journal calls complete, and no later event gave up."""
    steps: set[int] = set()
    for line in lines:
        if line["event"] == "saved":
            steps.add(line["step"])
        elif line["event"] == "rewind":
            steps = {step for step in steps if step <= line.get("to_step", 0)}
        elif line["event"] == "restore":  # newer ones were dropped
            steps = {step for step in steps if step <= line["step"]}
        elif line["event"] == "set_aside":
            steps.clear()
    return steps


def lost_steps(checkpointer: Checkpointer, lines: Sequence[Line]) -> list[int]:
    """Returns the steps of the checkpoints that the run would lose if it began at step 0.

    Those that a rewind gave up are not among them, nor what a save that was cut off left.

    Args:
      checkpointer: checkpoints of the run, none of them sound.
      lines: the journal of the run.
    """
    saved, made = saved_steps(lines), decisions(lines)

    def given_up(step: int) -> bool:
        meta = meta_if_sound(checkpointer, step)
        if meta is not None:
            return not not_rewound_past(made, meta)
        return bool(made) and made[-1].to_step < step and step not in saved

    return [step for step in once_complete(checkpointer, saved) if not given_up(step)]


def none_is_sound(directory: epath.Path, steps: Sequence[int]) -> CheckpointError:
    """Returns the error of a run whose checkpoints are all damaged."""
    named = ", ".join(map(str, steps[-10:]))
    return CheckpointError(
        f"{directory} holds checkpoints (of step {named}), and none of them is sound: to begin at "
        "step 0 would lose the run. Nothing was changed. Restore the files from a copy, or begin "
        "anew with --resume=anew, which moves the damaged ones aside, or in another Run.directory."
    )


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

    def begin(self, anew: bool = False) -> Start:
        """Restores the newest checkpoint that no rewind gave up, or begins from scratch.

        Args:
          anew: where there are checkpoints and none is sound, move them aside and begin anew.

        Raises:
          CheckpointError: there are checkpoints, none is sound, and ``anew`` is False.
        """
        start = time.perf_counter()
        step = self._newest(None)
        if step is None:
            self._begin_anew(anew)
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

    def _begin_anew(self, allowed: bool) -> None:
        """Moves checkpoints aside of which none is sound; see ``begin``."""
        lost: list[int] = []
        if agree.primary():
            lost = lost_steps(self.checkpointer, self._journal.earlier)
        if not agree.from_first(len(lost)):
            return
        if not allowed:
            named = agree.first_text(",".join(map(str, lost[-10:])) if lost else None) or ""
            steps = [int(step) for step in named.split(",")]
            raise none_is_sound(self.checkpointer.directory, steps)
        target = set_aside(self.checkpointer)
        self._journal.write("set_aside", 0, steps=lost, directory=str(target))
        if agree.primary():
            print(f"warning: no checkpoint is sound; all were moved to {target}.", file=sys.stderr)

    def _newest(self, at_most: int | None) -> int | None:
        return self.checkpointer.newest_sound(at_most=at_most, accept=self._holds)

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
        if step is None and target > 0:
            step = self._oldest_before(spike)
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

    def _oldest_before(self, spike: Spike) -> int | None:
        """Returns the oldest checkpoint before a spike where earlier ones were, but are no more.

        They were removed as old (``CheckpointConfig.keep``) or are damaged: fewer steps back is
        better than back to step 0. None where there were none.

        Raises:
          CheckpointError: there were some, and all are damaged.
        """
        target = spike.onset - self.config.rewind_steps
        early: list[int] = []
        if agree.primary():
            saved = saved_steps(read_journal(self._journal.path))
            early = [s for s in {*once_complete(self.checkpointer, saved), *saved} if s <= target]
        if not agree.from_first(len(early)):
            return None
        step = self.checkpointer.oldest_sound(target + 1, spike.onset - 1, self._holds)
        if step is None:
            raise CheckpointError(
                f"A spike began at step {spike.onset} ({spike.reason}), and of the checkpoints "
                f"before it in {self.checkpointer.directory} none is sound: the run does not go "
                "back to step 0 by itself. Restore the files from a copy, keep more of them "
                "(CheckpointConfig.keep), or begin anew in another Run.directory."
            )
        return step

    def _holds(self, meta: Mapping[str, Any]) -> bool:
        return not_rewound_past(self.decisions, meta)

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
