"""TTT-Linear (arXiv 2407.04620): a recurrence whose state is a linear model that learns.

Each head has a model f(x) = x + LN(x W + b), trained while the sequence runs to make v from k. The
t-th token of a segment belongs to mini-batch t // K. The gradients of a mini-batch are taken at the
weights it begins with, those of the mini-batch before it; the j-th token's output is f(q) after a
step along the gradients of tokens 0..j of its mini-batch, each with a learning rate of its own.

A segment begins with the learned weights, and its mini-batches are counted from its first token,
wherever in the row that is. So a row is computed in chunks of K tokens that know nothing of
mini-batches, in the paper's dual form (section 2.5). A chunk has tokens of three kinds at most: of
the mini-batch that was under way (``old``); of the one after it (``next``), which goes on beyond
the chunk; and of the first mini-batches of segments that start in the chunk (``fresh``). Only the
second waits for the first. The state is what decoding keeps: weights at the beginning of the
mini-batch under way, and the sum of its gradients.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.nn.cache import CachedLayer, CacheRows, StateCache
from t5x_llm.nn.conv import ShortConv
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import scan_chunks
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig, constant, normal
from t5x_llm.nn.positions import RotaryConfig, rotary_tables, rotate
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int, Int32

HEADS = ("batch", "length", "heads", "head")
_WHOLE = ("batch", None)


@dataclasses.dataclass(frozen=True)
class TTTConfig:
    """A layer of linear models that learn at test time.

    Attributes:
      n_heads: N.
      head_dim: H.
      mini_batch: K, tokens of a mini-batch.
      base_rate: the inner learning rate is this times a gate in (0, 1) for each token and head,
        over H, and over j + 1 (plus a learned number) for the j-th token's output.
      inner_rotary: rotation of q and k by the place in the mini-batch.
      norm_eps: epsilon of the inner LayerNorm and of the one over all heads' outputs.
      gated: outputs are multiplied by GELU of a projection of the input.
      shared_taps: taps of the two convolutions that make q and k from one projection; None for
        two projections.
    """

    n_heads: int
    head_dim: int
    mini_batch: int
    base_rate: float
    inner_rotary: RotaryConfig
    norm_eps: float
    gated: bool
    shared_taps: int | None

    part: ClassVar[str] = "ttt"

    def __post_init__(self) -> None:
        for name in ("n_heads", "head_dim", "mini_batch"):
            check_number(f"TTTConfig.{name}", getattr(self, name), low=1, integer=True)
        check_number("TTTConfig.base_rate", self.base_rate, above=0)
        check_number("TTTConfig.norm_eps", self.norm_eps, above=0)
        if self.shared_taps is not None:
            check_number("TTTConfig.shared_taps", self.shared_taps, low=1, integer=True)
        if self.inner_rotary.dim > self.head_dim:
            raise ConfigError(
                "RotaryConfig.dim", self.inner_rotary.dim, f"at most head_dim = {self.head_dim}"
            )

    @property
    def state_size(self) -> int:
        """Elements of the state: the weights of every head's model."""
        return self.n_heads * self.head_dim * (self.head_dim + 1)

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> TTT:
        """The layer."""
        return TTT(self, d_model, init, rngs)


class Learner(NamedTuple):
    """The state of every head's model, float32.

    Attributes:
      weight: [B, N, H, H] at the beginning of the mini-batch under way.
      bias: [B, N, H].
      weight_sum: [B, N, H, H] of the mini-batch's gradients so far, times their rates.
      bias_sum: [B, N, H].
    """

    weight: Float32[Array, "B N H H"]
    bias: Float32[Array, "B N H"]
    weight_sum: Float32[Array, "B N H H"]
    bias_sum: Float32[Array, "B N H"]


class Inner(NamedTuple):
    """Parameters of the layer that the inner loop reads, float32.

    Attributes:
      weight: [N, H, H] that segments begin with.
      bias: [N, H].
      scale: [N, H] of the inner norm.
      shift: [N, H].
      eps: of the inner norm.
      steps: [mini_batch], factors on the gradients' sum for the j-th token's output.
    """

    weight: Float32[Array, "N H H"]
    bias: Float32[Array, "N H"]
    scale: Float32[Array, "N H"]
    shift: Float32[Array, "N H"]
    eps: float
    steps: Float32[Array, " mini_batch"]


