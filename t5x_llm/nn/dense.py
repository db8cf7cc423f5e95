"""Learned linear maps and embeddings; the arithmetic of a product lives in ``nn/kernels``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.fewbit.stored import Stored, frozen_product
from t5x_llm.nn.kernels import linear
from t5x_llm.nn.param import constant, normal
from t5x_llm.nn.quantized import quantization, quantized_product
from t5x_llm.parallel import constrain, constrain_parameter, padded_size

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int

    from t5x_llm.nn.adapters.linear import LinearAdapter


class Dense(nnx.Module):
    """Contracts the trailing axes of its input with a kernel of shape ``inputs + outputs``.

    The kernel is cast to the input's dtype first, so that the gather over the fsdp axis moves
    compute-dtype bytes. ``exact`` keeps the product in that dtype whatever ``Policy.quantized``
    says. Instead of an array the kernel may be one in few bits, frozen (``nn.fewbit``).
    ``adapter`` changes what comes out, or the kernel where that is asked for.
    """

    adapter: LinearAdapter | None = None

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        input_axes: tuple[str, ...],
        output_axes: tuple[str, ...],
        *,
        std: float,
        bias: bool,
        rngs: nnx.Rngs,
        exact: bool = False,
    ):
        self.n_inputs = len(inputs)
        self.exact = exact
        self.axes = input_axes + output_axes
        self.kernel = normal(rngs, inputs + outputs, std, self.axes)
        self.use_bias = bias
        if bias:
            self.bias = constant(outputs, 0.0, output_axes)

    def __call__(self, x: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """[..., *inputs] -> [..., *outputs]."""
        adapter = self.adapter
        x = x if adapter is None else adapter.inputs(x)
        kind = "" if self.exact else quantization()
        if kind:
            kernel = self.kernel[...].astype(x.dtype)
            y = quantized_product(x, kernel, self.axes, self.n_inputs, kind)
        elif isinstance(stored := self.kernel.get_value(), Stored):
            y = frozen_product(x, stored, self.axes)
        else:
            kernel = constrain(self.kernel[...].astype(x.dtype), self.axes)
            y = linear(x, kernel, self.n_inputs)
        if adapter is not None:
            y = adapter(x, y, self.kernel[...])
        y = y + self.bias[...].astype(y.dtype) if self.use_bias else y
        return y if adapter is None else adapter.outputs(y)

    def weights(self, dtype: jnp.dtype) -> Float[Array, " ..."]:
        """The kernel with its adapter in ``dtype``, placed for compute."""
        return constrain(self._merged().astype(dtype), self.axes)

    def head_weights(self, dtype: jnp.dtype) -> Float[Array, " ..."]:
        """``weights`` whose gradient comes in pieces, see ``parallel.constrain_parameter``."""
        return constrain_parameter(self._merged().astype(dtype), self.axes)

    def _merged(self) -> jax.Array:
        stored = self.kernel.get_value()
        kernel = stored.placed()[...] if isinstance(stored, Stored) else stored
        return kernel if self.adapter is None else self.adapter.merged(kernel)


class Embedding(nnx.Module):
    """A table [V, D] (or [positions, D]): looked up, and attended to where the head is tied."""

    def __init__(self, rows: int, width: int, std: float, rngs: nnx.Rngs, axis: str = "vocab"):
        self.axes = (axis, "embed")
        self.table = normal(rngs, (rows, width), std, self.axes)

    def __call__(self, ids: Int[Array, "*B"], dtype: jnp.dtype) -> Float[Array, "*B D"]:
        """Rows for ids [...]: [..., D] in ``dtype``. Others give NaN (zeros in padding)."""
        return jnp.take(self.padded(dtype), ids, axis=0, mode="fill")

    def weights(self, dtype: jnp.dtype) -> Float[Array, "V D"]:
        """The table [V, D] in ``dtype``, placed for compute."""
        return constrain(self.table[...].astype(dtype), self.axes)

    def padded(self, dtype: jnp.dtype) -> Float[Array, "rows D"]:
        """``weights`` with rows of zeros at the end, so that the mesh cuts it evenly."""
        table = self.table[...]
        more = padded_size(self.axes[0], len(table)) - len(table)
        if not more:
            return self.weights(dtype)
        filled = jnp.pad(table.astype(dtype), ((0, more), (0, 0)))
        # By way of the layout of a table that is stored so, or XLA gathers all of it.
        return constrain(constrain(filled, self.axes, "params"), self.axes)

    def head_weights(self, dtype: jnp.dtype, padded: bool) -> Float[Array, "rows D"]:
        """``padded`` or ``weights``, whose gradient comes in pieces."""
        table = self.table[...].astype(dtype)
        more = padded_size(self.axes[0], len(table)) - len(table) if padded else 0
        if more:
            table = constrain(jnp.pad(table, ((0, more), (0, 0))), self.axes, "params")
        return constrain_parameter(table, self.axes)

    def attend(self, x: Float[Array, "*B D"]) -> Float32[Array, "*B V"]:
        """Logits of x [..., D] against every row: [..., V], float32."""
        return jax.lax.dot_general(
            x,
            self.weights(x.dtype),
            (((x.ndim - 1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
