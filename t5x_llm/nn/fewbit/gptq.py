"""Kernels as GPTQ stores them (arXiv 2210.17323): integers, scales and zeros of groups of inputs.

A weight is scale * (code - zero). Which group an input belongs to is said for each input, as it is
where GPTQ quantises inputs in the order of their activations (``desc_act``). Adapters beside such a
model are LLMTune's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from t5x_llm.nn.fewbit.stored import Matrix, Stored

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float16, Float32, Int32, UInt8

BITS = (4, 8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GptqKernel(Stored):
    """A kernel of 4-bit or 8-bit integers.

    Attributes:
      codes: [*leading, I, *outputs] uint8, or of 4 bits [*leading, I / 2, *outputs]: the low half
        of a byte is an even input, the high half the next.
      scales: [*leading, groups, *outputs] float16.
      zeros: [*leading, groups, *outputs] uint8, codes of zero.
      groups: [*leading, I] int32, the group of each input.
      matrix: see ``Stored``.
      bits: 4 or 8.
    """

    codes: UInt8[Array, " ..."]
    scales: Float16[Array, " ..."]
    zeros: UInt8[Array, " ..."]
    groups: Int32[Array, " ..."]
    matrix: Matrix = dataclasses.field(metadata={"static": True})
    bits: int = dataclasses.field(metadata={"static": True})

    @property
    def leading(self) -> tuple[int, ...]:
        """Returns the sizes before the kernel's own."""
        return tuple(self.groups.shape[:-1])

    def names(self) -> Mapping[str, tuple[str | None, ...]]:
        """Returns logical names; groups are whole on every device, as any input may be of any."""
        out = self.matrix.out_axes
        return {
            "codes": (self.matrix.axes[0], *out),
            "scales": (None, *out),
            "zeros": (None, *out),
            "groups": (None,),
        }

    @property
    def static(self) -> Mapping[str, object]:
        """Returns what is no array."""
        return {"matrix": self.matrix, "bits": self.bits}

    @classmethod
    def rounded(
        cls, kernel: Float[Array, " ..."], matrix: Matrix, bits: int, group: int
    ) -> GptqKernel:
        """Stores a kernel of any leading axes with each weight rounded by itself.

        GPTQ's own codes come from a file; these have their form.

        Args:
          kernel: [*leading, *inputs, *outputs].
          matrix: the kernel's sizes.
          bits: 4 or 8.
          group: inputs of a group; 0 for all.
        """
        if kernel.ndim > len(matrix.shape):
            return jax.vmap(lambda k: cls.rounded(k, matrix, bits, group))(kernel)
        inputs, group = matrix.n_inputs, group or matrix.n_inputs
        groups = jnp.arange(inputs, dtype=jnp.int32) // group
        count = math.ceil(inputs / group)
        flat = kernel.astype(jnp.float32).reshape(inputs, *matrix.outputs)
        low = jnp.minimum(jax.ops.segment_min(flat, groups, count), 0)
        high = jnp.maximum(jax.ops.segment_max(flat, groups, count), 0)
        most = 2**bits - 1
        scales = jnp.maximum((high - low) / most, 1e-7).astype(jnp.float16)
        wide = scales.astype(jnp.float32)
        zeros = jnp.clip(jnp.round(-low / wide), 0, most)
        codes = jnp.clip(jnp.round(flat / wide[groups]) + zeros[groups], 0, most)
        codes, zeros = codes.astype(jnp.uint8), zeros.astype(jnp.uint8)
        if bits == 4:
            codes = codes[::2] | (codes[1::2] << 4)
        return cls(codes, scales, zeros, groups, matrix, bits)

    def dequantise(self) -> Float32[Array, " ..."]:
        """Computes the kernel [*leading, *inputs, *outputs] in float32."""
        if self.leading:
            return jax.vmap(lambda stored: stored.dequantise())(self)
        codes = self.codes
        if self.bits == 4:
            codes = jnp.stack([codes & 15, codes >> 4], 1).reshape(-1, *self.matrix.outputs)
        scales = jnp.take(self.scales, self.groups, 0, mode="clip").astype(jnp.float32)
        zeros = jnp.take(self.zeros, self.groups, 0, mode="clip").astype(jnp.float32)
        return ((codes.astype(jnp.float32) - zeros) * scales).reshape(self.matrix.shape)
