"""Routers of mixtures of experts: which experts a token goes to, and with what weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.layer import Aux
from t5x_llm.nn.param import InitConfig, constant, normal
from t5x_llm.parallel import compute_spec, constrain, current

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int32

_TINY = 1e-20  # keeps a sum of sigmoids that all vanished from dividing by zero


@dataclasses.dataclass(frozen=True)
class GroupLimitConfig:
    """A token's experts come from its best groups only (arXiv 2405.04434, section 2.2.2).

    Attributes:
      n_groups: groups of neighbouring experts, all of one size.
      top_groups: groups a token may use.
      score: of a group, the 'max' of its experts' scores (DeepSeek-V2), or the sum of the 'top2'
        (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """

    n_groups: int
    top_groups: int
    score: str

    def __post_init__(self) -> None:
        check_number("GroupLimitConfig.n_groups", self.n_groups, low=2, integer=True)
        check_number(
            "GroupLimitConfig.top_groups",
            self.top_groups,
            low=1,
            high=self.n_groups - 1,
            integer=True,
            remedy="Where all groups may be used, there is no limit: RouterConfig.groups = None.",
        )
        check_choice("GroupLimitConfig.score", self.score, ("max", "top2"))


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """A token's ``top_k`` experts of the highest scores, weighted by these.

    Attributes:
      n_experts: E.
      top_k: experts a token goes to.
      scoring: scores from the router's logits: 'softmax' over all experts, or 'sigmoid'
        (DeepSeek-V3).
      correction: a bias of each expert is added to the scores for the choice alone (arXiv
        2408.15664). No gradient trains it.
      groups: limit of the choice to the best groups, or None.
      normalise: p of the norm that the chosen weights are divided by; 1 makes their sum one
        (Mixtral, DBRX); None leaves the scores (Grok-1, Jamba).
      scale: factor on the weights (DeepSeek's routed_scaling_factor).
      balance_weight: of the load-balance loss.
      z_weight: of the router's z-loss.
    """

    n_experts: int
    top_k: int
    scoring: str
    correction: bool
    groups: GroupLimitConfig | None
    normalise: float | None
    scale: float
    balance_weight: float
    z_weight: float

    def __post_init__(self) -> None:
        check_number("RouterConfig.n_experts", self.n_experts, low=1, integer=True)
        check_number("RouterConfig.top_k", self.top_k, low=1, high=self.n_experts, integer=True)
        check_choice("RouterConfig.scoring", self.scoring, ("softmax", "sigmoid"))
        if self.normalise is not None:
            check_number("RouterConfig.normalise", self.normalise, above=0)
        check_number("RouterConfig.scale", self.scale, above=0)
        check_number("RouterConfig.balance_weight", self.balance_weight, low=0)
        check_number("RouterConfig.z_weight", self.z_weight, low=0)
        if self.groups is not None:
            self._check_groups(self.groups)

    def _check_groups(self, groups: GroupLimitConfig) -> None:
        size, rest = divmod(self.n_experts, groups.n_groups)
        if rest:
            raise ConfigError(
                "GroupLimitConfig.n_groups",
                groups.n_groups,
                f"a divisor of RouterConfig.n_experts = {self.n_experts}",
            )
        if size * groups.top_groups < self.top_k:
            raise ConfigError(
                "RouterConfig.top_k",
                self.top_k,
                f"at most {size * groups.top_groups}, the experts in the best groups",
            )
        if groups.score == "top2" and size < 2:
            raise ConfigError("GroupLimitConfig.score", "top2", "'max' for groups of one expert")


class Router(nnx.Module):
    """Scores in float32, whatever the compute dtype (arXiv 2101.03961, section 2.4)."""

    def __init__(self, config: RouterConfig, d_model: int, init: InitConfig, rngs: nnx.Rngs):
        self.config = config
        shape = (d_model, config.n_experts)
        self.kernel = normal(rngs, shape, init.kernel(d_model), ("embed", "experts"))
        if config.correction:
            self.correction = constant((config.n_experts,), 0.0, ("experts",))

    def __call__(
        self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]
    ) -> tuple[Int32[Array, "B T k"], Float32[Array, "B T k"], Aux]:
        """Chooses experts.

        Args:
          x: [B, T, D].
          valid: [B, T] bool, tokens that the losses count.

        Returns:
          experts [B, T, k] int32, best first; weights [B, T, k] float32; and scalars: ``loss``
          (weighted sum of the two losses), ``moe_balance``, ``moe_z``.
        """
        config = self.config
        logits = jax.lax.dot_general(
            x.astype(jnp.float32),
            constrain(self.kernel[...], ("embed", None)),
            (((2,), (0,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
        )
        if config.scoring == "softmax":
            scores = probabilities = jax.nn.softmax(logits, axis=-1)
        else:
            scores = jax.nn.sigmoid(logits)
            probabilities = scores / (jnp.sum(scores, axis=-1, keepdims=True) + _TINY)
        experts = jax.lax.stop_gradient(self._choose(scores))
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        if config.normalise is not None:
            p = config.normalise
            norm = jnp.sum(weights**p, axis=-1, keepdims=True) ** (1 / p)
            weights = weights / (norm + _TINY)
        balance = balance_loss(probabilities, experts, valid)
        z = z_loss(logits, valid)
        loss = config.balance_weight * balance + config.z_weight * z
        aux = {"loss": loss, "moe_balance": balance, "moe_z": z}
        return experts, weights * config.scale, aux

    def _choose(self, scores: jax.Array) -> jax.Array:
        """The ``top_k`` experts [..., k] by scores [..., E]."""
        config = self.config
        if config.correction:
            scores = scores + self.correction[...]
        if config.groups is not None:
            shape = (*scores.shape[:-1], config.groups.n_groups, -1)
            grouped = scores.reshape(shape)
            best = _top_k(grouped, 1 if config.groups.score == "max" else 2)[0]
            _, top = _top_k(jnp.sum(best, axis=-1), config.groups.top_groups)
            allowed = jnp.any(jax.nn.one_hot(top, config.groups.n_groups, dtype=bool), axis=-2)
            scores = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(scores.shape)
        return _top_k(scores, config.top_k)[1]


def _top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """``jax.lax.top_k`` of [B, T, ...], each device its own tokens: XLA would gather them all."""
    context = current()
    spec = compute_spec(("batch", "length") + (None,) * (scores.ndim - 2), scores.shape)
    if context is None or spec is None:
        return jax.lax.top_k(scores, k)
    return jax.shard_map(
        lambda scores: tuple(jax.lax.top_k(scores, k)),
        mesh=context.mesh,
        in_specs=spec,
        out_specs=(spec, spec),
        check_vma=False,
    )(scores)


def balance_loss(
    probabilities: Float32[Array, "*B E"], experts: Int32[Array, "*B k"], valid: Bool[Array, "*B"]
) -> Float32[Array, ""]:
    """E * sum_e f_e P_e, 1 where both are uniform (arXiv 2101.03961, equation 4).

    f_e is the share of expert e in all choices of valid tokens (top-1 in the paper), P_e its mean
    probability over them.

    Args:
      probabilities: [..., E] float32.
      experts: [..., k] int32.
      valid: [...] bool.

    Returns:
      float32 scalar; 0 without a valid token.
    """
    n_experts, k = probabilities.shape[-1], experts.shape[-1]
    axes = tuple(range(valid.ndim))
    mask = valid.astype(jnp.float32)[..., None]
    total = jnp.maximum(jnp.sum(mask), 1.0)
    chosen = jnp.sum(jax.nn.one_hot(experts, n_experts, dtype=jnp.float32), axis=-2)
    share = jnp.sum(chosen * mask, axis=axes) / (total * k)
    mean = jnp.sum(probabilities * mask, axis=axes) / total
    return n_experts * jnp.sum(share * mean)


def z_loss(logits: Float32[Array, "*B E"], valid: Bool[Array, "*B"]) -> Float32[Array, ""]:
    """Mean of log(sum(exp(logits)))^2 over valid tokens (arXiv 2202.08906, equation 5).

    Args:
      logits: [..., E] float32.
      valid: [...] bool.
    """
    mask = valid.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.square(log_z) * mask) / jnp.maximum(jnp.sum(mask), 1.0)
