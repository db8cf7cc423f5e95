"""The decoder as pure functions of a plain parameter tree; NNX does not leave this room."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import check_choice
from t5x_llm.models.decoder import Decoder, DecoderConfig
from t5x_llm.nn.linear import one_cpu
from t5x_llm.nn.remat import REMAT
from t5x_llm.objectives.lm import cross_entropy

Params = dict[str, Any]


class Model:
    """Static description of a decoder; parameters are passed in and out as nested dicts.

    The paths of that dict (``group_0.block_0.attention.query.kernel``) are the checkpoint
    contract. Parameters of a group carry a leading axis of its repeats.

    Args:
      config: the architecture.
      policy: parameter and compute dtypes.
      remat: what the backward pass finds saved; one of ``nn.remat.REMAT``.
    """

    def __init__(self, config: DecoderConfig, policy: Policy | None = None, remat: str = "none"):
        check_choice("remat", remat, REMAT)
        self.config = config
        self.policy = policy or Policy()
        self.remat = remat

    def _make(self, key: jax.Array) -> Decoder:
        return Decoder(self.config, nnx.Rngs(params=key))

    @functools.cached_property
    def _abstract(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(self._make, jax.random.key(0)))

    def _bind(self, params: Params) -> Decoder:
        graphdef, state = self._abstract
        state = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters in the policy's parameter dtype."""
        pure = nnx.to_pure_dict(nnx.state(self._make(key)))
        return jax.tree.map(lambda x: x.astype(self.policy.param_dtype), pure)

    def abstract_params(self) -> Params:
        """The tree of ``init`` as jax.ShapeDtypeStruct."""
        dtype = self.policy.param_dtype
        pure = nnx.to_pure_dict(self._abstract[1])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), pure)

    def logical_axes(self) -> Params:
        """The tree of ``init`` with, for every parameter, its tuple of logical axis names."""

        def names(variable: nnx.Variable) -> tuple[str, ...]:
            axes = tuple(variable.get_metadata()["logical"])
            stacked = len(variable.shape) - len(axes)
            return ("layers",) * stacked + axes

        leaves = nnx.to_flat_state(self._abstract[1])
        tree: Params = {}
        for path, variable in leaves:
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = names(variable)
        return tree

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: dict[str, Any] | None = None,
    ) -> tuple[jax.Array, dict[str, Any] | None]:
        """Hidden states of tokens [B, T] int32.

        Args:
          params: from ``init``, a checkpoint or an import.
          tokens: [B, T] int32.
          positions: [B, T] int32, restarting at each segment; 0..T-1 by default.
          segment_ids: [B, T] int32; tokens see only their own segment, 0 is padding. All 1 by
            default.
          cache: from ``init_cache`` or an earlier call; this call's tokens are appended.

        Returns:
          (hidden [B, T, D] in the compute dtype, the cache after this call or None).
        """
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            start = 0 if cache is None else cache["index"]
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
        return self._bind(params)(
            tokens, positions, segment_ids, cache, self.policy.compute_dtype, self.remat
        )

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Logits [B, T, V] float32 of hidden states [B, T, D]."""
        return self._bind(params).logits(hidden)

    def loss(
        self, params: Params, batch: Any, z_loss: float = 0.0
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Summed negative log likelihood of a data.Batch, plus ``z_loss`` times summed log(Z)^2.

        Returns:
          (scalar float32 to differentiate, aux of ``objectives.lm.cross_entropy``).
        """
        hidden, _ = self.apply(
            params, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
        )
        decoder = self._bind(params)
        layer = decoder.embed if self.config.tied else decoder.head
        return cross_entropy(
            hidden,
            layer.weights(hidden.dtype),
            batch.targets,
            batch.loss_mask,
            z_loss=z_loss,
            transposed=self.config.tied,
            one_cpu=one_cpu(),
        )

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """An empty decoding cache; its keys and values are in the compute dtype."""
        graphdef, state = self._abstract
        decoder = nnx.merge(graphdef, state)
        return decoder.init_cache(batch, length, self.policy.compute_dtype)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int | None:
        """The longest sequence, where positions are learned; None if unbounded."""
        return self.config.learned_positions

    def parameter_count(self) -> dict[str, int]:
        """Parameters by top-level part, and 'total'."""
        parts = {
            name: sum(x.size for x in jax.tree.leaves(part))
            for name, part in self.abstract_params().items()
        }
        return parts | {"total": sum(parts.values())}
