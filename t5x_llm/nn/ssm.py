"""Selective state-space mixers: Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.cache import CachedLayer, StateCache
from t5x_llm.nn.conv import ShortConv
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.kernels import keep
from t5x_llm.nn.layer import Aux, Cache, Context
from t5x_llm.nn.mlp import ACTIVATIONS
from t5x_llm.nn.norm import Norm, NormConfig
from t5x_llm.nn.param import InitConfig, constant
from t5x_llm.nn.selective_scan import selective_scan
from t5x_llm.nn.ssd import ssd
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32

INNER = ("batch", "length", "inner")
# Steps of a fresh layer: log-uniform between these (Mamba, section 3.6, and its code).
FRESH_STEPS = (1e-3, 1e-1)


def fresh_step_bias(rngs: nnx.Rngs, size: int, axis: str) -> nnx.Param[Float32[Array, " ..."]]:
    """A bias [size] whose softplus is log-uniform in ``FRESH_STEPS``."""
    low, high = map(math.log, FRESH_STEPS)
    dt = jnp.exp(jax.random.uniform(rngs.params(), (size,), jnp.float32, low, high))
    return nnx.Param(dt + jnp.log(-jnp.expm1(-dt)), logical=(axis,))


@dataclasses.dataclass(frozen=True)
class SelectiveConfig:
    """Mamba's mixer: out(silu(gate(x)) * scan(conv(inner(x)))).

    Attributes:
      d_inner: I channels.
      d_state: R, the state of a channel.
      dt_rank: width that steps are made from.
      conv_width: taps of the convolution, the present token included.
      conv_bias: a bias in the convolution.
      bias: biases on the projections in and out.
      activation: after the convolution and on the gate; one of ``mlp.ACTIVATIONS``.
      norm: of what steps, ``b`` and ``c`` are made from, each on its own, or None.
    """

    d_inner: int
    d_state: int
    dt_rank: int
    conv_width: int
    conv_bias: bool
    bias: bool
    activation: str
    norm: NormConfig | None

    part: ClassVar[str] = "ssm"

    def __post_init__(self) -> None:
        for name in ("d_inner", "d_state", "dt_rank", "conv_width"):
            check_number(f"SelectiveConfig.{name}", getattr(self, name), low=1, integer=True)
        check_choice("SelectiveConfig.activation", self.activation, ACTIVATIONS)

    @property
    def state_size(self) -> int:
        """Elements of the state: what a token costs in FLOPs besides its parameters."""
        return self.d_inner * self.d_state

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> Selective:
        """The layer."""
        return Selective(self, d_model, init, rngs)


class Selective(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment.

    Parameters: ``inner`` and ``gate`` [D, I], ``conv``, ``select`` [I, dt_rank + 2 R] that makes
    steps, b and c of each token, their norms ``dt_norm``, ``b_norm``, ``c_norm``, ``step``
    [dt_rank, I] and ``step_bias`` [I], ``a_log`` [R, I] (rates are -exp of it), ``skip`` [I] and
    ``out`` [I, D]. Fresh ones as in the paper: rates -1 ... -R, steps between ``FRESH_STEPS``.
    """

    def __init__(self, config: SelectiveConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        i, r, rank = config.d_inner, config.d_state, config.dt_rank
        into: dict[str, Any] = dict(bias=config.bias, rngs=rngs)
        into["std"] = init.kernel(d_model, branch=True)
        self.inner = Dense((d_model,), (i,), ("embed",), ("inner",), **into)
        self.gate = Dense((d_model,), (i,), ("embed",), ("inner",), **into)
        self.conv = ShortConv(config.conv_width, i, "inner", bias=config.conv_bias, rngs=rngs)
        # Rates and states are float32; what makes them is not rounded further.
        kwargs: dict[str, Any] = dict(bias=False, rngs=rngs, exact=True)
        self.select = Dense(
            (i,), (rank + 2 * r,), ("inner",), ("rank",), std=init.kernel(i), **kwargs
        )
        if config.norm is not None:
            self.dt_norm = Norm(config.norm, rank)
            self.b_norm = Norm(config.norm, r)
            self.c_norm = Norm(config.norm, r)
        self.step = Dense((rank,), (i,), ("rank",), ("inner",), std=(3 * rank) ** -0.5, **kwargs)
        self.step_bias = fresh_step_bias(rngs, i, "inner")
        rates = jnp.arange(1, r + 1, dtype=jnp.float32)
        self.a_log = nnx.Param(
            jnp.broadcast_to(jnp.log(rates)[:, None], (r, i)), logical=("state", "inner")
        )
        self.skip = constant((i,), 1.0, ("inner",))
        self.out = Dense(
            (i,),
            (d_model,),
            ("inner",),
            ("embed",),
            std=init.kernel(i, residual=True),
            bias=config.bias,
            rngs=rngs,
        )

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the convolution's taps [B, width - 1, I] and the state [B, R, I]."""
        state = StateCache((self.config.d_state, self.config.d_inner))
        return {"state": state, "taps": self.conv.cache_kind}

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        before = self.init_cache(x.shape[0], 0, x.dtype) if cache is None else cache
        inner = keep(constrain(self.inner(x), INNER), "mixer_in")
        gate = keep(constrain(self.gate(x), INNER), "mixer_gate")
        inner, taps = self.conv(inner, context.starts, before["taps"], context.rows)
        inner = activation(inner)

        selected = self.select(inner)
        dt, b, c = jnp.split(selected, [config.dt_rank, config.dt_rank + config.d_state], axis=-1)
        if config.norm is not None:
            dt, b, c = self.dt_norm(dt), self.b_norm(b), self.c_norm(c)
        dt = jax.nn.softplus(self.step(dt).astype(jnp.float32) + self.step_bias[...])
        dt = _steps(dt, context)
        rates = -jnp.exp(self.a_log[...].astype(jnp.float32))
        y, state = selective_scan(
            inner, constrain(dt, INNER), rates, b, c, context.starts, before["state"]
        )
        y = y.astype(jnp.float32) + self.skip[...] * inner
        y = constrain((y * activation(gate.astype(jnp.float32))).astype(x.dtype), INNER)
        after = None
        if cache is not None:
            kind = self.cache_kinds()["state"]
            after = {"taps": taps, "state": kind.write(cache["state"], state, context.rows)}
        return keep(self.out(y), "mixer_out"), after, {}


def _steps(dt: jax.Array, context: Context) -> jax.Array:
    """Returns steps [B, T, ...] that are zero in padding: a step of zero leaves the state alone."""
    valid = context.valid()
    return dt if valid is None else jnp.where(valid[..., None], dt, 0.0)


@dataclasses.dataclass(frozen=True)
class SsdConfig:
    """Mamba-2's mixer: out(norm(silu(gate(x)) * scan(conv(inner(x))))).

    Attributes:
      n_heads: N.
      head_dim: H; the inner width I is N * H.
      n_groups: G, groups of heads with one b and c, and of channels that ``norm`` normalises.
      d_state: R, the state of a channel.
      conv_width: taps of the convolutions, the present token included.
      conv_bias: biases in them.
      bias: biases on the projections in and out.
      activation: after the convolutions and on the gate; one of ``mlp.ACTIVATIONS``.
      norm: of the gated result.
      dt_limit: steps are clipped to these; None for no upper bound.
    """

    n_heads: int
    head_dim: int
    n_groups: int
    d_state: int
    conv_width: int
    conv_bias: bool
    bias: bool
    activation: str
    norm: NormConfig
    dt_limit: tuple[float, float | None]

    part: ClassVar[str] = "ssm"

    def __post_init__(self) -> None:
        for name in ("n_heads", "head_dim", "n_groups", "d_state", "conv_width"):
            check_number(f"SsdConfig.{name}", getattr(self, name), low=1, integer=True)
        if self.n_heads % self.n_groups:
            raise ConfigError(
                "SsdConfig.n_groups", self.n_groups, f"a divisor of n_heads = {self.n_heads}"
            )
        check_choice("SsdConfig.activation", self.activation, ACTIVATIONS)
        low, high = self.dt_limit
        check_number("SsdConfig.dt_limit[0]", low, low=0)
        if high is not None:
            check_number("SsdConfig.dt_limit[1]", high, above=low)

    @property
    def d_inner(self) -> int:
        """I."""
        return self.n_heads * self.head_dim

    @property
    def state_size(self) -> int:
        """Elements of the state: what a token costs in FLOPs besides its parameters."""
        return self.d_inner * self.d_state

    def make(self, d_model: int, init: InitConfig, rngs: nnx.Rngs) -> Ssd:
        """The layer."""
        return Ssd(self, d_model, init, rngs)


class Ssd(CachedLayer):
    """[B, T, D] -> [B, T, D] within a segment.

    Parameters: ``inner`` and ``gate`` [D, I], ``b`` and ``c`` [D, G R], ``step`` [D, N] and
    ``step_bias`` [N], the convolutions ``inner_conv``, ``b_conv`` and ``c_conv``, ``a_log`` [N]
    (rates are -exp of it), ``skip`` [N], ``norm`` with scales [G, I / G] and ``out`` [I, D]. Fresh
    rates lie between -1 and -16, as in the authors' code.
    """

    def __init__(self, config: SsdConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        n, i, shared = config.n_heads, config.d_inner, config.n_groups * config.d_state
        # One group is everyone's; several lie where their heads do.
        axis = "kv_heads" if config.n_groups > 1 else "state"

        def into(width: int, axis: str, branch: bool = False) -> Dense:
            return Dense(
                (d_model,),
                (width,),
                ("embed",),
                (axis,),
                std=init.kernel(d_model, branch=branch),
                bias=config.bias,
                rngs=rngs,
                exact=axis != "inner",  # rates and states are float32
            )

        def conv(width: int, axis: str) -> ShortConv:
            return ShortConv(config.conv_width, width, axis, bias=config.conv_bias, rngs=rngs)

        self.inner, self.inner_conv = into(i, "inner", branch=True), conv(i, "inner")
        self.gate = into(i, "inner", branch=True)
        self.b, self.b_conv = into(shared, axis), conv(shared, axis)
        self.c, self.c_conv = into(shared, axis), conv(shared, axis)
        self.step = into(n, "heads")
        self.step_bias = fresh_step_bias(rngs, n, "heads")
        rates = jax.random.uniform(rngs.params(), (n,), jnp.float32, 1.0, 16.0)
        self.a_log = nnx.Param(jnp.log(rates), logical=("heads",))
        self.skip = constant((n,), 1.0, ("heads",))
        self.norm = Norm(config.norm, i // config.n_groups, config.n_groups)
        self.out = Dense(
            (i,),
            (d_model,),
            ("inner",),
            ("embed",),
            std=init.kernel(i, residual=True),
            bias=config.bias,
            rngs=rngs,
        )

    def cache_kinds(self) -> dict[str, Any]:
        """Returns the convolutions' taps and the state [B, N, H, R]."""
        config = self.config
        taps = {name: getattr(self, f"{name}_conv").cache_kind for name in ("inner", "b", "c")}
        return {
            "taps": taps,
            "state": StateCache((config.n_heads, config.head_dim, config.d_state)),
        }

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None, Aux]:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        before = self.init_cache(x.shape[0], 0, x.dtype) if cache is None else cache
        mixed, taps = {}, {}
        for name in ("inner", "b", "c"):
            projected = keep(getattr(self, name)(x), "mixer_in")
            conv = getattr(self, f"{name}_conv")
            y, taps[name] = conv(projected, context.starts, before["taps"][name], context.rows)
            mixed[name] = activation(y)
        gate = keep(constrain(self.gate(x), INNER), "mixer_gate")

        rows = x.shape[:2]
        inner = mixed["inner"].reshape(*rows, config.n_heads, config.head_dim)
        inner = constrain(inner, ("batch", "length", "heads", "head"))
        b, c = (mixed[n].reshape(*rows, config.n_groups, config.d_state) for n in ("b", "c"))
        dt = jax.nn.softplus(self.step(x).astype(jnp.float32) + self.step_bias[...])
        dt = constrain(jnp.clip(dt, *config.dt_limit), ("batch", "length", "heads"))
        dt = _steps(dt, context)
        rates = -jnp.exp(self.a_log[...].astype(jnp.float32))
        y, state = ssd(inner, dt, rates, b, c, context.starts, before["state"])
        y = y.astype(jnp.float32) + self.skip[...][:, None] * inner
        y = y.reshape(gate.shape) * activation(gate.astype(jnp.float32))
        y = self.norm(y.reshape(*rows, config.n_groups, -1)).reshape(gate.shape).astype(x.dtype)
        after = None
        if cache is not None:
            kind = self.cache_kinds()["state"]
            after = {"taps": taps, "state": kind.write(cache["state"], state, context.rows)}
        return keep(self.out(constrain(y, INNER)), "mixer_out"), after, {}
