"""Linear layers of a model that was made, and the kernels of its experts."""

from __future__ import annotations

from collections.abc import Iterator

from flax import nnx
from jaxtyping import Array, Float32

from t5x_llm.nn.adapters.low_rank import Kernel
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.moe import Experts

Place = tuple[nnx.Module, str, Kernel, Float32[Array, " ..."]]


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
