"""Rotary settings in config.json: transformers 5's ``rope_parameters`` and the older names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.hf_config import check_hf_config
from t5x_llm.nn.positions import RotaryScaling

# Fields of config.json that ``read_rope`` reads.
ROPE_FIELDS = frozenset({"rope_theta", "rope_parameters", "rope_scaling"})
_KNOWN: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"},
}


def read_rope(
    config: Mapping[str, Any], theta: float = 10000.0, length: int | None = None
) -> tuple[float, RotaryScaling | None, dict[str, Any]]:
    """Base, scaling, and the raw settings of a config.json.

    Args:
      config: the parsed JSON.
      theta: the base where none is given.
      length: the pretrained context where the settings do not say (yarn).

    Raises:
      ConfigError: for a kind or field of scaling that is not known.
    """
    raw = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind not in _KNOWN:
        raise ConfigError("config.json rope_parameters.rope_type", kind, choices=_KNOWN)
    general = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    general |= {"original_max_position_embeddings"} if kind != "default" else set()
    if kind == "default" and "factor" in raw:
        raw.pop("factor")
    check_hf_config(raw, known=_KNOWN[kind] | general, fixed={}, prefix="rope_parameters.")
    theta = float(raw.get("rope_theta", config.get("rope_theta", theta)))
    if kind == "default":
        return theta, None, raw
    original = raw.get("original_max_position_embeddings") or length or 0
    factor = float(raw["factor"])
    if kind == "yarn":
        scaling = RotaryScaling(
            "yarn",
            factor,
            original,
            float(raw.get("beta_slow") or 1),
            float(raw.get("beta_fast") or 32),
            _yarn_attention(raw, factor),
        )
    elif kind == "llama3":
        low, high = float(raw["low_freq_factor"]), float(raw["high_freq_factor"])
        scaling = RotaryScaling("llama3", factor, original, low, high, 1.0)
    else:
        scaling = linear_scaling(factor)
    return theta, scaling, raw


def linear_scaling(factor: float) -> RotaryScaling:
    """Positions divided by ``factor``."""
    return RotaryScaling("linear", factor, 0, 1.0, 4.0, 1.0)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_attention(raw: Mapping[str, Any], factor: float) -> float:
    if raw.get("attention_factor") is not None:
        return float(raw["attention_factor"])
    if raw.get("mscale") and raw.get("mscale_all_dim"):
        ratio = yarn_mscale(factor, raw["mscale"]) / yarn_mscale(factor, raw["mscale_all_dim"])
        return float(ratio)
    return yarn_mscale(factor)


def write_rope(theta: float, scaling: RotaryScaling | None, **more: Any) -> dict[str, Any]:
    """The fields of config.json that ``read_rope`` reads; ``more`` go into rope_parameters."""
    settings: dict[str, Any] = {"rope_type": "default", "rope_theta": theta, **more}
    if scaling is not None:
        settings |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            settings |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
        if scaling.kind == "yarn":
            settings |= {"beta_slow": scaling.low, "beta_fast": scaling.high}
            settings |= {"attention_factor": scaling.attention_factor}
        if scaling.kind != "linear":
            settings["original_max_position_embeddings"] = scaling.original_length
    return {"rope_theta": theta, "rope_parameters": settings}
