"""Scaling of rotary frequencies in GGUF files, as config.json says it.

llama.cpp knows linear and YaRN scaling by keys, and everything else as a tensor of divisors, one a
frequency: LLaMA 3.1's ``rope_freqs.weight``, and LongRoPE's ``rope_factors_long`` and ``_short``.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError

FREQS, LONG, SHORT = "rope_freqs", "rope_factors_long", "rope_factors_short"
# Divisors are stored in float32.
_TOLERANCE = 1e-5
_TYPICAL = (8192, 1.0, 4.0)  # LLaMA 3.1's and 3.2's


def rope_parameters(
    meta: dict[str, Any],
    factors: Mapping[str, np.ndarray],
    theta: float,
    dim: int,
    context: int,
    path: pathlib.Path,
) -> dict[str, Any]:
    """Returns ``rope_parameters`` of config.json.

    Args:
      meta: keys of the architecture; those of the scaling are taken out.
      factors: the file's tensors of divisors, by name, without ``.weight``.
      theta: the base.
      dim: channels of a head that are rotated.
      context: the file's context_length.
      path: for messages.

    Raises:
      ConfigError: a kind of scaling that config.json cannot say.
      CheckpointError: the divisors do not fit the model.
    """
    kind = meta.pop("rope.scaling.type", None)
    stretch = meta.pop("rope.scale_linear", None)  # the factor's name in old files
    factor = float(meta.pop("rope.scaling.factor", None) or stretch or 1)
    original = meta.pop("rope.scaling.original_context_length", None)
    attention = float(meta.pop("rope.scaling.attn_factor", None) or 1)
    slow, fast = (meta.pop(f"rope.scaling.yarn_beta_{name}", None) for name in ("slow", "fast"))
    meta.pop("rope.scaling.finetuned", None)
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    for name, array in factors.items():
        if array.shape != (dim // 2,) or not np.all(np.isfinite(array) & (array > 0)):
            raise CheckpointError(
                f"{path}: {name}.weight of shape {list(array.shape)}: expected {dim // 2} divisors "
                "of rotary frequencies, all above 0."
            )
    if {LONG, SHORT} <= factors.keys():
        if original is None or kind not in (None, "none", "longrope"):
            raise _refused(path, kind, "longrope, with its original_context_length")
        long, short = (_shortest(factors[name]) for name in (LONG, SHORT))
        scaled: dict[str, Any] = {"rope_type": "longrope"}
        scaled |= {"long_factor": long, "short_factor": short}
        scaled["attention_factor"] = round(attention, 6) if attention != 1 else None
        scaled |= {"original_max_position_embeddings": original, "factor": context / original}
        return plain | {k: v for k, v in scaled.items() if v is not None}
    if FREQS in factors and not np.all(factors[FREQS] == 1):
        if factor != 1:
            raise _refused(path, kind, "none, beside rope_freqs.weight")
        return plain | llama3(factors[FREQS].astype(np.float64), theta, dim, path)
    if kind == "none" or (factor == 1 and kind in (None, "linear")):
        return plain
    if kind in (None, "linear"):
        return plain | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise _refused(path, kind, "none, linear, yarn or longrope")
    scaled = {"rope_type": "yarn", "factor": factor}
    scaled["original_max_position_embeddings"] = original or context
    if attention != 1:  # llama.cpp multiplies YaRN's own temperature by it
        scaled["attention_factor"] = attention * (0.1 * math.log(factor) + 1 if factor > 1 else 1)
    scaled |= {k: v for k, v in (("beta_slow", slow), ("beta_fast", fast)) if v is not None}
    return plain | scaled


def _refused(path: pathlib.Path, kind: object, expected: str) -> ConfigError:
    return ConfigError(f"{path.name} rope.scaling.type", kind, expected)


def llama3(divisors: np.ndarray, theta: float, dim: int, path: pathlib.Path) -> dict[str, Any]:
    """Returns LLaMA 3.1's settings that give these divisors of the frequencies.

    A frequency that turns ``t`` times within the original length is divided by
    ``1 / (s + (1 - s) / factor)``, with ``s = (t - low) / (high - low)`` within [0, 1]; so the
    divisors give ``factor`` and, where two lie between, a line of ``s`` over the frequency. Of the
    three numbers behind the line one is free: ``low`` is taken as 1, as it is in all that is
    published.

    Raises:
      ConfigError: no such settings give them.
    """
    inverse = 1.0 / theta ** (np.arange(0, dim, 2) / dim)
    factor = float(divisors.max())

    def made(original: float, low: float, high: float) -> np.ndarray:
        turns = original * inverse / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return 1 / (kept + (1 - kept) / factor)

    tried = [_TYPICAL]
    between = (divisors > 1 * (1 + _TOLERANCE)) & (divisors < factor * (1 - _TOLERANCE))
    if factor > 1 and np.count_nonzero(between) >= 2:
        kept = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(inverse[between], kept, 1)
        if offset < 0 < slope:
            width = -1 / offset  # high - low, where low is 1
            tried.append((round(2 * np.pi * slope * width), 1.0, round(1 + width, 4)))
    for original, low, high in tried:
        if original > 0 and np.allclose(made(original, low, high), divisors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 6),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ConfigError(
        f"{path.name} rope_freqs.weight",
        [round(float(x), 4) for x in divisors[:: max(1, len(divisors) // 8)]],
        "divisors of rotary frequencies as LLaMA 3.1 has them",
        "Import the model's own Hugging Face directory instead.",
    )


def _shortest(array: np.ndarray) -> list[float]:
    return [float(str(x)) for x in array.astype(np.float32)]
