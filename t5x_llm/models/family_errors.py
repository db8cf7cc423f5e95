"""Refusals of a preset in the names of its own fields, which are those that a user can set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from t5x_llm.core.errors import INT32_MAX, ConfigError, check_number, check_representable

MAX_LAYERS = 10_000
# Integers that may be 0; any other counts something that must be there.
_MAY_BE_ZERO = frozenset(
    ("pad_id", "start_id", "token_types", "rescale_every", "n_dense", "n_shared")
    + ("attention_offset", "expert_offset")
)
# Fields of configs in ``nn/`` and ``models/``, to the presets' fields that they are made of.
_MADE_OF = {
    "eps": ("norm_eps", "mixer_norm_eps"),
    "kernel_std": ("init_std",),
    "embed_std": ("init_std",),
    "repeat": ("n_layers", "n_decoder_layers"),
    "head_dim": ("d_model",),
    "dim": ("rotary_dim", "rope_dim", "rotary_fraction", "head_dim", "d_model"),
    "theta": ("rope_theta",),
    "learned_positions": ("max_length",),
    "d_inner": ("expand", "d_model"),
    "scale": ("softmax_scale", "attention_scale", "query_scale", "routed_scale"),
    "start": ("start_id",),
    "n_kv_heads": ("n_heads",),
    "n_heads": ("head_dim", "d_model"),
    "shared_taps": ("taps",),
    "normalise": ("routed_scale",),
}


def check_sizes(preset: Any) -> None:
    """Raises ConfigError unless the numbers of a preset can be sizes at all."""
    name = type(preset).__name__
    for field in dataclasses.fields(preset):
        value, path = getattr(preset, field.name), f"{name}.{field.name}"
        kinds = str(field.type).replace(" ", "").split("|")
        if value is None and "None" in kinds:
            continue
        if "int" in kinds:
            low = 2 if field.name == "vocab_size" else int(field.name not in _MAY_BE_ZERO)
            high = MAX_LAYERS if "layers" in field.name else INT32_MAX
            check_number(path, value, low=low, high=high, integer=True)
        elif field.name == "rotary_fraction":
            check_number(path, value, above=0, high=1)
        elif "float" in kinds:
            check_representable(path, value)


def sized(method: Callable[..., None]) -> Callable[..., None]:
    """Wraps a preset's ``__post_init__``: its sizes are checked first."""

    @functools.wraps(method)
    def checked(self: Any) -> None:
        check_sizes(self)
        method(self)

    return checked


def in_own_names(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a preset's ``decoder``: what its parts refuse is told of the preset's own fields."""

    @functools.wraps(method)
    def explained(self: Any) -> Any:
        try:
            return method(self)
        except ConfigError as e:
            raise own_error(self, e) from e
        except (ArithmeticError, ValueError) as e:
            names = ", ".join(
                f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self)
            )
            kind = type(self).__name__
            raise ConfigError(f"{kind}.d_model", names, f"sizes that make a model ({e})") from e

    return explained


def own_error(preset: Any, error: ConfigError) -> ConfigError:
    """Returns an error about a part of a preset as one about the preset's own field.

    Args:
      preset: the preset.
      error: about a field such as ``NormConfig.eps``; one about a preset is returned as it is.
    """
    kind, _, part = error.field.partition(".")
    name, (_, _, expected, remedy, choices) = part.partition("[")[0], error.arguments
    fields = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    if kind == type(preset).__name__ or not part:
        return error
    known = [each for each in (name, *_MADE_OF.get(name, ())) if fields.get(each) is not None]
    equal = [each for each in known if fields[each] == error.value]
    others = [each for each, value in fields.items() if _same(value, error.value)]
    chosen = next(iter((*equal, *known, *others, *fields)))
    value = fields[chosen]
    if value != error.value or chosen not in (name, *_MADE_OF.get(name, ())):
        expected = f"sizes of which follow a {name} that is {expected}, not {error.value!r}"
    remedy = f"{remedy} (of {error.field})".strip()
    return ConfigError(f"{type(preset).__name__}.{chosen}", value, expected, remedy, choices)


def _same(value: object, other: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and value == other
