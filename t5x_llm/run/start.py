"""Start of a run: its checkpoint, imported weights or fresh parameters."""

from __future__ import annotations

import collections
from typing import Any

import jax

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.core.paths import as_path, write_json
from t5x_llm.core.rng import named_key
from t5x_llm.data.positions import DataState, merge_ranges
from t5x_llm.models.base_storage import Storing
from t5x_llm.models.weight_map import Assembly
from t5x_llm.nn.adapters import roots
from t5x_llm.run import base
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.checks import check_start_from
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData
from t5x_llm.run.identity import check_config
from t5x_llm.run.thaw import restore_thawed, saved_trained
from t5x_llm.train import hooks as train_hooks
from t5x_llm.train.journal import JOURNAL, read_journal
from t5x_llm.train.recovery import Origin, Restored, lost_steps, none_is_sound
from t5x_llm.train.scoring import ScoringTask
from t5x_llm.train.state import init_state, state_from_params
from t5x_llm.train.task import LmTask

_DESCRIBED = 512  # examples of a spike whose documents are looked up


def resumed_step(run: Run, anew: bool = False) -> int | None:
    """Returns the step from which the run would continue, None if it would begin.

    Args:
      run: the configuration.
      anew: begin where there are checkpoints and none is sound.

    Raises:
      CheckpointError: the checkpoint was made by a configuration that differs, naming fields; or
        the metadata of all checkpoints are damaged, and ``anew`` is False.
    """
    directory = as_path(run.directory) / "checkpoints"
    if not directory.exists():
        return None
    checkpointer = Checkpointer(directory, run.checkpoint, read_only=True)
    try:
        if (found := checkpointer.newest_meta()) is None:
            lines = read_journal(as_path(run.directory) / JOURNAL)
            if not anew and (lost := lost_steps(checkpointer, lines)):
                raise none_is_sound(directory, lost)
            return None
        step, meta = found
        where = f"The checkpoint {checkpointer.path(step)}"
        check_config(run, meta, where)
        return step
    finally:
        checkpointer.close()


def make_origin(assembled: Assembled, data: OpenData, checkpointer: Checkpointer) -> Origin:
    """Returns the functions that restore a run's states and describe the documents of a spike."""
    run, task, tx, placement = assembled.run, assembled.task, assembled.tx, assembled.placement

    def restore(step: int | None) -> Restored:
        if step is None:
            fresh = DataState(skips=merge_ranges(run.loop.skips))
            if run.start_from is not None:
                params = imported(assembled)
                if isinstance(task, ScoringTask):
                    params = task.around(params, named_key(run.loop.seed, "params"))
                if run.adapter is not None:
                    return base.begin(assembled, params), fresh, {}
                return state_from_params(params, task, tx, placement), fresh, {}
            key = named_key(run.loop.seed, "params")
            return init_state(task, tx, key, placement), fresh, {}
        meta = checkpointer.meta(step)
        trained = saved_trained(meta)
        check_config(run, meta, f"The checkpoint {checkpointer.path(step)}")
        if run.adapter is not None:
            state, meta = base.restore(assembled, imported(assembled), checkpointer, step)
            return state, DataState.from_json(meta["data"]), meta
        if trained != run.optimizer.trained and isinstance(task, LmTask):
            state = restore_thawed(assembled, checkpointer, step, trained)
            return state, DataState.from_json(meta["data"]), meta
        state, meta = train_hooks.resume(checkpointer, assembled.state, None, step=step)
        return state, DataState.from_json(meta["data"]), meta

    def describe(state: DataState, first: int, count: int) -> dict[str, Any]:
        stream = data.stream.at(state)
        sources: collections.Counter[str] = collections.Counter()
        documents: dict[tuple[str, int], Any] = {}
        for position in range(first, first + min(count, _DESCRIBED)):
            for piece in stream.documents(position):
                sources[piece.source] += piece.stop - piece.start
                documents.setdefault((piece.source, piece.document), piece.provenance)
        named = [[name, p.file, p.line] for (name, _), p in documents.items()]
        return {"examples": [first, count], "tokens_by_source": sources, "documents": named[:200]}

    return Origin(restore, describe, data.stream.blend)


def start_message(run: Run, step: int | None) -> str:
    """Returns a line for people about the step from which a run continues; '' for a fresh run."""
    if step is None:
        return ""
    if step >= run.loop.steps:
        return f"{run.directory} is finished: step {step} of Loop.steps = {run.loop.steps} is done."
    return f"Continuing {run.directory} from step {step}."


def imported(assembled: Assembled) -> Any:
    """Imports the parameters of ``Run.start_from``, checked against the run's model.

    With adapters they are the base alone, as it is stored.

    Each goes to its devices as soon as it is read: the host never holds the model. The model's
    settings of generation are kept in the run's directory, for ``generate`` and for the export.
    """
    from t5x_llm.hf.generation import FILE
    from t5x_llm.hf.import_ import import_model

    run = assembled.run
    check_start_from(run)
    assert run.start_from is not None
    shardings = assembled.placement.state.params
    if run.adapter is not None:
        found = base.import_base(run, assembled.model, shardings[roots.BASE])
    else:
        storing: Any = Storing(assembled.model, run.precision.params, shardings)
        if run.task is not None:
            storing = _without_head(storing)
        found = import_model(run.start_from, build=storing)
    if found.generation and jax.process_index() == 0:
        write_json(as_path(run.directory) / FILE, found.generation)
    return found.params


def _without_head(storing: Storing) -> Any:
    """Returns a builder that leaves out the head over the vocabulary, of which None is made."""

    def build(path: str, assembly: Assembly) -> Any:
        return storing(path, assembly) if path in storing.shardings else None

    return build
