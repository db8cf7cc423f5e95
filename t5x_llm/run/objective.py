"""Checks that a model can learn an objective, and agrees with the tokenizer on special ids."""

from __future__ import annotations

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.denoising import Denoising, special_ids
from t5x_llm.models.family import Family
from t5x_llm.text import Tokenizer

_LEARNS = {
    "decoder": "lm, fim, blank_filling, or prefix_lm or ul2 with Denoising.form = 'decoder' or "
    "'auto'",
    "encoder": "mlm",
    "encoder_decoder": "span_corruption, or prefix_lm or ul2 with Denoising.form = "
    "'encoder_decoder'",
}


def check_objective(model: Family, denoising: Denoising, prompts: tuple[str, ...] = ()) -> None:
    """Checks a family preset against what it is to learn.

    Args:
      model: the preset.
      denoising: the objective.
      prompts: texts that the model is to continue.

    Raises:
      ConfigError: the objective's rows are of another kind of model, or an encoder has prompts.
    """
    kind, name = model.decoder().kind, type(model).__name__
    made = "encoder_decoder" if denoising.encoder_decoder else "decoder"
    if denoising.objective == "mlm":
        made = "encoder"
    if made != kind:
        raise ConfigError(
            "Denoising.objective",
            denoising.objective,
            f"one for {kind.replace('_', '-')}s, as {name} is: {_LEARNS[kind]}",
            f"Set Data.denoising = @Denoising(), or train another model than @{name}().",
        )
    if kind == "encoder" and prompts:
        raise ConfigError("Samples.prompts", prompts, f"none: {name} cannot continue a text")


def check_ids(model: Family, denoising: Denoising, tokenizer: Tokenizer) -> None:
    """Checks the ids that are part of a preset against the tokenizer's.

    Raises:
      ConfigError: naming the field.
    """
    for field, value in model.special_ids().items():
        found = tokenizer.pad_id
        if field == "start_id":
            found = special_ids(denoising, tokenizer).start
        if found != value:
            part = "what the decoder reads first" if field == "start_id" else "the pad token"
            raise ConfigError(
                f"{type(model).__name__}.{field}", value, f"{found}, {part} by the tokenizer's ids"
            )
