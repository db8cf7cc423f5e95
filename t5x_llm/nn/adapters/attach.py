"""Low-rank factors for the linear layers of a model that was made."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.rng import fold_name
from t5x_llm.nn.adapters.config import LoRA
from t5x_llm.nn.adapters.low_rank import Form, Kernel, LowRank
from t5x_llm.nn.adapters.targets import chosen, matches
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.moe import Experts

Place = tuple[nnx.Module, str, Kernel, jax.Array]


def linear_places(module: nnx.Module) -> Iterator[tuple[str, Place]]:
    """Yields every kernel that can be adapted.

    Yields:
      (path of the layer, (its module, name of the attribute that takes the adapter, shape of the
      kernel, the kernel with its leading axes)). Experts have one for each of their kernels.
    """
    for path, found in nnx.iter_modules(module):
        name = ".".join(map(str, path))
        if isinstance(found, Dense):
            kernel = found.kernel[...]
            lead = kernel.ndim - len(found.axes)
            own = kernel.shape[lead:]
            shape = Kernel(
                kernel.shape[:lead], own[: found.n_inputs], own[found.n_inputs :], found.axes
            )
            yield name, (found, "adapter", shape, kernel)
        elif isinstance(found, Experts):
            for part, axes in found.parts().items():
                kernel = getattr(found, part)[...]
                *lead, inputs, outputs = kernel.shape
                shape = Kernel(tuple(lead), (inputs,), (outputs,), axes)
                yield f"{name}.{part}", (found, f"{part}_adapter", shape, kernel)


def attach_low_rank(module: nnx.Module, config: LoRA, key: jax.Array) -> None:
    """Gives the targets of a model low-rank factors; see ``Adapter.attach``."""
    places = dict(linear_places(module))
    for path in chosen(places, tuple(config.targets), "LoRA.targets"):
        owner, attribute, shape, kernel = places[path]
        asked = [rank for target, rank in config.ranks.items() if matches(path, target)]
        rank = asked[-1] if asked else config.rank
        if rank > min(shape.matrix):
            raise ConfigError(
                "LoRA.ranks" if asked else "LoRA.rank",
                rank,
                f"at most {min(shape.matrix)}: {path} has {shape.matrix[0]} inputs and "
                f"{shape.matrix[1]} outputs",
                "Lower it, give this layer a rank of its own (LoRA.ranks), or leave it out.",
            )
        if isinstance(owner, Experts) and (config.dropout or config.dora):
            field = "LoRA.dropout" if config.dropout else "LoRA.dora"
            raise ConfigError(
                field,
                getattr(config, field.split(".")[1]),
                f"none for experts, whose kernels are changed before they are used ({path})",
                "Leave experts out of LoRA.targets, or do without it.",
            )
        made = low_rank(config, rank, shape, kernel, fold_name(key, path))
        setattr(owner, attribute, made)


def low_rank(config: LoRA, rank: int, shape: Kernel, kernel: jax.Array, key: jax.Array) -> LowRank:
    """Makes the factors of one kernel with their initial values.

    Args:
      config: the method.
      rank: r.
      shape: of the kernel.
      kernel: [*leading, *inputs, *outputs].
      key: random key of this kernel.
    """
    n, leading = len(shape.inputs), shape.leading
    scaling = config.scaling(rank)
    spare = shape.axes[: len(shape.axes) - n - len(shape.outputs)]  # that of experts
    in_axes, out_axes = shape.axes[len(spare) :][:n], shape.axes[len(spare) + n :]
    a_shape, b_shape = (*leading, *shape.inputs, rank), (*leading, rank, *shape.outputs)
    if config.init == "pissa":
        u, s, v = jnp.linalg.svd(shape.flat(kernel), full_matrices=False)
        root = jnp.sqrt(s[..., :rank] / scaling)
        a = (u[..., :rank] * root[..., None, :]).reshape(a_shape)
        b = (root[..., None] * v[..., :rank, :]).reshape(b_shape)
    else:
        a, b = jnp.zeros(a_shape, jnp.float32), jnp.zeros(b_shape, jnp.float32)
        if config.init == "zero_b":  # as PEFT: U(-1 / sqrt(inputs), 1 / sqrt(inputs))
            a = _uniform(key, a_shape, shape.matrix[0])
        else:
            b = _uniform(key, b_shape, rank)
    axes = {"a": (*spare, *in_axes, "rank"), "b": (*spare, "rank", *out_axes)}
    factors = {"a": nnx.Param(a, logical=axes["a"]), "b": nnx.Param(b, logical=axes["b"])}
    if config.init == "pissa":
        factors["initial_a"] = nnx.Param(a, logical=axes["a"])
        factors["initial_b"] = nnx.Param(b, logical=axes["b"])
    if config.dora:
        norm = jnp.linalg.norm(shape.flat(kernel), axis=-2)
        norm = norm.reshape(*leading, *shape.outputs)
        factors["magnitude"] = nnx.Param(norm, logical=out_axes)
    return LowRank(Form(scaling, config.dropout, n), factors)


def _uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def give_keys(module: nnx.Module, key: jax.Array) -> None:
    """Gives all factors that drop inputs a random key, by their paths; scanned ones one a layer."""
    found = [(path, m) for path, m in nnx.iter_modules(module) if isinstance(m, LowRank)]
    for path, factors in found:
        own = fold_name(key, ".".join(map(str, path)))
        lead = factors.a.ndim - factors.form.n_inputs - 1
        if factors.form.dropout:
            factors.key = nnx.Variable(jax.random.split(own, factors.a.shape[0]) if lead else own)
