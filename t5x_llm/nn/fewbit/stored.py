"""Kernels that are stored in few bits, and products with them.

Such a kernel is frozen. Its arrays stand in a tree of parameters where the kernel would, with the
names of their fields as the last keys (``...query.kernel.codes``), each with the leading axes of
the kernel: repeats of a scanned layer, experts. It is dequantised where it is used, inside the
product, so that XLA may fuse the two and nothing of 16 bits is kept for the backward pass: the
gradient goes through to the inputs, by the dequantised kernel once more, and there is none to the
kernel.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels import keep, linear
from t5x_llm.nn.remat import PRODUCT
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32


class Matrix(NamedTuple):
    """One kernel without repeats and experts.

    Attributes:
      inputs: sizes of the axes that are contracted.
      outputs: sizes of the others.
      axes: their logical names, of inputs and then of outputs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns inputs and outputs."""
        return self.inputs + self.outputs

    @property
    def n_inputs(self) -> int:
        """Returns the inputs in all, I."""
        return math.prod(self.inputs)

    @property
    def n_outputs(self) -> int:
        """Returns the outputs in all, O."""
        return math.prod(self.outputs)

    @property
    def out_axes(self) -> tuple[str, ...]:
        """Returns the logical names of the outputs."""
        return self.axes[len(self.inputs) :]


class Stored(abc.ABC):
    """A kernel in few bits, a pytree whose leaves are its arrays.

    It stands for the array that it dequantises to: it has its shape, and ``[...]`` gives it.

    Attributes:
      matrix: the kernel's own sizes, static.
    """

    matrix: Matrix

    @property
    @abc.abstractmethod
    def leading(self) -> tuple[int, ...]:
        """Returns the sizes before the kernel's own."""

    @abc.abstractmethod
    def dequantise(self) -> Float32[Array, " ..."]:
        """Computes the kernel [*leading, *inputs, *outputs] in float32."""

    @abc.abstractmethod
    def names(self) -> Mapping[str, tuple[str | None, ...]]:
        """Returns logical names of the trailing axes of each array, by its field."""

    @property
    def static(self) -> Mapping[str, Any]:
        """Returns the fields that are no arrays."""
        return {"matrix": self.matrix}

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns that of the kernel."""
        return self.leading + self.matrix.shape

    @property
    def ndim(self) -> int:
        """Returns the number of axes of the kernel."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Returns float32, in which it is dequantised."""
        return jnp.dtype(jnp.float32)

    def __getitem__(self, index: Any) -> Float32[Array, " ..."]:
        """Returns the dequantised kernel, or a part of it."""
        if index is ...:
            return self.dequantise()
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int) and self.leading:
            part = jax.tree.map(lambda x: x[first], self)
            return part[tuple(rest) if rest else ...]
        return self.dequantise()[index]

    def placed(self, spare: tuple[str, ...] = ()) -> Any:
        """Lays the arrays out for compute, so that few bits travel where a kernel is gathered.

        Args:
          spare: logical names of the leading axes: those of experts.
        """
        return self.changed(lambda x, axes: constrain(x, (*spare, *axes)))

    def changed(self, change: Callable[[Any, tuple[str | None, ...]], Any]) -> Any:
        """Returns the same tree with each array made anew.

        Args:
          change: function of an array and the logical names of its trailing axes.
        """
        arrays = {name: change(getattr(self, name), axes) for name, axes in self.names().items()}
        made: Any = type(self)
        return made(**arrays, **self.static)

    @property
    def nbytes(self) -> int:
        """Returns the bytes of its arrays."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(self))


def is_stored(x: Any) -> bool:
    """Returns True for a kernel in few bits: what ``jax.tree.map`` takes as ``is_leaf``."""
    return isinstance(x, Stored)


def dequantise(tree: Any) -> Any:
    """Returns a tree of parameters with every kernel as an array, those in few bits in float32."""
    return jax.tree.map(lambda x: x.dequantise() if is_stored(x) else x, tree, is_leaf=is_stored)


def frozen_product(
    x: Float[Array, " ..."], stored: Stored, axes: tuple[str, ...]
) -> Float[Array, " ..."]:
    """``linear`` of x and a kernel in few bits, with a gradient to x alone.

    Args:
      x: [..., *inputs].
      stored: a kernel [*inputs, *outputs].
      axes: the kernel's logical axes.

    Returns:
      [..., *outputs] in the dtype of ``x``.
    """
    return keep(_product(x, stored, axes), PRODUCT)


def _kernel(stored: Stored, axes: tuple[str, ...], dtype: Any) -> jax.Array:
    return constrain(stored.placed()[...].astype(dtype), axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, stored: Stored, axes: tuple[str, ...]) -> jax.Array:
    return linear(x, _kernel(stored, axes, x.dtype), len(stored.matrix.inputs))


def _forward(x: jax.Array, stored: Stored, axes: tuple[str, ...]) -> tuple[jax.Array, Stored]:
    return _product(x, stored, axes), stored


def _backward(axes: tuple[str, ...], stored: Stored, dy: jax.Array) -> tuple[jax.Array, None]:
    matrix = stored.matrix
    kernel = _kernel(stored, axes, dy.dtype)
    rows = dy.shape[: dy.ndim - len(matrix.outputs)]
    nothing = jnp.zeros((*rows, *matrix.inputs), dy.dtype)
    pull = jax.vjp(lambda x: linear(x, kernel, len(matrix.inputs)), nothing)[1]
    return pull(dy)[0], None


_product.defvjp(_forward, _backward)
