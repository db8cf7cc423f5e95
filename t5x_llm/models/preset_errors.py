"""Mistakes that a part of a model finds, by the name of the preset's field that made the part.

Configs of ``nn/`` check themselves under their own names, which no gin file and no config.json has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError

# Fields of parts to those of presets that make them, the likeliest first, where names differ.
_MADE_OF: dict[str, tuple[str, ...]] = {
    "NormConfig.eps": ("mixer_norm_eps", "norm_eps"),
    "RotaryConfig.dim": ("rotary_dim", "rope_dim", "rotary_fraction", "head_dim", "n_heads"),
    "RotaryConfig.theta": ("rope_theta",),
    "AttentionConfig.n_kv_heads": ("n_kv_heads", "multi_query"),
    "AttentionConfig.head_dim": ("head_dim", "d_model"),
    "AttentionConfig.scale": ("attention_scale", "softmax_scale", "query_scale"),
    "AttentionConfig.softcap": ("attention_softcap",),
    "LatentAttentionConfig.rotary": ("rope_dim",),
    "LatentAttentionConfig.scale": ("yarn_mscale",),
    "MoeConfig.d_ff": ("d_expert", "d_ff"),
    "MoeConfig.shared": ("d_shared", "n_shared"),
    "RouterConfig.scale": ("routed_scale",),
    "GroupLimitConfig.n_groups": ("n_groups",),
    "SelectiveConfig.d_inner": ("d_inner", "expand"),
    "GroupConfig.repeat": ("n_layers",),
    "DecoderConfig.learned_positions": ("max_length",),
    "EncoderConfig.learned_positions": ("max_length",),
    "EncoderDecoderConfig.start": ("start_id",),
    "ResidualConfig.skip_scale": ("n_layers",),
    "InitConfig.kernel_std": ("init_std",),
    "InitConfig.embed_std": ("init_std",),
    "ConvConfig.taps": ("taps", "conv_width"),
    "TTTConfig.shared_taps": ("taps",),
}
# Parts that gin files write out themselves.
_BOUND = ("RotaryScaling", "LongRotaryScaling", "DynamicRotaryScaling")


def by_preset(error: ConfigError, preset: Any) -> ConfigError:
    """Returns the error under the name of a preset's field; as it is where none made the part."""
    part, _, name = error.field.partition(".")
    family = type(preset).__name__
    if part in (family, *_BOUND) or not name:
        return error
    own = {field.name for field in dataclasses.fields(preset)}
    likely = [n for n in (*_MADE_OF.get(error.field, ()), name) if n in own]
    made = next((n for n in likely if getattr(preset, n) is not None), None)
    if made is None:
        return error
    value, (_, found, expected, remedy, choices) = getattr(preset, made), error.arguments
    expected = expected or f"one of {', '.join(choices)}"
    if value != found:
        expected = f"a value that makes {name} {expected}, not {found!r}"
    return ConfigError(f"{family}.{made}", value, expected, remedy)


def by_config(
    error: ConfigError, family: type, fields: Mapping[str, tuple[str, Any]], read: Collection[str]
) -> ConfigError:
    """Returns the error on a preset's field under the name that config.json has for it.

    Args:
      error: on a field of ``family``.
      family: the preset.
      fields: ``Family.FIELDS``.
      read: ``Family.READ``.
    """
    part, _, name = error.field.partition(".")
    theirs = fields[name][0] if name in fields else name if name in read else None
    if part != family.__name__ or theirs is None:
        return error
    _, value, expected, remedy, choices = error.arguments
    return ConfigError(f"config.json {theirs}", value, expected, remedy, choices)
