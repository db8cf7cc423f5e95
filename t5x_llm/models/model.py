"""A model as pure functions of a plain parameter tree; NNX does not leave this room."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import check_choice
from t5x_llm.core.rng import fold_name
from t5x_llm.models.head import head_gradient, head_log_probs
from t5x_llm.models.pipelined import microbatch_means
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.cache import valid_lengths
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import one_cpu
from t5x_llm.nn.quantized import quantized
from t5x_llm.nn.remat import REMAT
from t5x_llm.objectives.lm import cross_entropy
from t5x_llm.parallel import constrain, pieces

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Training:
    """Facts of training that the loss knows besides the batch.

    Attributes:
      key: random key of the step, for NEFTune's noise and the dropout of adapters.
      embed_gradient: float32 scalar, the share of the gradient that reaches the embedding table
        by way of the input, or None for the config's.
    """

    key: jax.Array
    embed_gradient: jax.Array | None = None

    def at(self, microbatch: Any) -> Training:
        """The same with a key of its own for each microbatch."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, microbatch))


def _folded(x: jax.Array, count: int) -> jax.Array:
    """[B, T, ...] to [count * B, T / count, ...]: a device goes through its own piece of a row."""
    if count == 1:
        return x
    x = jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)
    x = x.reshape(-1, *x.shape[2:])
    return constrain(x, ("pieces",) + (None,) * (x.ndim - 1))


def _unfolded(x: jax.Array, count: int) -> jax.Array:
    """The inverse, of [count * B, T / count]."""
    if count == 1:
        return x
    x = x.reshape(count, -1, x.shape[1])
    return constrain(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1), ("batch", "length"))


