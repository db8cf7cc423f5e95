"""Models whose outputs rounding moves by little, and what it may move them by."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.model import Model


def conditioned(family: Any) -> tuple[Model, Any]:
    """A model in float32 and fresh parameters, matrices three times as wide as an init's.

    That is enough for tokens to follow from what came before them, and no score of attention is so
    large that rounding decides what is seen. T5's matrices are wide as they are.
    """
    model = Model(family.decoder(), Policy(compute="float32"))
    factor = 1.0 if model.config.kind == "encoder_decoder" else 3.0

    def wider(path: Any, x: jax.Array) -> jax.Array:
        return factor * x if path[-1].key in ("kernel", "table") else x

    return model, jax.tree_util.tree_map_with_path(wider, model.init(jax.random.key(0)))


def allowed(log_probs: Any, dtype: Any = jnp.float32, units: float = 100) -> float:
    """How far log-probabilities may lie apart: ``units`` of the dtype's precision at their scale.

    A two-layer model of width 32 sums some hundred products of each kind on the way, whose errors
    add up like their root; orders of summation differ with shapes, layouts and machines.
    """
    scale = max(1.0, np.abs(log_probs).max(initial=0.0))
    return units * float(jnp.finfo(dtype).eps) * float(scale)
