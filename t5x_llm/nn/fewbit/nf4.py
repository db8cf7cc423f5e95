"""NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3), code for code bitsandbytes'.

bitsandbytes flattens a Hugging Face weight [outputs, inputs], and every 64 numbers of it share a
scale: a block is 64 inputs of one output, whatever the order in which a kernel [inputs, outputs]
lies. Here blocks are cut along the inputs, so that outputs, and whole blocks of inputs, may lie on
devices of their own. Where the inputs are no multiple of 64 an output's last block is a shorter one
(bitsandbytes' would go on into the next output, and its codes are others there).

Scales, less their mean, have 8 bits (a float of one sign bit and an exponent of as many bits as its
leading zeros, arXiv 1511.04561); 256 of them share a float32, in bitsandbytes' order: the blocks of
the first output, then those of the second. That makes 4 + 8/64 + 32/(64 * 256) = 4.127 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.nn.fewbit.stored import Matrix, Stored

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, UInt8

BLOCK, GROUP = 64, 256
_HALF = BLOCK // 2
# Quantiles of a normal distribution with an exact zero, scaled to [-1, 1]: appendix E.
TABLE = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _scale_table() -> np.ndarray:
    """Makes the 256 values of a scale, in order, with the rounding of torch's ``linspace``."""
    found = [0.0, 1.0]
    first = float(np.float32(0.1))
    for exponent in range(7):
        count = 2**exponent
        step = float(np.float32((1 - np.float32(0.1)) / np.float32(count)))
        place = np.arange(count + 1)
        bounds = np.where(place <= count // 2, first + step * place, 1 - step * (count - place))
        bounds = bounds.astype(np.float32)
        middles = (bounds[:-1] + bounds[1:]) / np.float32(2)
        values = np.float32(10.0 ** (exponent - 6)) * middles
        found += [*values.tolist(), *(-values).tolist()]
    return np.sort(np.array(found, np.float32))


SCALES = _scale_table()
# bitsandbytes finds the code of a scale in a table of 65,536 bins of [-1, 1] when it runs on a CPU.
_BINS = np.float32(32767.5)
_NEAREST_SCALE = np.searchsorted(
    (SCALES[:-1] + SCALES[1:]) / np.float32(2),
    np.arange(65536, dtype=np.float32) / _BINS - np.float32(1),
).astype(np.uint8)


def _code(x: jax.Array) -> jax.Array:
    """Returns the index of the value of ``TABLE`` that is nearest to each x of [-1, 1], uint8."""
    code = jnp.zeros(x.shape, jnp.uint8)
    for bound in (TABLE[:-1] + TABLE[1:]) / np.float32(2):
        code += (x > bound).astype(jnp.uint8)
    return code


def _scale_code(x: jax.Array) -> jax.Array:
    """Returns the index into ``SCALES`` of each x of [-1, 1], uint8."""
    place = jnp.floor((x + 1.0) * _BINS + 0.5).astype(jnp.int32)
    return jnp.take(_NEAREST_SCALE, place, mode="clip")


def _inverse(largest: jax.Array) -> jax.Array:
    """Returns the reciprocal of magnitudes, 0 of 0."""
    return jnp.where(largest > 0, 1.0 / largest, 0.0)


def _looked_up(code: jax.Array) -> jax.Array:
    """Returns the values of codes [...] uint8, by selections, which fuse with what uses them."""
    values = [jnp.float32(value) for value in TABLE]
    for bit in range(4):
        one = (code >> bit) & 1 == 1
        values = [
            jnp.where(one, high, low) for low, high in zip(values[::2], values[1::2], strict=True)
        ]
    return values[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4(Stored):
    """A kernel of 4-bit codes.

    Attributes:
      codes: [*leading, 32 blocks, *outputs] uint8; the high half of a byte is an input of the first
        half of its block, the low half that 32 inputs later.
      scales: [*leading, blocks, *outputs] uint8, indices into ``SCALES``.
      groups: [*leading, groups] float32, scales of the scales.
      offset: [*leading] float32, mean of the scales.
      matrix: see ``Stored``.
    """

    codes: UInt8[Array, " ..."]
    scales: UInt8[Array, " ..."]
    groups: Float32[Array, " ..."]
    offset: Float32[Array, " ..."]
    matrix: Matrix = dataclasses.field(metadata={"static": True})

    @property
    def leading(self) -> tuple[int, ...]:
        """Returns the sizes before the kernel's own."""
        return tuple(self.groups.shape[:-1])

    def names(self) -> Mapping[str, tuple[str | None, ...]]:
        """Returns logical names; blocks lie where the inputs do, if they cut them evenly."""
        even = self.matrix.n_inputs % BLOCK == 0
        blocks = self.matrix.axes[0] if even else None
        out = self.matrix.out_axes
        return {
            "codes": (blocks, *out),
            "scales": (blocks, *out),
            "groups": (None,),
            "offset": (),
        }

    @classmethod
    def quantise(cls, kernel: Float[Array, " ..."], matrix: Matrix) -> Nf4:
        """Stores a kernel [*leading, *inputs, *outputs], each matrix by itself."""
        lead = kernel.shape[: kernel.ndim - len(matrix.shape)]
        flat = kernel.astype(jnp.float32).reshape(-1, matrix.n_inputs, matrix.n_outputs)
        codes, scales, groups, offset = jax.vmap(_quantise)(flat)
        blocks = scales.shape[1]
        return cls(
            codes.reshape(*lead, -1, *matrix.outputs),
            scales.reshape(*lead, blocks, *matrix.outputs),
            groups.reshape(*lead, -1),
            offset.reshape(lead),
            matrix,
        )

    def block_scales(self) -> Float32[Array, " ..."]:
        """Computes the scale of each block: [*leading, blocks, *outputs]."""
        lead, (blocks, *_) = self.leading, self.scales.shape[len(self.leading) :]
        each = jnp.repeat(self.groups, GROUP, -1)[..., : blocks * self.matrix.n_outputs]
        each = jnp.swapaxes(each.reshape(*lead, self.matrix.n_outputs, blocks), -1, -2)
        values = jnp.take(SCALES, self.scales, mode="clip")
        offset = self.offset.reshape(*lead, *[1] * (values.ndim - len(lead)))
        return values * each.reshape(values.shape) + offset

    def dequantise(self) -> Float32[Array, " ..."]:
        """Computes the kernel [*leading, *inputs, *outputs] in float32."""
        axis = len(self.leading) + 1
        scales = jnp.expand_dims(self.block_scales(), (axis, axis + 1))
        codes = self.codes.reshape(*self.leading, -1, _HALF, *self.matrix.outputs)
        codes = jnp.stack([codes >> 4, codes & 15], axis)
        whole = _looked_up(codes) * scales
        whole = whole.reshape(*self.leading, -1, *self.matrix.outputs)
        whole = jax.lax.slice_in_dim(whole, 0, self.matrix.n_inputs, axis=axis - 1)
        return whole.reshape(self.shape)


def _quantise(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Returns codes [blocks, 32, O], scales [blocks, O], groups [groups] and offset of [I, O]."""
    inputs, outputs = kernel.shape
    kernel = jnp.pad(kernel, ((0, -inputs % BLOCK), (0, 0)))
    blocks = kernel.reshape(-1, BLOCK, outputs)
    largest = jnp.max(jnp.abs(blocks), 1)
    code = _code(jnp.clip(blocks * _inverse(largest)[:, None], -1.0, 1.0))
    offset = jnp.mean(largest)
    flat = (largest - offset).T.reshape(-1)
    flat = jnp.pad(flat, (0, -flat.size % GROUP)).reshape(-1, GROUP)
    groups = jnp.max(jnp.abs(flat), 1)
    scales = _scale_code(flat * _inverse(groups)[:, None])
    scales = scales.reshape(-1)[: largest.size].reshape(outputs, -1).T
    return (code[:, :_HALF] << 4) | code[:, _HALF:], scales, groups, offset


def flat_codes(stored: Nf4) -> UInt8[np.ndarray, " _"]:
    """Returns the codes of one kernel [I * O] in bitsandbytes' order, one a byte."""
    codes = np.asarray(stored.codes).reshape(-1, _HALF, stored.matrix.n_outputs)
    both = np.concatenate([codes >> 4, codes & 15], 1).reshape(-1, stored.matrix.n_outputs)
    return both[: stored.matrix.n_inputs].T.reshape(-1)
