"""Bottleneck layers after the layers of a block (Houlsby et al., arXiv 1902.00751, section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import nnx

from t5x_llm.nn.kernels import linear
from t5x_llm.nn.mlp import ACTIVATIONS
from t5x_llm.nn.param import constant

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class BottleneckLayer(nnx.Module):
    """Adds to y [B, T, D] a feed-forward layer of it: y + up(activation(down(y)))."""

    def __init__(self, d_model: int, rank: int, activation: str):
        self.activation = activation
        self.down = constant((d_model, rank), 0.0, ("embed", "rank"))
        self.down_bias = constant((rank,), 0.0, ("rank",))
        self.up = constant((rank, d_model), 0.0, ("rank", "embed"))
        self.up_bias = constant((d_model,), 0.0, ("embed",))

    def __call__(self, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        down, down_bias, up, up_bias = (
            parameter[...].astype(y.dtype)
            for parameter in (self.down, self.down_bias, self.up, self.up_bias)
        )
        inner = ACTIVATIONS[self.activation](linear(y, down, 1) + down_bias)
        return y + (linear(inner, up, 1) + up_bias)


class Bottlenecks(nnx.Module):
    """Bottleneck layers of a block, by the part that each follows, as ``attention`` or ``mlp``."""

    def __init__(self, parts: tuple[str, ...], d_model: int, rank: int, activation: str):
        self.parts = parts
        for part in parts:
            setattr(self, part, BottleneckLayer(d_model, rank, activation))

    def after(self, part: str, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns what joins the residual stream of ``y``, the output of ``part``."""
        return getattr(self, part)(y) if part in self.parts else y
