"""Loads a model to use, from a run directory, a Hugging Face directory or a GGUF file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path, check_place
from t5x_llm.hf.mistaken import why_no_model
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.nn.adapters import roots


class Loaded(NamedTuple):
    """A model with its parameters on one device.

    Attributes:
      family: the preset dataclass.
      model: the model, which computes in the run's or the given dtype.
      params: nested dict of arrays.
      tokenizer: the tokenizer, or None where there is none.
      run: the ``run.config.Run`` it comes from, or None.
      generation: fields of generation_config.json of the model, or of the one that its run started
        from: tokens that end a text, settings of sampling.
      step: of the run, at which the parameters are; None without a run.
    """

    family: Family
    model: Model
    params: Any
    tokenizer: Any
    run: Any
    generation: Mapping[str, Any] = {}
    step: int | None = None


def is_run(path: str) -> bool:
    """Returns True if ``path`` is a run directory."""
    from t5x_llm.run.config import OPERATIVE_CONFIG

    check_place("path", path)
    return (as_path(path) / OPERATIVE_CONFIG).exists()


def load(
    path: str,
    step: int | None = None,
    compute: str | None = None,
    lazy: bool = False,
    adapter: str | os.PathLike[str] | None = None,
) -> Loaded:
    """Loads a model.

    Args:
      path: a run directory, a Hugging Face directory or a ``.gguf`` file.
      step: checkpoint of a run, which alone has several; the newest that passes its checksums if
        None.
      compute: dtype of activations; the run's, or float32 for a conversion, if None.
      lazy: a run's parameters stay on disk, and slices of them are read when asked for.
      adapter: a PEFT directory that a Hugging Face model is given, or None.

    Raises:
      ConfigError: nothing can be loaded from there, or no such step.
    """
    from t5x_llm.run.config import OPERATIVE_CONFIG

    if path.startswith(("hf://", "http://", "https://")):
        raise ConfigError("path", path, "a path", why_no_model(path))
    place = as_path(path)
    if is_run(path):
        if adapter is not None:
            raise ConfigError(
                "adapter", adapter, f"none for a run; {path} is one",
                "Give the model that the adapter was trained on.",
            )  # fmt: skip
        return _from_run(path, step, compute, lazy)
    check_no_step(path, step)
    if place.suffix == ".gguf" or (place / "config.json").exists():
        from t5x_llm.hf.import_ import import_model

        found = import_model(path, check=False)
        policy, params, config = Policy(compute=compute or "float32"), found.params, None
        if adapter is not None:
            from t5x_llm.run.adapters import given_adapter

            config, its = given_adapter(adapter, found.family, path)
            params = roots.merge({roots.BASE: params, roots.ADAPTER: its})
        model = Model(found.family.decoder(), policy, adapter=config)
        return Loaded(found.family, model, params, found.tokenizer, None, found.generation)
    raise ConfigError(
        "path",
        path,
        f"a run directory (with {OPERATIVE_CONFIG}), a Hugging Face directory (with config.json) "
        "or a .gguf file",
        "" if "://" in path else why_no_model(path),
    )


def check_no_step(path: str, step: int | None) -> None:
    """Raises ConfigError for a step of what is no run."""
    if step is not None:
        raise ConfigError(
            "step",
            step,
            f"none: {path} is no run directory, and holds one state of the model only",
            "Leave --step out, or give the run's directory.",
        )


def saved_generation(directory: str) -> dict[str, Any]:
    """Returns the settings of generation of the model that a run started from; {} of none."""
    from t5x_llm.hf.generation import FILE
    from t5x_llm.hf.shards import MAX_JSON, parse_json

    path = as_path(directory) / FILE
    if not path.exists() or path.stat().length > MAX_JSON:
        return {}
    return parse_json(pathlib.Path(path), path.read_bytes())


def _from_run(path: str, step: int | None, compute: str | None, lazy: bool) -> Loaded:
    import jax

    from t5x_llm.checkpoint import Checkpointer
    from t5x_llm.checkpoint.checkpointer import abstract_on
    from t5x_llm.run.config import load_saved
    from t5x_llm.run.identity import trained_tokenizer
    from t5x_llm.run.template import with_run_template

    run, _ = load_saved(path)
    if run.task is not None:
        raise ConfigError(
            "path", path, "a run of a language model; this one scores documents (Run.task)",
            "Its hf directory loads as AutoModelForSequenceClassification.",
        )  # fmt: skip
    policy = run.precision if compute is None else Policy(run.precision.params, compute)
    model = Model(run.decoder(), policy, adapter=run.adapter)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    checkpointer = Checkpointer(as_path(path) / "checkpoints", read_only=True)
    try:
        step = checkpointer.newest_sound() if step is None else step
        tokenizer = with_run_template(path, trained_tokenizer(run.data, checkpointer, [step]))
        if run.adapter is not None:
            from t5x_llm.run.base import load_roots

            assert step is not None
            params = load_roots(run, checkpointer, step)
        elif lazy:
            params = checkpointer.open_params(step)
        else:
            params = checkpointer.restore_params(abstract_on(model.abstract_params(), one), step)
    finally:
        checkpointer.close()
    return Loaded(run.model, model, params, tokenizer, run, saved_generation(path), step)
