"""Stretches of rotary frequencies for contexts longer than the pretrained one."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from t5x_llm.core.errors import ConfigError, check_choice, check_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float64, Int


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """A stretch that is the same for sequences of every length.

    Attributes:
      kind: 'linear' (arXiv 2306.15595), 'llama3' (arXiv 2407.21783, section 3.4.1, as released) or
        'yarn' (arXiv 2309.00071).
      factor: how many times longer.
      original_length: the pretrained context; 0 for 'linear'.
      low: llama3's low_freq_factor, yarn's beta_slow; 1 for 'linear'.
      high: llama3's high_freq_factor, yarn's beta_fast; 4 for 'linear'.
      attention_factor: yarn's factor on cosines and sines; 1 for the others.
    """

    kind: str
    factor: float
    original_length: int
    low: float
    high: float
    attention_factor: float

    def __post_init__(self) -> None:
        check_choice("RotaryScaling.kind", self.kind, ("linear", "llama3", "yarn"))
        check_number("RotaryScaling.factor", self.factor, low=1)
        check_number("RotaryScaling.attention_factor", self.attention_factor, above=0)
        neutral = {} if self.kind == "yarn" else {"attention_factor": 1.0}
        if self.kind == "linear":
            neutral |= {"original_length": 0, "low": 1.0, "high": 4.0}
        else:
            check_number("RotaryScaling.original_length", self.original_length, low=1, integer=True)
            check_number("RotaryScaling.low", self.low, above=0)
            check_number("RotaryScaling.high", self.high, above=self.low)
        for name, value in neutral.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"RotaryScaling.{name}",
                    getattr(self, name),
                    f"{value}, as {self.kind!r} has no such thing",
                )

    def frequencies(
        self, plain: Float64[np.ndarray, " pairs"], theta: float
    ) -> Float64[np.ndarray, " pairs"]:
        """Radians a position for each pair: [pairs], given those without a stretch."""
        dim = 2 * len(plain)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            turns = self.original_length * plain / (2 * math.pi)
            smooth = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            return plain * (smooth + (1.0 - smooth) / self.factor)

        def channel(turns: float) -> float:  # the pair that turns so often over the original length
            ratio = self.original_length / (turns * 2 * math.pi)
            return dim * math.log(ratio) / (2 * math.log(theta))

        low = max(math.floor(channel(self.high)), 0)
        high = min(math.ceil(channel(self.low)), dim - 1)
        ramp = (np.arange(dim // 2) - low) / max(high - low, 1e-3)
        keep = 1.0 - np.clip(ramp, 0.0, 1.0)
        return plain * (keep + (1.0 - keep) / self.factor)


@dataclasses.dataclass(frozen=True)
class LongRotaryScaling:
    """LongRoPE (arXiv 2402.13753): a divisor for each pair of channels, one list for short
    sequences and one for those longer than the pretrained context.

    Attributes:
      short: divisors of the frequencies in sequences of up to ``original_length`` tokens; one for
        each rotated pair of channels.
      long: those in longer sequences.
      original_length: the pretrained context.
      attention_factor: on cosines and sines, in sequences of every length.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    attention_factor: float

    def __post_init__(self) -> None:
        name = "LongRotaryScaling"
        for field in ("short", "long"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
            for i, factor in enumerate(getattr(self, field)):
                check_number(f"{name}.{field}[{i}]", factor, above=0)
        if len(self.short) != len(self.long):
            raise ConfigError(f"{name}.long", self.long, f"{len(self.short)} numbers, as in short")
        check_number(f"{name}.original_length", self.original_length, low=2, integer=True)
        check_number(f"{name}.attention_factor", self.attention_factor, above=0)

    def by_length(
        self, plain: Float64[np.ndarray, " pairs"], lengths: Int[Array, "B T"]
    ) -> Float[Array, "B T pairs"]:
        """Radians a position for each pair, in sequences of the given lengths.

        Args:
          plain: those without a stretch.
          lengths: [B, T] int32, tokens of the sequence that each token belongs to.
        """
        short, long = ((plain / np.asarray(x)).astype(np.float32) for x in (self.short, self.long))
        return jnp.where((lengths > self.original_length)[..., None], long, short)


@dataclasses.dataclass(frozen=True)
class DynamicRotaryScaling:
    """Dynamic NTK: the base grows with the sequence, once that is longer than the pretrained one.

    The base is theta * (factor * length / original_length - (factor - 1)) ** (dim / (dim - 2)), as
    in transformers' "dynamic" and the released code of InternLM.

    Attributes:
      factor: how fast; at 1 it grows as the length does.
      original_length: the pretrained context.
    """

    factor: float
    original_length: int

    def __post_init__(self) -> None:
        check_number("DynamicRotaryScaling.factor", self.factor, low=1)
        length = self.original_length
        check_number("DynamicRotaryScaling.original_length", length, low=1, integer=True)

    @property
    def attention_factor(self) -> float:
        """Cosines and sines are as they are."""
        return 1.0

    def by_length(
        self, plain: Float64[np.ndarray, " pairs"], lengths: Int[Array, "B T"]
    ) -> Float[Array, "B T pairs"]:
        """Radians a position for each pair, in sequences of the given lengths.

        Args:
          plain: those without a stretch.
          lengths: [B, T] int32, tokens of the sequence that each token belongs to.
        """
        if len(plain) < 2:
            raise ConfigError("RotaryConfig.dim", 2 * len(plain), "at least 4 for dynamic scaling")
        more = jnp.maximum(lengths - self.original_length, 0).astype(jnp.float32)
        growth = jnp.log1p(more * np.float32(self.factor / self.original_length))[..., None]
        share = (np.arange(len(plain)) / (len(plain) - 1)).astype(np.float32)
        return plain.astype(np.float32) * jnp.exp(-growth * share)


ByLength = LongRotaryScaling | DynamicRotaryScaling
AnyRotaryScaling = RotaryScaling | LongRotaryScaling | DynamicRotaryScaling
