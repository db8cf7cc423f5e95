"""Short causal convolutions over time, channel by channel, cut where segments start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.cache import CacheRows, RecentCache, at_end
from t5x_llm.nn.earlier import earlier
from t5x_llm.nn.param import constant, normal
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class ShortConv(nnx.Module):
    """y_t = bias + sum over j < width of kernel[width - 1 - j] * x_{t-j}, within a segment.

    Parameters: ``kernel`` [width, C] and ``bias`` [C].

    Args:
      width: taps, the present token included.
      channels: C.
      axis: logical name of the channels.
      bias: whether there is one.
      rngs: for the kernel, drawn with the variance of torch's Conv1d, 1 / (3 width).
    """

    def __init__(self, width: int, channels: int, axis: str, *, bias: bool, rngs: nnx.Rngs):
        self.width, self.use_bias = width, bias
        self.axes = ("conv", axis)
        self.kernel = normal(rngs, (width, channels), (3 * width) ** -0.5, self.axes)
        if bias:
            self.bias = constant((channels,), 0.0, (axis,))

    @property
    def cache_kind(self) -> RecentCache:
        """The taps: the last inputs [B, width - 1, C]."""
        return RecentCache(self.width - 1, (self.kernel.shape[-1],))

    def init_cache(self, batch: int, dtype: jnp.dtype) -> Float[Array, "B taps C"]:
        """Returns what a segment has before its first token: zeros [B, width - 1, C]."""
        return self.cache_kind.empty(batch, 0, dtype)

    def __call__(
        self,
        x: Float[Array, "B T C"],
        starts: Bool[Array, "B T"],
        taps: Float[Array, "B taps C"] | None,
        rows: CacheRows | None = None,
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B taps C"]]:
        """The convolution, and the taps of a call that goes on after this one.

        Args:
          x: [B, T, C].
          starts: [B, T] bool, where a token does not continue the one before it.
          taps: [B, width - 1, C], the inputs before ``x``; None for none.
          rows: how many tokens of each row are valid, those that the new taps are of; None for all.

        Returns:
          ([B, T, C], [B, width - 1, C]) in the dtype of ``x``; float32 within.
        """
        before = self.width - 1
        if taps is None:
            taps = self.init_cache(x.shape[0], x.dtype)
        taps = taps.astype(x.dtype)
        shifted = earlier(x, taps, ("batch", "length", self.axes[1]))
        none = jnp.zeros((x.shape[0], before), bool)
        cuts = [starts, *earlier(starts, none, ("batch", "length"))]
        if rows is None:
            last = jnp.concatenate([taps, x[:, -before:]], axis=1)
        else:
            last = self.cache_kind.write(taps, x, rows)
        kernel = constrain(self.kernel[...].astype(jnp.float32), self.axes)
        total = x.astype(jnp.float32) * kernel[before]
        reached = jnp.ones_like(starts)  # no segment starts after the tap
        kept = []
        for back in range(1, self.width):
            end = reached[:, -1:] if rows is None else at_end(reached, rows, True)[:, None]
            kept.append(last[:, -back] * end.astype(x.dtype))
            reached = reached & ~cuts[back - 1]
            tap = jnp.where(reached[..., None], shifted[back - 1], 0)
            total = total + tap.astype(jnp.float32) * kernel[before - back]
        if self.use_bias:
            total = total + self.bias[...]
        after = jnp.stack(kept[::-1], axis=1) if kept else taps
        return total.astype(x.dtype), after
