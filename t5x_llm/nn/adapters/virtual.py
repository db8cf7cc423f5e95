"""Virtual tokens: learned keys and values of every layer, or learned rows before the input.

Virtual tokens stand at positions 0 to n - 1 and those of the text after them, in every segment.
All segments of a row see the same ones. That is exact for a prefix of keys and values
(arXiv 2101.00190), and for rows before the input (arXiv 2104.08691) under causal attention, where
virtual tokens depend on themselves alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.nn.layer import Context
from t5x_llm.nn.param import constant

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped

_HEADS = ("rank", "kv_heads", "head")


class PrefixKeys(nnx.Module):
    """Keys and values [n, K, H] that stand before those of an attention layer.

    They are what attention reads: no projection, norm or rotation comes after them. With a
    ``hidden`` width they are made of ``Context.trunk`` [n, hidden] by a linear map each.
    """

    def __init__(self, count: int, heads: tuple[int, int], hidden: int | None = None):
        self.count, self.made = count, hidden is not None
        rows = count if hidden is None else hidden
        axes = _HEADS if hidden is None else ("rank", *_HEADS[1:])
        self.key, self.value = (constant((rows, *heads), 0.0, axes) for _ in range(2))
        if hidden is not None:
            self.key_bias, self.value_bias = (constant(heads, 0.0, _HEADS[1:]) for _ in range(2))

    def before(
        self, k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], context: Context
    ) -> tuple[Float[Array, "B _ K H"], Float[Array, "B _ K H"], dict[str, Any]]:
        """Returns keys, values and ``Context.seen``, each with the prefix before its own."""
        key, value = self.key[...], self.value[...]
        if self.made:
            assert context.trunk is not None
            key = jnp.einsum("nh,h...->n...", context.trunk, key) + self.key_bias[...]
            value = jnp.einsum("nh,h...->n...", context.trunk, value) + self.value_bias[...]
        seen, rows = context.seen(), k.shape[0]
        places = jnp.arange(self.count, dtype=jnp.int32)
        own: dict[str, jax.Array] = {
            "kv_positions": places,
            "kv_segment_ids": jnp.ones_like(places),
            "kv_prefix": jnp.zeros(places.shape, bool),
        }
        for name, x in own.items():
            if seen[name] is not None:
                seen[name] = _lead(x, seen[name], rows)
        seen["common"] = self.count + seen.get("common", 0)
        return _lead(key, k, rows), _lead(value, v, rows), seen


def _lead(first: jax.Array, x: jax.Array, rows: int) -> jax.Array:
    """[n, ...] before each row of x [B, S, ...]: [B, n + S, ...]."""
    first = jnp.broadcast_to(first.astype(x.dtype), (rows, *first.shape))
    return jnp.concatenate([first, x], axis=1)


class VirtualTokens(nnx.Module):
    """The virtual tokens of a model, ``count`` of them, whose keys and values the layers hold.

    Attributes:
      count: n.
      leading: True if they are rows before the input instead.
    """

    leading = False

    def __init__(self, count: int):
        self.count = count

    def rows(self) -> Float[Array, "virtual D"] | None:
        """Returns the rows that stand before the input, as wide as the embedding table."""
        return None

    def trunk(self) -> Float[Array, "virtual hidden"] | None:
        """Returns ``Context.trunk``."""
        return None

    def before(self, x: Shaped[Array, "B T *features"], first: Any) -> Shaped[Array, "B _ ..."]:
        """Returns x with ``first`` (a scalar, [n], or [B, 1]) before each of its rows."""
        shape = (x.shape[0], self.count, *x.shape[2:])
        first = jnp.broadcast_to(jnp.asarray(first, x.dtype), shape)
        return jnp.concatenate([first, x], axis=1)


class PrefixTrunk(VirtualTokens):
    """First part of the map that makes prefixes: tanh(W e + b) of an embedding e of each token."""

    def __init__(self, count: int, width: int, hidden: int):
        super().__init__(count)
        self.embedding = constant((count, width), 0.0, ("rank", "embed"))
        self.kernel = constant((width, hidden), 0.0, ("embed", "rank"))
        self.bias = constant((hidden,), 0.0, ("rank",))

    def trunk(self) -> Float[Array, "virtual hidden"]:
        """Returns [n, hidden] in the dtype of the parameters."""
        return jnp.tanh(self.embedding[...] @ self.kernel[...] + self.bias[...])


class PromptRows(VirtualTokens):
    """Rows before the input that are parameters themselves (prompt tuning)."""

    leading = True

    def __init__(self, count: int, width: int):
        super().__init__(count)
        self.embedding = constant((count, width), 0.0, ("rank", "embed"))

    def rows(self) -> Float[Array, "virtual D"]:
        """Returns the parameters."""
        return self.embedding[...]


class PromptEncoder(PromptRows):
    """Rows before the input that three linear maps, with ReLU between, make of embeddings.

    The form of P-tuning (arXiv 2103.10385) with a feed-forward encoder.
    """

    def __init__(self, count: int, width: int, hidden: int):
        super().__init__(count, width)
        sizes = (width, hidden, hidden, width)
        axes = ("embed", "rank", "rank", "embed")
        for i in range(3):
            names = (axes[i], axes[i + 1])
            setattr(self, f"kernel_{i}", constant((sizes[i], sizes[i + 1]), 0.0, names))
            setattr(self, f"bias_{i}", constant((sizes[i + 1],), 0.0, names[1:]))

    def rows(self) -> Float[Array, "virtual D"]:
        """Returns what the maps make of the embeddings."""
        x = self.embedding[...]
        for i in range(3):
            x = jax.nn.relu(x) if i else x
            x = x @ getattr(self, f"kernel_{i}")[...] + getattr(self, f"bias_{i}")[...]
        return x
