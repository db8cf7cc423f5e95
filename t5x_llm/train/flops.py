"""Model FLOPs of a token, peak FLOP/s of a chip, and their quotient.

The convention, everywhere in this project: 6 N FLOPs a token, N being the parameters with the
head and without the input embedding (a tied table counts once, as the head), plus causal attention,
6 L T N_heads H (half of the 12 L T N H of PaLM, arXiv 2204.02311, appendix B, which counts masked
products too), plus 12 for each element of a recurrence's state, which a token writes and reads
once. Recomputation is not counted, nor what parallel forms of a recurrence do besides. Tokens are
predicted tokens; padding is none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from t5x_llm.core.gpus import GPUS
from t5x_llm.core.slices import GENERATIONS, generation_of

CONVENTION = "6N + causal attention + recurrences per predicted token, recomputation not counted"


def flops_per_token(n_params: int, attention_width: int, length: int, state_size: int = 0) -> float:
    """Computes the training FLOPs of one token, forward and backward.

    Args:
      n_params: N: all parameters a token meets but the input embedding table; the head is in,
        experts that are not its own are out.
      attention_width: query heads times head size, summed over the layers with attention.
      length: T, the sequence length.
      state_size: elements of the states of recurrences, summed over layers.
    """
    return 6.0 * n_params + 6.0 * length * attention_width + 12.0 * state_size


@dataclasses.dataclass(frozen=True)
class Peak:
    """Peak speed of all devices together.

    Attributes:
      flops: FLOP/s.
      source: origin of the number, shown beside a utilisation.
    """

    flops: float
    source: str


def peak_of(devices: Sequence[Any], dtype: str = "bfloat16") -> Peak | None:
    """Returns the peak of these devices; None where nothing honest can be said.

    Known chips have the vendor's figure for dense bfloat16. On CPU a matmul is measured for about
    a fifth of a second; several host devices share that one figure.

    Args:
      devices: devices of the mesh.
      dtype: the compute dtype, for the measurement.
    """
    kind = devices[0].device_kind
    generation = generation_of(kind)
    found: float | None = None
    if generation is not None:
        found = GENERATIONS[generation].device_peak
    elif gpu := max((name for name in GPUS if name in kind.lower()), key=len, default=None):
        found = GPUS[gpu].peak
    if found is not None:
        return Peak(found * len(devices), f"{len(devices)} x {kind}, vendor's bfloat16 peak")
    if devices[0].platform == "cpu":
        processes = len({d.process_index for d in devices})
        return Peak(_measure(dtype) * processes, f"a {dtype} matmul measured on this CPU")
    return None


def _measure(dtype: str, size: int = 1024, seconds: float = 0.15) -> float:
    """FLOP/s of the best of several matmuls of this machine's CPU."""
    import jax
    import jax.numpy as jnp

    x = jax.device_put(jnp.ones((size, size), dtype), jax.local_devices(backend="cpu")[0])
    multiply = jax.jit(lambda a: a @ a)
    multiply(x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        multiply(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
