"""The precision policy: float32 masters, bfloat16 compute, float32 accumulation of statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.core.errors import ConfigError, check_choice

_FLOATS = ("float32", "bfloat16")
QUANTIZED = ("int8", "fp8")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Dtypes of parameters and computation. Softmax, norm statistics and losses are always float32.

    Attributes:
      params: dtype of the master parameters and of the optimizer state.
      compute: dtype of activations and of matmul inputs.
      quantized: 'int8' or 'fp8' rounds the inputs of linear layers' matmuls further, forwards and
        backwards (``nn/quantized.py``); '' does not. Parameters stay as they are.
    """

    params: str = "float32"
    compute: str = "bfloat16"
    quantized: str = ""

    def __post_init__(self) -> None:
        check_choice("Policy.params", self.params, _FLOATS)
        check_choice("Policy.compute", self.compute, _FLOATS)
        if self.quantized != "" and self.quantized not in QUANTIZED:
            expected = "'int8', 'fp8', or '' for none"
            raise ConfigError("Policy.quantized", self.quantized, expected, choices=QUANTIZED)

    @property
    def param_dtype(self) -> Any:
        """The numpy/jax dtype of ``params``."""
        import jax.numpy as jnp

        return jnp.dtype(self.params)

    @property
    def compute_dtype(self) -> Any:
        """The numpy/jax dtype of ``compute``."""
        import jax.numpy as jnp

        return jnp.dtype(self.compute)
