"""Models whose outputs rounding moves by little, and what it may move them by."""

from __future__ import annotations

from typing import Any

import close
import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.model import Model

# On the way to a logit of two layers of width 32: projections, keys, feed-forward, head.
TERMS = 2 * (4 * 32 + 64 + 48) + 32
# In bfloat16 sums are made in float32; what is rounded is each of their results.
NARROW = 2 * 10


def conditioned(family: Any) -> tuple[Model, Any]:
    """Returns a model in float32 and fresh parameters, matrices three times as wide as an init's.

    That is enough for tokens to follow from what came before them, and no score of attention is so
    large that rounding decides what is seen. T5's matrices are wide as they are.
    """
    model = Model(family.decoder(), Policy(compute="float32"))
    factor = 1.0 if model.config.kind == "encoder_decoder" else 3.0

    def wider(path: Any, x: jax.Array) -> jax.Array:
        return factor * x if path[-1].key in ("kernel", "table") else x

    return model, jax.tree_util.tree_map_with_path(wider, model.init(jax.random.key(0)))


def assert_near(actual: Any, desired: Any, dtype: Any = jnp.float32) -> None:
    """Raises AssertionError unless log-probabilities agree up to rounding at their scale."""
    scale = max(1.0, np.abs(desired).max(initial=0.0))
    terms = TERMS if dtype == jnp.float32 else NARROW
    close.assert_close(actual, desired, terms, dtype=dtype, scale=scale)
