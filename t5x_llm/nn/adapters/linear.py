"""Adapter of a linear layer: what ``Dense`` and ``Experts`` call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class LinearAdapter(nnx.Module):
    """Changes y = x W + bias at four points; this one changes nothing."""

    def inputs(self, x: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns what is multiplied by the kernel, of x [..., *inputs]."""
        return x

    def __call__(
        self, x: Float[Array, " ..."], y: Float[Array, " ..."], kernel: Float[Array, " ..."]
    ) -> Float[Array, " ..."]:
        """Returns what the layer makes of ``x``, before its bias.

        Args:
          x: [..., *inputs].
          y: [..., *outputs], x times the kernel.
          kernel: [*inputs, *outputs], of any dtype.
        """
        return y

    def outputs(self, y: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns what the layer gives, of y [..., *outputs] with its bias."""
        return y

    def merged(self, kernel: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns the kernel [*inputs, *outputs] that does the same alone, in float32."""
        return kernel

    def merged_experts(self, kernels: Float[Array, "E _ _"]) -> Float[Array, "E _ _"]:
        """Returns ``merged`` of the kernels of experts."""
        return kernels
