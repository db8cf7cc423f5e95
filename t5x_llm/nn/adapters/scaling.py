"""(IA)3: learned factors on the inputs or outputs of linear layers (arXiv 2205.05638)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.linear import LinearAdapter
from t5x_llm.nn.adapters.linears import linear_places
from t5x_llm.nn.adapters.targets import check_targets, chosen
from t5x_llm.nn.param import constant

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Float, Key


class InputScale(LinearAdapter):
    """Factors ``scale`` [*inputs] on what a linear layer reads; experts have their own."""

    def __init__(self, scale: nnx.Param[jax.Array], n_outputs: int):
        self.scale, self.n_outputs = scale, n_outputs

    def inputs(self, x: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns x [..., *inputs] times the factors."""
        return x * self.scale[...].astype(x.dtype)

    def merged(self, kernel: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns the kernel times the factors of its inputs, in float32."""
        scale = self.scale[...]
        scale = scale.reshape(*scale.shape, *(1,) * self.n_outputs)
        return kernel.astype(jnp.float32) * scale

    def merged_experts(self, kernels: Float[Array, "E _ _"]) -> Float[Array, "E _ _"]:
        """Returns ``merged`` of the kernels of experts, each with its own factors."""
        return self.merged(kernels)


class OutputScale(LinearAdapter):
    """Factors ``scale`` [*outputs] on what a linear layer gives, its bias included."""

    def __init__(self, scale: nnx.Param[jax.Array]):
        self.scale = scale

    def outputs(self, y: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns y [..., *outputs] times the factors."""
        return y * self.scale[...].astype(y.dtype)

    def merged(self, kernel: Float[Array, " ..."]) -> Float[Array, " ..."]:
        """Returns the kernel times the factors of its outputs, in float32; a bias has them too."""
        return kernel.astype(jnp.float32) * self.scale[...]

    def merged_experts(self, kernels: Float[Array, "E _ _"]) -> Float[Array, "E _ _"]:
        """Returns ``merged`` of the kernels of experts, each with its own factors."""
        return kernels.astype(jnp.float32) * self.scale[...][:, None, :]


@dataclasses.dataclass(frozen=True)
class IA3(Adapter):
    """(IA)3: factors, 1 at first, on keys, values and the inner activations of feed-forward layers.

    Attributes:
      outputs: linear layers whose outputs are scaled, see ``targets.matches``.
      inputs: those whose inputs are.
    """

    outputs: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ("down",)

    method: ClassVar[str] = "IA3"

    def __post_init__(self) -> None:
        for name in ("outputs", "inputs"):
            if getattr(self, name) != ():
                names = check_targets(f"IA3.{name}", getattr(self, name))
                object.__setattr__(self, name, names)
        if not self.outputs and not self.inputs:
            raise ConfigError("IA3.outputs", (), "some layers here or in IA3.inputs")

    def attach(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives the chosen layers their factors; see ``Adapter``.

        Raises:
          ConfigError: a name is no layer's, or a layer is chosen for both.
        """
        places = dict(linear_places(module))
        scaled = chosen(places, self.outputs, "IA3.outputs")
        read = chosen(places, self.inputs, "IA3.inputs")
        if both := sorted(set(scaled) & set(read)):
            raise ConfigError("IA3.inputs", both[0], "a layer that is not in IA3.outputs")
        for path in (*scaled, *read):
            owner, attribute, shape, _ = places[path]
            n_inputs, n_outputs = len(shape.inputs), len(shape.outputs)
            spare = shape.axes[: len(shape.axes) - n_inputs - n_outputs]
            own, inside = shape.axes[len(spare) :], path in read
            sizes = shape.inputs if inside else shape.outputs
            names = own[:n_inputs] if inside else own[n_inputs:]
            scale = constant((*shape.leading, *sizes), 1.0, (*spare, *names))
            made = InputScale(scale, n_outputs) if inside else OutputScale(scale)
            setattr(owner, attribute, made)