def _normed(z: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """z with mean 0 and variance 1, and 1 / its standard deviation."""
    z = z - jnp.mean(z, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + eps)
    return z * inverse, inverse


def _gradient(inner: Inner, z: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the gradient of |LN(z) - target|^2 / 2 by z, [B, C, N, H]."""
    normed, inverse = _normed(z, inner.eps)
    dy = (normed * inner.scale + inner.shift - target) * inner.scale
    along = normed * jnp.mean(dy * normed, axis=-1, keepdims=True)
    return (dy - jnp.mean(dy, axis=-1, keepdims=True) - along) * inverse


def _through(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """x [B, C, N, H] through weights of each row."""
    return jnp.einsum("bcnh,bnhi->bcni", x, weight) + bias[:, None]


def _fresh(x: jax.Array, inner: Inner) -> jax.Array:
    return jnp.einsum("bcnh,nhi->bcni", x, inner.weight) + inner.bias


def _chunk(inner: Inner, state: Learner, xs: tuple[jax.Array, ...]) -> tuple[Learner, jax.Array]:
    """Runs at most K tokens: (state after them, outputs [B, C, N, H])."""
    q, k, v, rate, place, starts, *valid = xs
    count = jnp.arange(place.shape[1])
    segment = jnp.cumsum(starts, axis=1)
    turns = (place == 0) & ~starts & (count > 0)
    if valid:  # padding stays in the mini-batch of the last token, with a rate of zero
        turns &= valid[0]
    turned = jnp.cumsum(turns, axis=1)
    batch = jnp.where(segment == 0, turned, segment + 1)  # its number within the chunk
    old, following = ((batch == i)[..., None, None] for i in (0, 1))

    def summed(g: jax.Array, chosen: jax.Array, before: Any = (0.0, 0.0)) -> Any:
        r = rate * chosen[..., None]
        weight = before[0] + jnp.einsum("bcn,bcnh,bcni->bnhi", r, k, g)
        return weight, before[1] + jnp.einsum("bcn,bcni->bni", r, g)

    target, whole = v - k, inner.steps[-1]
    g_old = _gradient(inner, _through(k, state.weight, state.bias), target)
    sums = summed(g_old, batch == 0, (state.weight_sum, state.bias_sum))
    after = state.weight - whole * sums[0], state.bias - whole * sums[1]
    z = jnp.where(following, _through(k, *after), _fresh(k, inner))
    g = jnp.where(old, g_old, _gradient(inner, z, target))

    seen = (batch[:, :, None] == batch[:, None]) & (count[:, None] >= count)
    pairs = jnp.einsum("btnh,bsnh->bnts", q, k) + 1  # 1 is the bias's part
    pairs = pairs * seen[:, None] * jnp.moveaxis(rate, 1, 2)[:, :, None]
    moved = jnp.einsum("bnts,bsnh->btnh", pairs, g)
    moved = moved + jnp.where(old, _through(q, state.weight_sum, state.bias_sum), 0)
    begun = jnp.where(following, _through(q, *after), _fresh(q, inner))
    begun = jnp.where(old, _through(q, state.weight, state.bias), begun)
    y, _ = _normed(begun - inner.steps[place][..., None, None] * moved, inner.eps)

    last = batch[:, -1:]
    kind = last[..., None]  # for [B, N, H]
    chosen = summed(g, batch == last)
    weight_sum = jnp.where(kind[..., None] == 0, sums[0], chosen[0])
    bias_sum = jnp.where(kind == 0, sums[1], chosen[1])
    weight = jnp.where(kind[..., None] == 1, after[0], inner.weight)
    bias = jnp.where(kind == 1, after[1], inner.bias)
    weight = jnp.where(kind[..., None] == 0, state.weight, weight)
    bias = jnp.where(kind == 0, state.bias, bias)
    done = (place[:, -1] == len(inner.steps) - 1)[:, None, None]
    step = jnp.where(done, whole, 0.0)
    state = Learner(
        weight - step[..., None] * weight_sum,
        bias - step * bias_sum,
        jnp.where(done[..., None], 0.0, weight_sum),
        jnp.where(done, 0.0, bias_sum),
    )
    return state, q + y * inner.scale + inner.shift


def places(
    starts: Bool[Array, "B T"],
    before: Int[Array, " B"],
    mini_batch: int,
    rows: CacheRows | None = None,
) -> Int32[Array, "B T"]:
    """Returns each token's place in its mini-batch, [B, T] int32; padding has the last token's.

    Args:
      starts: [B, T] bool, segments' first tokens.
      before: [B] int32, the place of the token after the last call's, were it to go on.
      mini_batch: K.
      rows: how many tokens of each row are valid; None for all.
    """
    index = jnp.arange(starts.shape[1], dtype=jnp.int32)
    if rows is not None:
        index = jnp.minimum(index, rows.lengths[:, None] - 1)
    first = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
    return jnp.where(first >= 0, index - first, index + before[:, None]) % mini_batch


class TTT(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment."""

    def __init__(self, config: TTTConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        n, h = config.n_heads, config.head_dim
        kwargs: dict[str, Any] = dict(std=init.kernel(d_model), bias=False, rngs=rngs)
        axes = ("embed",), ("heads", "head")
        self.query = Dense((d_model,), (n, h), *axes, **kwargs)
        if config.shared_taps is None:
            self.key = Dense((d_model,), (n, h), *axes, **kwargs)
        else:
            conv: dict[str, Any] = dict(bias=True, rngs=rngs)
            self.query_conv = ShortConv(config.shared_taps, n * h, "inner", **conv)
            self.key_conv = ShortConv(config.shared_taps, n * h, "inner", **conv)
        if config.gated:
            self.gate = Dense((d_model,), (n, h), *axes, **kwargs)
        kwargs["std"] = init.kernel(d_model, branch=True)
        self.value = Dense((d_model,), (n, h), *axes, **kwargs)
        kwargs["std"] = init.kernel(n * h, residual=True)
        self.out = Dense((n, h), (d_model,), *axes[::-1], **kwargs)
        std = init.kernel(d_model)
        self.rate = Dense(
            *((d_model,), (n,), ("embed",), ("heads",)), std=std, bias=True, rngs=rngs, exact=True
        )
        self.steps = constant((config.mini_batch,), 0.0, ("positions",))
        self.inner_kernel = normal(rngs, (n, h, h), init.kernel(h), ("heads", "head", "head"))
        self.inner_bias = constant((n, h), 0.0, ("heads", "head"))
        norm = NormConfig("layer", config.norm_eps, bias=True, scale="ones")
        self.inner_norm = Norm(norm, h, heads=n)
        self.out_norm = Norm(norm, n * h)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the learners' state, the place of the next token, and convolutions' taps."""
        n, h = self.config.n_heads, self.config.head_dim
        weight, bias = StateCache((n, h, h)), StateCache((n, h))
        kinds = Learner(weight, bias, weight, bias)._asdict()
        kinds["place"] = StateCache(dtype=jnp.int32)
        if self.config.shared_taps is not None:
            kinds["query_taps"] = self.query_conv.cache_kind
            kinds["key_taps"] = self.key_conv.cache_kind
        return kinds

    def _nothing(self, batch: int) -> Learner:
        """A state that is never read: a segment starts at the first token."""
        bias = jnp.zeros((batch, self.config.n_heads, self.config.head_dim), jnp.float32)
        weight = jnp.zeros((*bias.shape, self.config.head_dim), jnp.float32)
        return Learner(weight, bias, weight, bias)

    def _inner(self) -> Inner:
        count = jnp.arange(1, self.config.mini_batch + 1, dtype=jnp.float32)
        return Inner(
            weight=self.inner_kernel[...],
            bias=self.inner_bias[...],
            scale=self.inner_norm.scale[...],
            shift=self.inner_norm.bias[...],
            eps=self.config.norm_eps,
            steps=jnp.maximum(1 / count + self.steps[...], 0.0),
        )

    def _query_key(
        self, x: jax.Array, context: Context, cache: Cache | None
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """q and k before rotation, and the new taps."""
        shared = self.query(x)
        if self.config.shared_taps is None:
            return shared, self.key(x), {}
        flat, made, taps = shared.reshape(*x.shape[:2], -1), [], Cache()
        for name in ("query", "key"):
            last = None if cache is None else cache[f"{name}_taps"]
            conv = getattr(self, f"{name}_conv")
            y, taps[f"{name}_taps"] = conv(flat, context.starts, last, context.rows)
            made.append(y.reshape(shared.shape))
        return made[0], made[1], taps

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config, starts = self.config, context.starts
        first = jnp.zeros(x.shape[0], jnp.int32) if cache is None else cache["place"]
        place = places(starts, first, config.mini_batch, context.rows)
        q, k, taps = self._query_key(x, context, cache)
        tables = rotary_tables(config.inner_rotary, place)
        q, k = (rotate(a, tables, config.inner_rotary) for a in (q, k))
        q, k, v = (constrain(a.astype(jnp.float32), HEADS) for a in (q, k, self.value(x)))
        # A sequence in pieces is exchanged for heads.
        q, k, v = (constrain(a, (*_WHOLE, "scan_heads", None)) for a in (q, k, v))
        rate = jax.nn.sigmoid(self.rate(x).astype(jnp.float32))
        rate = constrain(rate * (config.base_rate / config.head_dim), (*_WHOLE, "scan_heads"))
        place, starts = constrain(place, _WHOLE), constrain(starts, _WHOLE)
        inputs: tuple[jax.Array, ...] = (q, k, v, rate, place, starts)
        if (valid := context.valid()) is not None:
            rate = jnp.where(valid[..., None], rate, 0.0)
            inputs = (q, k, v, rate, place, starts, constrain(valid, _WHOLE))
        state = self._nothing(x.shape[0])
        if cache is not None:
            state = Learner(*(cache[name] for name in Learner._fields))
        inner = self._inner()
        state, y = scan_chunks(
            lambda carry, xs: _chunk(inner, carry, xs),
            state,
            inputs,
            config.mini_batch,
        )
        y = constrain(y, HEADS)
        y = self.out_norm(y.astype(x.dtype).reshape(*x.shape[:2], -1)).reshape(y.shape)
        if config.gated:
            y = y * jax.nn.gelu(self.gate(x), approximate=True)
        y = self.out(constrain(y, HEADS))
        if cache is not None:
            kinds, after = self.cache_kinds(), (place[:, -1] + 1) % config.mini_batch
            new = {**state._asdict(), "place": after}
            kept = {n: kinds[n].write(cache[n], x, context.rows) for n, x in new.items()}
            cache = {**kept, **taps}
        return y, cache, {}
