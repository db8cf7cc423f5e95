"""Rotary settings in config.json: transformers 5's ``rope_parameters`` and the older names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.hf_config import check_hf_config, given
from t5x_llm.nn.rotary_scaling import (
    AnyRotaryScaling,
    DynamicRotaryScaling,
    LongRotaryScaling,
    RotaryScaling,
)

# Fields of config.json that ``read_rope`` reads.
ROPE_FIELDS = frozenset(
    {"rope_theta", "rope_parameters", "rope_scaling", "original_max_position_embeddings"}
)
_KNOWN: dict[str, set[str]] = {
    "default": {"factor"},
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"},
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor"},
}
_OLD_KINDS = {"su": "longrope"}
_STRETCHED = ("llama3", "yarn", "longrope")  # kinds that have a pretrained length


class _Settings:
    """The table of rotary settings, read with its own name in messages."""

    def __init__(self, config: Mapping[str, Any]):
        # transformers lets the older name decide where a file has both.
        named = (name for name in ("rope_scaling", "rope_parameters") if config.get(name))
        self.name = next(named, "rope_parameters")
        raw = config.get(self.name) or {}
        if not isinstance(raw, Mapping):
            raise ConfigError(f"config.json {self.name}", raw, "a table of settings, or null")
        self.raw = {k: v for k, v in raw.items() if v is not None}

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a setting that is a number; raises ConfigError if it is none, or missing."""
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"config.json {self.name}.{name}", value, "a number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a setting that is a list of numbers; raises ConfigError if it is none."""
        value = self.raw.get(name)
        if not isinstance(value, list | tuple) or not all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in value
        ):
            raise ConfigError(f"config.json {self.name}.{name}", value, "a list of numbers")
        return tuple(map(float, value))


def read_rope(
    config: Mapping[str, Any],
    theta: float = 10000.0,
    length: int | None = None,
    old_kinds: Mapping[str, str] = _OLD_KINDS,
) -> tuple[float, AnyRotaryScaling | None, dict[str, Any]]:
    """Base, scaling, and the raw settings of a config.json.

    Args:
      config: the parsed JSON.
      theta: the base where none is given.
      length: ``max_position_embeddings``, or what transformers takes where that is absent; it
        stands for the pretrained context where nothing else does.
      old_kinds: older names of kinds of scaling, to those of today.

    Raises:
      UnknownField: naming a setting that is not known.
      ConfigError: for a kind of scaling that is not known, or a setting of the wrong type.
    """
    settings = _Settings(config)
    raw, length = settings.raw, length or 0
    key = "rope_type" if "rope_type" in raw else "type"
    said = raw.get(key, "default")
    kind = old_kinds.get(said, said) if isinstance(said, str) else said
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise ConfigError(
            f"config.json {settings.name}.{key}",
            said,
            f"one of {', '.join(sorted(_KNOWN))}",
            "Other kinds turn queries and keys in other ways.",
        )
    general = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
    general |= {"original_max_position_embeddings"}
    known, fixed = _KNOWN[kind] | general, {"truncate": True}
    check_hf_config(raw, known=known, fixed=fixed, prefix=f"{settings.name}.")
    theta = float(raw.get("rope_theta", given(config, "rope_theta", theta)))
    if kind == "default":
        return theta, None, raw
    original = int(raw.get("original_max_position_embeddings", length))
    # transformers lets the field beside the table decide where a family has one.
    if kind in _STRETCHED and config.get("original_max_position_embeddings") is not None:
        original = int(config["original_max_position_embeddings"])
    scaling: AnyRotaryScaling
    if kind == "yarn":
        factor = settings.number("factor", length / original if original else None)
        scaling = RotaryScaling(
            "yarn",
            factor,
            original,
            settings.number("beta_slow", 1) or 1.0,
            settings.number("beta_fast", 32) or 32.0,
            _yarn_attention(settings, factor),
        )
    elif kind == "llama3":
        low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
        scaling = RotaryScaling("llama3", settings.number("factor"), original, low, high, 1.0)
    elif kind == "longrope":
        factor = settings.number("factor", length / original if original else None)
        attention = settings.number("attention_factor", long_attention(factor, original))
        lists = settings.numbers("short_factor"), settings.numbers("long_factor")
        scaling = LongRotaryScaling(*lists, original, attention)
    elif kind == "dynamic":
        scaling = DynamicRotaryScaling(settings.number("factor"), length)
    else:
        scaling = linear_scaling(settings.number("factor"))
    return theta, scaling, raw


def check_rope(family: Any, scaling: AnyRotaryScaling | None) -> None:
    """Raises ConfigError for a scaling that a family's config.json cannot express.

    Args:
      family: preset with ``max_length``.
      scaling: its own.
    """
    if isinstance(scaling, DynamicRotaryScaling) and scaling.original_length != family.max_length:
        raise ConfigError(
            "DynamicRotaryScaling.original_length",
            scaling.original_length,
            f"{type(family).__name__}.max_length = {family.max_length}",
            "config.json has one field for both.",
        )


def linear_scaling(factor: float) -> RotaryScaling:
    """Positions divided by ``factor``."""
    return RotaryScaling("linear", factor, 0, 1.0, 4.0, 1.0)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def long_attention(factor: float, original: int) -> float:
    """LongRoPE's factor on cosines and sines (arXiv 2402.13753, as Phi-3 has it)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_attention(settings: _Settings, factor: float) -> float:
    raw = settings.raw
    if "attention_factor" in raw:
        return settings.number("attention_factor")
    if raw.get("mscale") and raw.get("mscale_all_dim"):
        top, bottom = (settings.number(name) for name in ("mscale", "mscale_all_dim"))
        return yarn_mscale(factor, top) / yarn_mscale(factor, bottom)
    return yarn_mscale(factor)


def write_rope(theta: float, scaling: AnyRotaryScaling | None, **more: Any) -> dict[str, Any]:
    """The fields of config.json that ``read_rope`` reads; ``more`` go into rope_parameters.

    A dynamic scaling's pretrained length is ``max_position_embeddings``, which is not written here.
    """
    settings: dict[str, Any] = {"rope_type": "default", "rope_theta": theta, **more}
    found: dict[str, Any] = {}
    if isinstance(scaling, LongRotaryScaling):
        settings |= {"rope_type": "longrope", "attention_factor": scaling.attention_factor}
        settings |= {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        settings["original_max_position_embeddings"] = scaling.original_length
        found["original_max_position_embeddings"] = scaling.original_length
    elif isinstance(scaling, DynamicRotaryScaling):
        settings |= {"rope_type": "dynamic", "factor": scaling.factor}
    elif scaling is not None:
        settings |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            settings |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
        if scaling.kind == "yarn":
            settings |= {"beta_slow": scaling.low, "beta_fast": scaling.high}
            settings |= {"attention_factor": scaling.attention_factor}
        if scaling.kind != "linear":
            settings["original_max_position_embeddings"] = scaling.original_length
    return {"rope_theta": theta, "rope_parameters": settings} | found
