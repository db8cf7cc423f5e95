"""Storage of a frozen model beside adapters: float32, bfloat16, or its kernels in few bits.

In few bits are the kernels of the linear layers in blocks, those of experts included. Embeddings,
the head, routers, norms and biases are bfloat16 then.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.model import Model, Params
from t5x_llm.models.weight_map import Assembly, flatten, stacked, unflatten
from t5x_llm.nn.adapters.linears import linear_places
from t5x_llm.nn.adapters.targets import ALL, matches
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.fewbit.gptq import GptqKernel
from t5x_llm.nn.fewbit.int8 import Int8Kernel
from t5x_llm.nn.fewbit.nf4 import Nf4
from t5x_llm.nn.fewbit.stored import Matrix, Stored

STORAGE = ("float32", "bfloat16", "nf4", "int8", "gptq")
_GPTQ = re.compile(r"gptq-(\d)-(\d+)")
Quantiser = Callable[[jax.Array, Matrix], Stored]


@functools.lru_cache(64)
def quantiser(storage: str) -> Quantiser | None:
    """Returns the function (kernel, its sizes) that stores a kernel in few bits; None for floats.

    Args:
      storage: one of ``STORAGE``, for 'gptq' with bits and inputs of a group: 'gptq-4-128'.
    """
    if found := _GPTQ.fullmatch(storage):
        return functools.partial(GptqKernel.rounded, bits=int(found[1]), group=int(found[2]))
    return {"nf4": Nf4.quantise, "int8": Int8Kernel.quantise}.get(storage)


@functools.lru_cache(64)
def linear_kernels(model: Model) -> dict[str, Matrix]:
    """Returns the kernels of a model that may be stored in few bits, by dotted path."""
    found: dict[str, Matrix] = {}

    def look(key: jax.Array) -> None:
        module = model.config.make(nnx.Rngs(params=key))
        for path, (owner, _, kernel, _) in linear_places(module):
            if matches(path, ALL) and not getattr(owner, "exact", False):
                own = kernel.axes[len(kernel.axes) - len(kernel.inputs + kernel.outputs) :]
                name = f"{path}.kernel" if isinstance(owner, Dense) else path
                found[name] = Matrix(kernel.inputs, kernel.outputs, own)

    jax.eval_shape(look, jax.random.key(0))
    return found


def stored_kernels(model: Model, storage: str) -> dict[str, Matrix]:
    """Returns the kernels that a storage holds in few bits, by dotted path."""
    return linear_kernels(model.bare) if quantiser(storage) else {}


def storage_dtype(storage: str) -> Any:
    """Returns the dtype of what is not in few bits."""
    return Policy("bfloat16" if quantiser(storage) else storage).param_dtype


def store(params: Params, model: Model, storage: str) -> Params:
    """Stores parameters of a model; traced, or computed where they are.

    Args:
      params: nested dict of arrays.
      model: the model, whose adapters are not in ``params``.
      storage: see ``quantiser``.

    Returns:
      The same tree, in which a kernel in few bits is an ``nn.fewbit.Stored``.
    """
    kernels, dtype = stored_kernels(model, storage), storage_dtype(storage)
    quantise = quantiser(storage)

    def one(path: str, x: jax.Array) -> Any:
        if quantise is not None and path in kernels:
            return quantise(x, kernels[path])
        return x.astype(dtype)

    return unflatten({path: one(path, x) for path, x in flatten(params).items()})


@functools.lru_cache(64)
def abstract_stored(model: Model, storage: str) -> Params:
    """Returns the tree of ``store`` as ``jax.ShapeDtypeStruct``."""
    return jax.eval_shape(
        functools.partial(store, model=model, storage=storage), model.bare.abstract_params()
    )


@functools.lru_cache(64)
def stored_axes(model: Model, storage: str) -> Params:
    """Returns the tree of ``store`` with each array's tuple of logical axis names."""
    abstract, kernels = flatten(abstract_stored(model, storage)), stored_kernels(model, storage)

    def one(path: str, axes: tuple[str, ...]) -> Any:
        if path not in kernels:
            return axes
        spare = axes[: len(axes) - len(kernels[path].shape)]
        return abstract[path].changed(lambda _, own: (*spare, *own))

    axes = flatten(model.bare.logical_axes())
    return unflatten({path: one(path, names) for path, names in axes.items()})


class Storing:
    """Stores the parameters of a model while they are read, one repeat of one kernel at a time.

    What is quantised is so on a CPU, where the codes are those of bitsandbytes.

    Args:
      model: the model.
      storage: see ``quantiser``.
      shardings: tree of ``stored_axes`` with a sharding for every array.
    """

    def __init__(self, model: Model, storage: str, shardings: Params):
        self.kernels, self.dtype = stored_kernels(model, storage), storage_dtype(storage)
        self.quantise, self.shardings = quantiser(storage), flatten(shardings)

    def __call__(self, path: str, assembly: Assembly) -> Any:
        """Makes the parameter at ``path`` on its devices."""
        sharding = self.shardings[path]
        if path not in self.kernels:
            return jax.device_put(assembly.make(path).astype(self.dtype), sharding)
        if not stacked(path):
            return jax.device_put(self.one(path, assembly, None), sharding)
        repeats = range(assembly.leaves[path].shape[0])
        parts = [self.one(path, assembly, repeat) for repeat in repeats]
        return jax.tree.map(lambda s, *xs: jax.device_put(np.stack(xs), s), sharding, *parts)

    def one(self, path: str, assembly: Assembly, repeat: int | None) -> Any:
        """Makes one repeat of a kernel, or one that has none, with NumPy arrays."""
        assert self.quantise is not None
        with jax.default_device(_cpu()):
            kernel = jnp.asarray(assembly.make(path, repeat), jnp.float32)
            return jax.tree.map(np.asarray, _quantise(self.quantise, kernel, self.kernels[path]))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _quantise(quantise: Quantiser, kernel: jax.Array, matrix: Matrix) -> Stored:
    return quantise(kernel, matrix)


def _cpu() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a process that was given an accelerator alone
        return jax.local_devices()[0]
