"""Kernels of 8-bit integers with a scale an output, code for code bitsandbytes' row-wise int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from t5x_llm.nn.fewbit.stored import Matrix, Stored

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel(Stored):
    """A kernel of 8-bit codes: 127 stands for the largest magnitude of an output.

    Attributes:
      codes: [*leading, *inputs, *outputs] int8.
      scales: [*leading, *outputs] float32, the largest magnitudes.
      matrix: see ``Stored``.
    """

    codes: Int8[Array, " ..."]
    scales: Float32[Array, " ..."]
    matrix: Matrix = dataclasses.field(metadata={"static": True})

    @property
    def leading(self) -> tuple[int, ...]:
        """Returns the sizes before the kernel's own."""
        return tuple(self.codes.shape[: self.codes.ndim - len(self.matrix.shape)])

    def names(self) -> Mapping[str, tuple[str | None, ...]]:
        """Returns the kernel's logical names."""
        return {"codes": self.matrix.axes, "scales": self.matrix.out_axes}

    @classmethod
    def quantise(cls, kernel: Float[Array, " ..."], matrix: Matrix) -> Int8Kernel:
        """Stores a kernel [*leading, *inputs, *outputs], each matrix by itself."""
        kernel = kernel.astype(jnp.float32)
        lead = kernel.ndim - len(matrix.shape)
        inputs = tuple(range(lead, lead + len(matrix.inputs)))
        scales = jnp.max(jnp.abs(kernel), inputs)
        factor = jnp.where(scales > 0, 1.0 / scales, 0.0) * 127.0
        codes = jnp.round(kernel * jnp.expand_dims(factor, inputs)).astype(jnp.int8)
        return cls(codes, scales, matrix)

    def dequantise(self) -> Float32[Array, " ..."]:
        """Computes the kernel [*leading, *inputs, *outputs] in float32."""
        lead = len(self.leading)
        inputs = tuple(range(lead, lead + len(self.matrix.inputs)))
        step = jnp.expand_dims(self.scales, inputs) * jnp.float32(1 / 127)
        return self.codes.astype(jnp.float32) * step
