"""Products of 8-bit numbers, forwards and backwards, with qwix's quantisation.

What is multiplied is rounded to 8 bits with one scale for each slice along the axes that the
product keeps, the largest magnitude of the slice (qwix's "absmax", as in its quantised training):

    forward          y = x k      a scale a token of x, a scale an output of k
    backward, to x   dx = dy k'   the scale of k goes into dy, then a scale a token of dy
    backward, to k   dk = x' dy   the scale of x goes into dy, then a scale an output of dy

fp8 is e4m3 for x and k and e5m2 for dy (arXiv 2209.05433). int8 leaves the last product as it is
(arXiv 2304.13013): it sums over all tokens, whose gradients differ by more than 8 bits, and the
TPU compiler gives it no more speed in int8. The rounding itself has the gradient of the identity.
Nothing is learned, remembered or random.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import jax

from t5x_llm.nn.kernels import keep
from t5x_llm.nn.remat import PRODUCT
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# ``Policy.quantized`` to the types of x and k, of dy for dx, and of dy for dk; None leaves both
# sides as they are.
_TYPES = {
    "int8": ("int8", "int8", None),
    "fp8": ("float8_e4m3fn", "float8_e5m2", "float8_e5m2"),
}
_KIND: ContextVar[str] = ContextVar("t5x_llm_quantized", default="")


@contextlib.contextmanager
def quantized(kind: str) -> Iterator[None]:
    """Linear layers called within multiply as ``Policy.quantized`` = ``kind`` says.

    Read while a function is traced, as ``parallel.use`` is.
    """
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


def quantization() -> str:
    """The innermost ``quantized`` of this thread; '' for none."""
    return _KIND.get()


def quantized_product(
    x: Float[Array, " ..."],
    kernel: Float[Array, " ..."],
    axes: tuple[str, ...],
    n_inputs: int,
    kind: str,
) -> Float[Array, " ..."]:
    """``linear`` of x and kernel rounded to 8 bits.

    Args:
      x: [..., *inputs].
      kernel: [*inputs, *outputs], same dtype as ``x``, laid out as it is stored: it is rounded
        before it is gathered, so that 8-bit numbers travel.
      axes: the kernel's logical axes.
      n_inputs: number of contracted axes.
      kind: 'int8' or 'fp8'.

    Returns:
      [..., *outputs] in the dtype of ``x``.
    """
    return keep(_product(x, kernel, axes, n_inputs, kind), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(
    x: jax.Array, kernel: jax.Array, axes: tuple[str, ...], n_inputs: int, kind: str
) -> jax.Array:
    return _forward(x, kernel, axes, n_inputs, kind)[0]


def _forward(
    x: jax.Array, kernel: jax.Array, axes: tuple[str, ...], n_inputs: int, kind: str
) -> tuple[jax.Array, Any]:
    import qwix

    rows, inputs = range(x.ndim - n_inputs), range(n_inputs)
    qx = qwix.quantize(x, _TYPES[kind][0], channelwise_axes=rows)
    qk = qwix.quantize(kernel, _TYPES[kind][0], channelwise_axes=range(n_inputs, kernel.ndim))
    scale_axes = (None,) * n_inputs + axes[n_inputs:]
    values = constrain(constrain(qk.qvalue, axes, "params"), axes)
    qk = qwix.QArray(values, constrain(qk.scale, scale_axes))
    contracted = tuple(range(len(rows), x.ndim)), tuple(inputs)
    y = qwix.dot_general(qx, qk, (contracted, ((), ())))
    return y, (x if _TYPES[kind][2] is None else qx, qk)


def _backward(
    axes: tuple[str, ...], n_inputs: int, kind: str, saved: Any, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    import qwix

    x, qk = saved
    _, to_x, to_k = _TYPES[kind]
    rows = tuple(range(x.ndim - n_inputs))
    outputs = tuple(range(len(rows), dy.ndim))
    g = dy * qk.scale.reshape(qk.shape[n_inputs:])
    g = qwix.quantize(g, to_x, channelwise_axes=rows)
    contracted = outputs, tuple(range(n_inputs, qk.ndim))
    dx = qwix.dot_general(g, qk.qvalue, (contracted, ((), ())))
    g = dy
    if to_k is not None:
        g = dy * x.scale.reshape(*(dy.shape[i] for i in rows), *(1 for _ in outputs))
        g, x = qwix.quantize(g, to_k, channelwise_axes=outputs), x.qvalue
    return dx, qwix.dot_general(x, g, ((rows, rows), ((), ())))


_product.defvjp(_forward, _backward)
