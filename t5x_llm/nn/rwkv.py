"""RWKV-4 (arXiv 2305.13048): time mixing in the place of attention, channel mixing after it.

Both read each token mixed with the one before it; at the start of a segment there is none. The
fresh decays, bonuses and mixing weights are those of the released code (appendix E of the paper)
for a layer in the middle of the stack, as layers are made alike.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import check_number
from t5x_llm.nn.cache import CachedLayer, RecentCache, StateCache
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.earlier import earlier
from t5x_llm.nn.kernels import scan_chunks
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.param import InitConfig
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32

INNER = ("batch", "length", "inner")
_CHUNK = 128
_NOTHING = -1e30  # the logarithm of no weight; 128 of them add up within float32


@dataclasses.dataclass(frozen=True)
class TimeMixConfig:
    """A weighted mean of the values so far, whose weights decay with time, times a gate.

    Attributes:
      d_inner: width of keys, values and gates.
    """

    d_inner: int

    part: ClassVar[str] = "time_mix"

    def __post_init__(self) -> None:
        check_number("TimeMixConfig.d_inner", self.d_inner, low=1, integer=True)

    @property
    def state_size(self) -> int:
        """Elements of the state: two sums a channel."""
        return 2 * self.d_inner

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> TimeMix:
        """The layer."""
        return TimeMix(self, d_model, init, rngs)


@dataclasses.dataclass(frozen=True)
class ChannelMixConfig:
    """A feed-forward layer with squared ReLU, times a gate.

    Attributes:
      d_ff: F, the inner width.
    """

    d_ff: int

    part: ClassVar[str] = "channel_mix"

    def __post_init__(self) -> None:
        check_number("ChannelMixConfig.d_ff", self.d_ff, low=1, integer=True)

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> ChannelMix:
        """The layer."""
        return ChannelMix(self, d_model, init, rngs)


class WKV(NamedTuple):
    """Sums over the past, divided by exp(peak): three float32 arrays of one shape.

    Attributes:
      top: of weights times values.
      bottom: of weights.
      peak: the largest logarithm of a weight.
    """

    top: Float32[Array, "B A"]
    bottom: Float32[Array, "B A"]
    peak: Float32[Array, "B A"]


def _empty(shape: tuple[int, ...]) -> WKV:
    zero = jnp.zeros(shape, jnp.float32)
    return WKV(zero, zero, jnp.full(shape, _NOTHING, jnp.float32))


def _add(a: WKV, b: WKV) -> WKV:
    """The sum of two; the common peak is a mere unit, so that no gradient goes through it."""
    peak = jax.lax.stop_gradient(jnp.maximum(a.peak, b.peak))
    x, y = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return WKV(x * a.top + y * b.top, x * a.bottom + y * b.bottom, peak)


def wkv(
    key: Float32[Array, "B T A"],
    value: Float32[Array, "B T A"],
    decay: Float32[Array, " A"],
    bonus: Float32[Array, " A"],
    starts: Bool[Array, "B T"],
    state: WKV,
    valid: Bool[Array, "B T"] | None = None,
) -> tuple[Float32[Array, "B T A"], WKV]:
    """Means of values, the one of i weighing exp(key_i + (t - 1 - i) decay) at t > i.

    The value of t itself weighs exp(key_t + bonus). A parallel scan within chunks, and one over
    chunks; all in float32.

    Args:
      key: [B, T, A] float32.
      value: [B, T, A] float32.
      decay: [A] float32, negative.
      bonus: [A] float32.
      starts: [B, T] bool; what came before is forgotten there.
      state: [B, A] each, before the first token.
      valid: [B, T] bool, tokens that take part; the others neither weigh nor let the past decay.
        None for all.

    Returns:
      (means [B, T, A], the state after the last token).
    """

    # A sequence in pieces is exchanged for channels.
    key, value = (constrain(x, ("batch", None, "scan_inner")) for x in (key, value))
    starts = constrain(starts, ("batch", None))
    inputs: tuple[jax.Array, ...] = (key, value, starts)
    if valid is not None:
        valid = constrain(valid, ("batch", None))
        inputs = (jnp.where(valid[..., None], key, _NOTHING), value, starts, valid)

    def one(xs: tuple[jax.Array, jax.Array]) -> WKV:
        k, v = xs
        peak = jax.lax.stop_gradient(k)
        weight = jnp.exp(k - peak)  # 1, with the gradient of k
        return WKV(weight * v, weight, peak)

    def later(a: tuple[jax.Array, WKV], b: tuple[jax.Array, WKV]) -> tuple[jax.Array, WKV]:
        return a[0] + b[0], _add(a[1]._replace(peak=a[1].peak + b[0]), b[1])

    def chunk(before: WKV, xs: Any) -> tuple[WKV, jax.Array]:
        k, v, start, *valid = xs
        fade = jnp.where(start[..., None], _NOTHING, decay)
        if valid:
            fade = jnp.where(valid[0][..., None], fade, 0.0)
        faded, sums = jax.lax.associative_scan(later, (fade, one((k, v))), axis=1)
        old = WKV(*(x[:, None] for x in before))
        after = _add(old._replace(peak=old.peak + faded), sums)
        past = jax.tree.map(lambda x, y: jnp.concatenate([x, y[:, :-1]], axis=1), old, after)
        past = jax.tree.map(
            lambda x, y: jnp.where(start[..., None], y, x), past, _empty((1, 1, k.shape[-1]))
        )
        seen = _add(past, one((k + bonus, v)))
        return WKV(*(x[:, -1] for x in after)), seen.top / seen.bottom

    state, y = scan_chunks(chunk, state, inputs, _CHUNK)
    return constrain(y, INNER), state


def before(
    x: Float[Array, "B T D"], starts: Bool[Array, "B T"], last: Float[Array, "B 1 D"] | None
) -> Float[Array, "B T D"]:
    """Returns x [B, T, D] one token earlier, zero at starts; ``last`` [B, 1, D] is before it."""
    (shifted,) = earlier(x, jnp.zeros_like(x[:, :1]) if last is None else last)
    return jnp.where(starts[..., None], 0, shifted)


def _mix(weight: nnx.Param[jax.Array], x: jax.Array, old: jax.Array) -> jax.Array:
    w = weight[...].astype(x.dtype)
    return x * w + old * (1 - w)


def _ramp(size: int, power: float, offset: float = 0.0) -> nnx.Param[jax.Array]:
    return nnx.Param(
        (jnp.arange(size, dtype=jnp.float32) / size) ** power + offset, logical=("norm",)
    )


class TimeMix(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment."""

    def __init__(self, config: TimeMixConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        a = config.d_inner
        place = jnp.arange(a, dtype=jnp.float32)
        self.decay = nnx.Param(-5 + 8 * (place / max(a - 1, 1)) ** 1.35, logical=("inner",))
        zigzag = 0.5 * ((place + 1) % 3 - 1)
        self.bonus = nnx.Param(math.log(0.3) + zigzag, logical=("inner",))
        self.mix_key = _ramp(d_model, 0.5)
        self.mix_value = _ramp(d_model, 0.5, offset=0.15)
        self.mix_receptance = _ramp(d_model, 0.25)
        kwargs: dict[str, Any] = dict(bias=False, rngs=rngs)
        axes, std = (("embed",), ("inner",)), init.kernel(d_model)
        self.key = Dense((d_model,), (a,), *axes, std=std, **kwargs)
        self.value = Dense((d_model,), (a,), *axes, std=init.kernel(d_model, branch=True), **kwargs)
        self.receptance = Dense((d_model,), (a,), *axes, std=std, **kwargs)
        self.out = Dense((a,), (d_model,), *axes[::-1], std=init.kernel(a, residual=True), **kwargs)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the last token's input [B, 1, D] and the sums over the past [B, A]."""
        sums = StateCache((self.config.d_inner,))
        peak = dataclasses.replace(sums, fill=_NOTHING)
        last = RecentCache(1, (self.mix_key.shape[-1],))
        return {"last": last, **WKV(sums, sums, peak)._asdict()}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        old = before(x, context.starts, None if cache is None else cache["last"])
        k, v, r = (
            constrain(project(_mix(weight, x, old)), INNER)
            for project, weight in (
                (self.key, self.mix_key),
                (self.value, self.mix_value),
                (self.receptance, self.mix_receptance),
            )
        )
        if cache is None:
            state = _empty((x.shape[0], self.config.d_inner))
        else:
            state = WKV(cache["top"], cache["bottom"], cache["peak"])
        y, state = wkv(
            k.astype(jnp.float32),
            v.astype(jnp.float32),
            -jnp.exp(self.decay[...]),
            self.bonus[...],
            context.starts,
            state,
            context.valid(),
        )
        y = self.out(constrain(jax.nn.sigmoid(r) * y.astype(x.dtype), INNER))
        return y, self.write_cache(cache, {"last": x, **state._asdict()}, context.rows), {}


class ChannelMix(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment."""

    def __init__(self, config: ChannelMixConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.mix_key = _ramp(d_model, 0.5)
        self.mix_receptance = _ramp(d_model, 0.5)
        f = config.d_ff
        kwargs: dict[str, Any] = dict(bias=False, rngs=rngs)
        std = init.kernel(d_model, branch=True)
        self.key = Dense((d_model,), (f,), ("embed",), ("mlp",), std=std, **kwargs)
        std = init.kernel(d_model)
        self.receptance = Dense((d_model,), (d_model,), ("embed",), ("embed",), std=std, **kwargs)
        std = init.kernel(f, residual=True)
        self.value = Dense((f,), (d_model,), ("mlp",), ("embed",), std=std, **kwargs)

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the last token's input [B, 1, D]."""
        return {"last": RecentCache(1, (self.mix_key.shape[-1],))}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        old = before(x, context.starts, None if cache is None else cache["last"])
        h = jnp.square(jax.nn.relu(self.key(_mix(self.mix_key, x, old))))
        h = self.value(constrain(h, ("batch", "length", "mlp")))
        gate = jax.nn.sigmoid(self.receptance(_mix(self.mix_receptance, x, old)))
        return gate * h, self.write_cache(cache, {"last": x}, context.rows), {}
