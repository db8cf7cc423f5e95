"""Checks of a run that scores documents, and the data that it reads."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.sources import Data
from t5x_llm.hf.scoring import check_scored
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.train.scoring import Classification, Regression

if TYPE_CHECKING:
    from t5x_llm.run.config import Run


def check_scoring(run: Run) -> Data:
    """Returns the data of a run with ``Run.task``, whose sources know the names of its classes.

    Raises:
      ConfigError: the run has what a head of scores cannot be trained with.
    """
    task, data = run.task, run.data
    if not isinstance(task, Classification | Regression):
        raise ConfigError("Run.task", task, "@Classification(), @Regression() or None")
    config = run.model.decoder()
    if not isinstance(config, DecoderConfig) or config.kind != "decoder":
        family = type(run.model).__name__
        raise ConfigError("Run.task", task, f"None, as {family} is no decoder")
    for name, value, default in (
        ("Run.adapter", run.adapter, None),
        ("Run.neftune", run.neftune, None),
        ("Run.embed_gradient", run.embed_gradient, None),
        ("Run.stability", run.stability, None),
        ("Run.z_loss", run.z_loss, 0.0),
        ("Samples.prompts", run.samples.prompts, ()),
        ("Data.chat", data.chat, None),
        ("Denoising.objective", data.denoising.objective, "lm"),
        ("Data.seqio_mixture", data.seqio_mixture, ""),
    ):
        if value != default and value:
            raise ConfigError(name, value, f"{default!r}, as Run.task trains a head of scores")
    if run.export.enabled:
        check_scored(run.model)
    if data.packing == "concat":
        raise ConfigError(
            "Data.packing", data.packing, "'whole' or 'similar', as Run.task scores documents",
            "Documents that begin at the end of a row would be scored by their first words.",
        )  # fmt: skip
    assert data.mixture is not None
    for source in data.mixture.sources:
        if not source.score:
            raise ConfigError(
                "Source.score", "", f"the field of jsonl objects that holds the label, for "
                f"{source.name!r}, as Run.task learns it",
            )  # fmt: skip
    classes = task.labels if isinstance(task, Classification) else ()
    sources = tuple(dataclasses.replace(s, classes=classes) for s in data.mixture.sources)
    return dataclasses.replace(data, mixture=dataclasses.replace(data.mixture, sources=sources))