class Model:
    """Static description of a model; parameters are passed in and out as nested dicts.

    The paths of that dict (``group_0.block_0.attention.query.kernel``) are the checkpoint
    contract. Parameters of a group carry a leading axis of its repeats.

    Args:
      config: the architecture: a ``DecoderConfig``, or another config with ``make(rngs)``.
      policy: parameter and compute dtypes.
      remat: what the backward pass finds saved; one of ``nn.remat.REMAT``.
      adapter: trained parts beside the architecture's, whose paths have ``adapter`` in them.
    """

    def __init__(
        self,
        config: Any,
        policy: Policy | None = None,
        remat: str = "none",
        adapter: Adapter | None = None,
    ):
        check_choice("remat", remat, REMAT)
        self.config, self.adapter = config, adapter
        self.policy = policy or Policy()
        self.remat = remat

    def _make(self, key: jax.Array) -> Any:
        module = self.config.make(nnx.Rngs(params=key))
        if self.adapter is not None:
            self.adapter.attach(module, fold_name(key, roots.ADAPTER))
        return module

    @functools.cached_property
    def bare(self) -> Model:
        """The same without adapters."""
        return self if self.adapter is None else Model(self.config, self.policy, self.remat)

    def adapted(self, base: Params, key: jax.Array) -> Params:
        """The tree of fresh adapters on parameters of ``bare``, whose own are not in it.

        Args:
          base: nested dict of the model's own parameters.
          key: as for ``init``; equal keys give equal adapters.
        """
        assert self.adapter is not None
        module = self.bare.bind(base)
        self.adapter.attach(module, fold_name(key, roots.ADAPTER))
        parts = roots.split(nnx.to_pure_dict(nnx.state(module)))
        return {name: part for name, part in parts.items() if name != roots.BASE}

    @functools.cached_property
    def _abstract(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(self._make, jax.random.key(0)))

    def bind(self, params: Params) -> Any:
        """The module around parameters; those of parts that are not called may be left out."""
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
        **extra: Any,
    ) -> tuple[jax.Array, dict[str, Any] | None]:
        """Hidden states of tokens [B, T] int32.

        Args:
          params: from ``init``, a checkpoint or an import.
          tokens: [B, T] int32.
          positions: [B, T] int32, restarting at each segment; 0..T-1 by default.
          segment_ids: [B, T] int32; tokens see only their own segment, 0 is padding. All 1 by
            default.
          cache: from ``init_cache`` or an earlier call; this call's tokens follow those that each
            row holds, so that rows may be of different lengths. Tokens at the end of a row whose
            segment is 0 are padding, of which nothing is kept; a row may have no others.
          extra: what else the architecture takes, such as ``Batch.extra``: of a decoder, ``prefix``
            [B, T] bool (tokens all of their segment may see) and ``block_positions`` [B, T] int32;
            of an encoder-decoder ``encoder_tokens``, ``encoder_positions`` and
            ``encoder_segment_ids`` [B, S] int32, the last two by default those of one document.
            With a cache only the first call has them.

        Returns:
          (hidden [B, T, D] in the compute dtype, the cache after this call or None).
        """
        return self._apply(params, tokens, positions, segment_ids, cache, extra)[:2]

    def _apply(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        cache: dict[str, Any] | None,
        extra: dict[str, Any],
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any] | None, dict[str, jax.Array]]:
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            place = jnp.arange(tokens.shape[1])
            start = 0 if cache is None else self.held(cache)[:, None]
            positions = jnp.broadcast_to(start + place, tokens.shape)
            if cache is not None:  # padding may not lie beyond learned positions
                positions = jnp.where(place < valid_lengths(segment_ids)[:, None], positions, 0)
        module = self.bind(params)
        if key is not None and self.adapter is not None:
            self.adapter.randomise(module, fold_name(key, roots.ADAPTER))
        with quantized(self.policy.quantized):
            return module(
                tokens,
                positions,
                segment_ids,
                cache,
                self.policy.compute_dtype,
                self.remat,
                **extra,
            )

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Logits [B, T, V] float32 of hidden states [B, T, D]."""
        return self.bind(params).logits(hidden)

    def loss(
        self,
        params: Params,
        batch: Any,
        z_loss: float = 0.0,
        training: Training | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Summed negative log likelihood of a data.Batch, plus ``z_loss`` times summed log(Z)^2.

        Label smoothing is added to that, and no part of ``nll``. Auxiliary losses of layers count
        once for every token predicted.

        Returns:
          (scalar float32 to differentiate, aux of ``objectives.lm.cross_entropy`` and the layers'
          scalars, each times the number of tokens predicted).
        """
        extra = dict(getattr(batch, "extra", None) or {})
        if training is not None:
            extra |= {"noise": training.key, "embed_gradient": training.embed_gradient}
        key = None if training is None else training.key
        hidden, _, layers = self._apply(
            params, batch.tokens, batch.positions, batch.segment_ids, None, extra, key
        )
        head = self.bind(params).output_head(hidden.dtype)
        count = pieces("length", hidden.shape[1])
        hidden, targets, mask = (
            _folded(x, count) for x in (hidden, batch.targets, batch.loss_mask)
        )
        value, aux = cross_entropy(
            hidden,
            head.kernel,
            targets,
            mask,
            bias=head.bias,
            z_loss=z_loss,
            softcap=head.softcap,
            logit_scale=head.scale,
            transposed=head.transposed,
            one_cpu=one_cpu(),
            pieces=head_gradient(head),
            label_smoothing=label_smoothing,
        )
        aux["nll"] = _unfolded(aux["nll"], count)
        if not layers:
            return value, aux
        tokens = jnp.sum(batch.loss_mask)
        layers = microbatch_means(layers, batch.loss_mask)
        sums = {name: jnp.mean(x) for name, x in layers.items() if name != "loss"}
        if "loss" in layers:
            sums["layer_loss"] = jnp.sum(layers["loss"])
            value = value + sums["layer_loss"] * tokens
        return value, aux | {k: jax.lax.stop_gradient(v) * tokens for k, v in sums.items()}

    def log_probs(self, params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the targets of a data.Batch, without a gradient.

        The logits of the whole batch are never held at once.

        Returns:
          ([B, T] float32 log-probability of each target, [B, T] bool, where it is the likeliest
          token). What ``loss_mask`` leaves out is computed too and means nothing.
        """
        extra = dict(getattr(batch, "extra", None) or {})
        hidden, *_ = self._apply(
            params, batch.tokens, batch.positions, batch.segment_ids, None, extra
        )
        count = pieces("length", hidden.shape[1])
        hidden, targets = (_folded(x, count) for x in (hidden, batch.targets))
        chunk = max(1, 512 // hidden.shape[0]) if one_cpu() else 512
        head = self.bind(params).output_head(hidden.dtype)
        found, best = head_log_probs(head, hidden, targets, chunk)
        return _unfolded(found, count), _unfolded(best, count)

    def init_cache(self, batch: int, length: int, **options: Any) -> dict[str, Any]:
        """Returns an empty decoding cache; its keys and values are in the compute dtype.

        Its ``index`` [B] int32 is the number of tokens that each row holds.
        ``options`` are the architecture's: a decoder takes ``prefix=True`` for prefix LM.
        """
        graphdef, state = self._abstract
        module = nnx.merge(graphdef, state)
        return module.init_cache(batch, length, self.policy.compute_dtype, **options)

    def start_cache(
        self, params: Params, batch: int, length: int, **options: Any
    ) -> dict[str, Any]:
        """Returns ``init_cache``, and in it the virtual tokens that an adapter puts before a text.

        They take places of their own: there is room for ``length`` tokens after them.
        """
        cache = self.init_cache(batch, length + self.leading, **options)
        if not self.leading:
            return cache
        with quantized(self.policy.quantized):
            begun: dict[str, Any] = self.bind(params).begin(cache, self.policy.compute_dtype)
        return begun

    def held(self, cache: dict[str, Any]) -> jax.Array:
        """Returns the tokens of the text that each row of a cache holds: [B] int32."""
        index: jax.Array = cache["index"]
        return index - self.leading if self.leading else index

    @property
    def virtual(self) -> int:
        """Virtual tokens that an adapter puts before every segment; they take positions."""
        return 0 if self.adapter is None else self.adapter.virtual

    @functools.cached_property
    def leading(self) -> int:
        """Virtual tokens that stand before the input of a decoder, and in its cache."""
        if not self.virtual or self.config.kind != "decoder":
            return 0
        return self.virtual if nnx.merge(*self._abstract).adapter.leading else 0

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int | None:
        """The longest sequence, where positions are learned; None if unbounded."""
        longest = self.config.learned_positions
        return None if longest is None else longest - self.virtual

    def parameter_count(self) -> dict[str, int]:
        """Parameters by top-level part, and 'total'."""
        parts = {
            name: sum(x.size for x in jax.tree.leaves(part))
            for name, part in self.abstract_params().items()
        }
        return parts | {"total": sum(parts.values())}

    def quantized_kernels(self) -> dict[str, int]:
        """Sizes of the kernels that ``Policy.quantized`` is about, by part: ``mlp.up`` and such."""
        sizes: dict[str, int] = {}
        for path, module in nnx.iter_modules(nnx.merge(*self._abstract)):
            inside = next(
                (i for i, name in enumerate(path) if str(name).startswith("block_")), None
            )
            if inside is not None and isinstance(module, Dense) and not module.exact:
                part = ".".join(map(str, path[inside + 1 :]))
                sizes[part] = sizes.get(part, 0) + module.kernel.size
        return sizes

    def idle_parameters(self) -> int:
        """Parameters that a token does not meet: others' experts, levels with fewer tokens."""
        params, axes = self.abstract_params(), self.logical_axes()
        shares = getattr(self.config, "idle_parts", {}).items()
        idle = sum(
            share * sum(x.size for x in jax.tree.leaves(params[top])) for top, share in shares
        )
        for i, group in enumerate(getattr(self.config, "groups", ())):
            for j, block in enumerate(group.blocks):
                fraction = getattr(block.feed_forward, "active_fraction", 1.0)
                part = (f"group_{i}", f"block_{j}")
                sizes, names = params[part[0]][part[1]], axes[part[0]][part[1]]
                leaves = zip(
                    jax.tree.leaves(sizes),
                    jax.tree.leaves(names, is_leaf=lambda x: isinstance(x, tuple)),
                    strict=True,
                )
                experts = sum(x.size for x, n in leaves if "experts" in n and len(n) > 3)
                idle += experts * (1.0 - fraction)
        return round(idle)


@functools.lru_cache(64)
def cached_model(config: Any, policy: Policy, remat: str, adapter: Adapter | None = None) -> Model:
    """``Model``, the same object for the same arguments: a search asks for it again and again."""
    return Model(config, policy, remat, adapter)
