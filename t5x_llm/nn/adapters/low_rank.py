"""Low-rank factors beside the kernel of a linear layer."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.adapters.linear import LinearAdapter
from t5x_llm.nn.kernels import linear
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Key


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Shape of one kernel that is adapted, with its leading axes apart.

    Attributes:
      leading: sizes before the kernel's own: repeats of a scanned layer, experts.
      inputs: sizes of the axes that are contracted.
      outputs: sizes of the others.
      axes: logical names of experts, inputs and outputs; repeats have none.
    """

    leading: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """Returns inputs and outputs in all."""
        return math.prod(self.inputs), math.prod(self.outputs)

    def flat(self, kernel: Float[Array, " ..."]) -> Float32[Array, " ..."]:
        """Returns kernels [*leading, *inputs, *outputs] as [*leading, I, O] in float32."""
        return kernel.astype(jnp.float32).reshape(*self.leading, *self.matrix)


@dataclasses.dataclass(frozen=True)
class Form:
    """Use of factors: scaling, dropout, and axes of the inputs.

    Attributes:
      scaling: factor on x A B.
      dropout: share of the inputs of A that are dropped where there is a key.
      n_inputs: axes of the inputs.
    """

    scaling: float
    dropout: float
    n_inputs: int


class LowRank(LinearAdapter):
    """Factors ``a`` [*inputs, r] and ``b`` [r, *outputs] of a change to a kernel.

    ``initial_a`` and ``initial_b`` are those of PiSSA's start, which is taken off the kernel again;
    ``magnitude`` [*outputs] is DoRA's. In a scanned layer all have an axis of repeats before, those
    of experts an axis of experts.

    Args:
      form: how they are used.
      factors: parameters by name.
    """

    initial_a: nnx.Param[Float32[Array, " ..."]] | None = None
    initial_b: nnx.Param[Float32[Array, " ..."]] | None = None
    magnitude: nnx.Param[Float32[Array, " ..."]] | None = None
    key: nnx.Variable[Key[Array, " ..."]] | None = None

    def __init__(self, form: Form, factors: dict[str, nnx.Param[jax.Array]]):
        self.form = form
        for name, factor in factors.items():
            setattr(self, name, factor)
        self.a, self.b = factors["a"], factors["b"]

    def __call__(
        self, x: Float[Array, " ..."], y: Float[Array, " ..."], kernel: Float[Array, " ..."]
    ) -> Float[Array, " ..."]:
        """Returns what the layer makes of ``x``, before its bias.

        Args:
          x: [..., *inputs].
          y: [..., *outputs], x times the kernel.
          kernel: [*inputs, *outputs], of any dtype.
        """
        y = y + self._product(self._dropped(x), self.a, self.b)
        if self.initial_a is not None and self.initial_b is not None:
            y = y - self._product(x, self.initial_a, self.initial_b)
        if self.magnitude is None:
            return y
        norm = jax.lax.stop_gradient(self._norm(self._sum(kernel)))
        return y * (self.magnitude[...] / norm).astype(y.dtype)

    def merged(self, kernel: Float[Array, " ..."]) -> Float32[Array, " ..."]:
        """Returns the kernel [*inputs, *outputs] that does the same without factors, in float32."""
        whole = self._sum(kernel)
        if self.magnitude is None:
            return whole
        return whole * (self.magnitude[...] / jax.lax.stop_gradient(self._norm(whole)))

    def merged_experts(self, kernels: Float[Array, "E _ _"]) -> Float32[Array, "E _ _"]:
        """Returns ``merged`` of the kernels of experts."""
        change = jnp.einsum("eir,ero->eio", self.a[...], self.b[...])
        if self.initial_a is not None and self.initial_b is not None:
            change -= jnp.einsum("eir,ero->eio", self.initial_a[...], self.initial_b[...])
        return kernels.astype(jnp.float32) + self.form.scaling * change

    def _product(self, x: jax.Array, a: nnx.Param[jax.Array], b: nnx.Param[jax.Array]) -> jax.Array:
        inner = linear(x, _placed(a, x.dtype), self.form.n_inputs)
        return linear(inner, _placed(b, x.dtype)) * jnp.asarray(self.form.scaling, x.dtype)

    def _sum(self, kernel: jax.Array) -> jax.Array:
        change = jnp.tensordot(self.a[...], self.b[...], 1)
        if self.initial_a is not None and self.initial_b is not None:
            change -= jnp.tensordot(self.initial_a[...], self.initial_b[...], 1)
        return kernel.astype(jnp.float32) + self.form.scaling * change

    def _norm(self, kernel: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(self.form.n_inputs))))

    def _dropped(self, x: jax.Array) -> jax.Array:
        if self.key is None or not self.form.dropout:
            return x
        kept = jax.random.bernoulli(self.key[...], 1.0 - self.form.dropout, x.shape)
        return jnp.where(kept, x / jnp.asarray(1.0 - self.form.dropout, x.dtype), 0)


def _placed(factor: nnx.Param[jax.Array], dtype: jnp.dtype) -> jax.Array:
    """Returns a factor in ``dtype``, placed for compute where its axes have names."""
    axes = factor.get_metadata().get("logical")
    value = factor[...].astype(dtype)
    return value if axes is None else constrain(value, axes)
