"""Base of a run with adapters: the frozen model of ``Run.start_from``, and its fingerprint."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.core.errors import CheckpointError
from t5x_llm.core.paths import as_path
from t5x_llm.core.rng import named_key
from t5x_llm.models.base_storage import Storing, abstract_stored
from t5x_llm.models.model import Model, Params
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.fewbit.stored import is_stored
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.config import Run
from t5x_llm.run.identity import MADE_FROM, newest_checkpoint
from t5x_llm.train.adapted import AdapterTask
from t5x_llm.train.state import TrainState, state_from_params, with_shardings

if TYPE_CHECKING:
    from t5x_llm.hf.import_ import Imported

KEY = "base"
_WEIGHTS = (".safetensors", ".bin", ".gguf")


def base_record(run: Run) -> dict[str, Any]:
    """Returns JSON for a checkpoint: path and fingerprint of the base; {} without adapters."""
    if run.adapter is None or run.start_from is None:
        return {}
    return {KEY: {"path": run.start_from, "fingerprint": fingerprint(run.start_from)}}


def fingerprint(path: str) -> str:
    """Computes the SHA-256 of a model's weights: of the files that hold them, in order of names."""
    place = pathlib.Path(as_path(path))
    files = [place] if place.is_file() else sorted(place.iterdir())
    weights = [file for file in files if file.suffix in _WEIGHTS and file.is_file()]
    return _hashed(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in weights))


@functools.lru_cache(4)
def _hashed(files: tuple[tuple[pathlib.Path, int, int], ...]) -> str:
    """Computes ``fingerprint`` once for files as they are, by time of change and size."""
    whole = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def check_base(run: Run) -> None:
    """Refuses to go on with the adapters of a checkpoint on another base.

    Raises:
      CheckpointError: the base's weights are not those that the adapters were trained on.
    """
    found = newest_checkpoint(run) if run.adapter is not None else None
    if found is not None:
        check_same_base(found[0], found[1], base_record(run))


def check_same_base(where: str, meta: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless a checkpoint's adapters were trained on the base of ``now``."""
    saved, present = meta.get(MADE_FROM, {}).get(KEY), now.get(KEY)
    if saved is None or present is None or saved["fingerprint"] == present["fingerprint"]:
        return
    raise CheckpointError(
        f"{where} holds adapters trained on the base {saved['fingerprint'][:12]} "
        f"({saved['path']}); Run.start_from = {present['path']!r} is now "
        f"{present['fingerprint'][:12]}. Adapters mean nothing on another base: put its weights "
        "back as they were, or begin in another Run.directory."
    )


def fresh_roots(assembled: Assembled, base: Params) -> Any:
    """Makes the roots of a run that begins: the base with fresh adapters on it.

    Args:
      assembled: the run, whose task is an ``AdapterTask``.
      base: parameters of the base, on the mesh.
    """
    task, shardings = assembled.task, assembled.placement.state.params
    assert isinstance(task, AdapterTask)
    key = named_key(assembled.run.loop.seed, "params")
    outside = {name: part for name, part in shardings.items() if name != roots.BASE}
    fresh = jax.jit(task.model.adapted, out_shardings=outside)(base, key)
    return {roots.BASE: base} | fresh


def begin(assembled: Assembled, base: Params) -> TrainState:
    """Makes the state in which a run with adapters begins; see ``fresh_roots``.

    Adapters of ``Run.start_adapter`` take the place of fresh ones.
    """
    params = fresh_roots(assembled, base)
    if assembled.run.start_adapter is not None:
        from t5x_llm.run.adapters import start_params

        given = start_params(assembled.run, jax.device_get(params[roots.ADAPTER]))
        where = assembled.placement.state.params[roots.ADAPTER]
        params = params | {roots.ADAPTER: jax.device_put(given, where)}
    return state_from_params(params, assembled.task, assembled.tx, assembled.placement)


def restore(
    assembled: Assembled, base: Params, checkpointer: Checkpointer, step: int
) -> tuple[TrainState, dict[str, Any]]:
    """Restores the adapters of a checkpoint, beside a base that it does not hold.

    Args:
      assembled: the run.
      base: parameters of the base, on the mesh.
      checkpointer: checkpoints of the run.
      step: step of the checkpoint.

    Returns:
      (state, JSON of the checkpoint).

    Raises:
      CheckpointError: as ``Checkpointer.restore``.
    """
    task, whole = assembled.task, assembled.state
    abstract = TrainState(whole.step, task.saved(whole.params), whole.opt_state)
    saved, meta = checkpointer.restore(abstract, step)
    params = task.restored(saved.params, {roots.BASE: base})
    return TrainState(saved.step, params, saved.opt_state), meta


def import_base(run: Run, model: Model, shardings: Params, check: bool = True) -> Imported:
    """Imports the frozen model of a run with adapters, stored as it says.

    Args:
      run: the run.
      model: its model.
      shardings: tree of ``base_storage.stored_axes`` with a sharding for every array.
      check: prove that the logits are right.
    """
    from t5x_llm.hf.gptq import import_gptq
    from t5x_llm.hf.import_ import import_model

    assert run.start_from is not None
    if run.base_storage == "gptq":
        return import_gptq(run.start_from, model, shardings, check)
    storing = Storing(model, run.storage, shardings)
    return import_model(run.start_from, check=check, build=storing)


def load_roots(run: Run, checkpointer: Checkpointer, step: int) -> dict[str, Any]:
    """Loads the parameters of a run's model with its adapters, on one device.

    Raises:
      CheckpointError: the base is another than that of the checkpoint.
    """
    check_same_base(str(checkpointer.path(step)), checkpointer.meta(step), base_record(run))
    model = run.build_model()
    parts = roots.split(model.abstract_params())
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    asked = {name: part for name, part in parts.items() if name != roots.BASE}
    abstract = with_shardings(asked, jax.tree.map(lambda _: one, asked))
    held = jax.tree.map(lambda _: one, abstract_stored(model, run.storage))
    base = import_base(run, model, held, check=False).params
    dtype = run.precision.param_dtype
    base = jax.tree.map(lambda x: x if is_stored(x) else x.astype(dtype), base, is_leaf=is_stored)
    return roots.merge({roots.BASE: base} | checkpointer.restore_params(abstract, step))
