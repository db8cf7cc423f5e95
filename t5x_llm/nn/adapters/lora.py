"""LoRA and its kin: low-rank factors for the linear layers of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.core.rng import fold_name
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.linears import linear_places
from t5x_llm.nn.adapters.low_rank import Form, Kernel, LowRank
from t5x_llm.nn.adapters.targets import check_targets, chosen, matches
from t5x_llm.nn.moe import Experts
from t5x_llm.optim.masks import scale_named

if TYPE_CHECKING:
    from jaxtyping import Array, Key

_RANK = "adapter_rank"
INITS = ("zero_b", "zero_a", "pissa")


@dataclasses.dataclass(frozen=True)
class LoRA(Adapter):
    """Low-rank adaptation (arXiv 2106.09685): y = x W + scaling x A B.

    Attributes:
      rank: r, inputs of B.
      alpha: scaling is alpha / r, with ``rank_stabilised`` alpha / sqrt(r).
      dropout: share of the inputs of A that are dropped in training.
      targets: linear layers that are adapted, see ``targets.matches``.
      rank_stabilised: rsLoRA (arXiv 2312.03732).
      dora: learns the norm of each output's weights apart from their direction (DoRA, arXiv
        2402.09353).
      init: ``zero_b`` (A uniform, B zero), ``zero_a`` (the reverse), or ``pissa``: both from the
        largest singular values of W, which the frozen part is then without (arXiv 2404.02948).
      rate_ratio: learning rate of B over that of A (LoRA+, arXiv 2402.12354; 16 is usual).
      ranks: other ranks by target, such as ``{'feed_forward': 4}``; the last that matches holds.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all_linear"
    rank_stabilised: bool = False
    dora: bool = False
    init: str = "zero_b"
    rate_ratio: float = 1.0
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

    method: ClassVar[str] = "LoRA"

    def __post_init__(self) -> None:
        check_number("LoRA.rank", self.rank, low=1, high=65_536, integer=True)
        check_number("LoRA.alpha", self.alpha, above=0)
        check_number("LoRA.dropout", self.dropout, low=0)
        if self.dropout >= 1:
            raise ConfigError("LoRA.dropout", self.dropout, "below 1")
        check_number("LoRA.rate_ratio", self.rate_ratio, above=0)
        check_choice("LoRA.init", self.init, INITS)
        object.__setattr__(self, "targets", check_targets("LoRA.targets", self.targets))
        if not isinstance(self.ranks, Mapping):
            raise ConfigError("LoRA.ranks", self.ranks, "a dict of targets and ranks")
        for rank in self.ranks.values():
            check_number("LoRA.ranks", rank, low=1, high=65_536, integer=True)
        check_targets("LoRA.ranks", tuple(self.ranks) or "all_linear")

    def scaling(self, rank: int) -> float:
        """Returns the factor on x A B for a layer of this rank."""
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def attach(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives the targets low-rank factors; see ``Adapter``."""
        _attach(module, self, key)

    @property
    def random(self) -> bool:
        """Returns True if inputs are dropped."""
        return self.dropout > 0

    def randomise(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives each factor a key of its own, by its path; see ``Adapter``."""
        give_keys(module, key)

    def optimizer(
        self, tx: optax.GradientTransformation, total_steps: int
    ) -> optax.GradientTransformation:
        """Returns ``tx`` with its own learning rate for B; see ``Adapter``."""
        return tx if self.rate_ratio == 1.0 else optax.chain(tx, scale_named("b", self.rate_ratio))


def _attach(module: nnx.Module, config: LoRA, key: Key[Array, ""]) -> None:
    """Gives the targets of a model low-rank factors; see ``Adapter.attach``."""
    places = dict(linear_places(module))
    for path in chosen(places, tuple(config.targets), "LoRA.targets"):
        owner, attribute, shape, kernel = places[path]
        asked = [rank for target, rank in config.ranks.items() if matches(path, target)]
        rank = asked[-1] if asked else config.rank
        if rank > min(shape.matrix):
            raise ConfigError(
                "LoRA.ranks" if asked else "LoRA.rank",
                rank,
                f"at most {min(shape.matrix)}: {path} has {shape.matrix[0]} inputs and "
                f"{shape.matrix[1]} outputs",
                "Lower it, give this layer a rank of its own (LoRA.ranks), or leave it out.",
            )
        if isinstance(owner, Experts) and (config.dropout or config.dora):
            field = "LoRA.dropout" if config.dropout else "LoRA.dora"
            raise ConfigError(
                field,
                getattr(config, field.split(".")[1]),
                f"none for experts, whose kernels are changed before they are used ({path})",
                "Leave experts out of LoRA.targets, or do without it.",
            )
        made = _low_rank(config, rank, shape, kernel, fold_name(key, path))
        setattr(owner, attribute, made)


def _low_rank(
    config: LoRA, rank: int, shape: Kernel, kernel: jax.Array, key: Key[Array, ""]
) -> LowRank:
    """Makes the factors of one kernel with their initial values.

    Args:
      config: the method.
      rank: r.
      shape: of the kernel.
      kernel: [*leading, *inputs, *outputs].
      key: random key of this kernel.
    """
    n, leading = len(shape.inputs), shape.leading
    scaling = config.scaling(rank)
    spare = shape.axes[: len(shape.axes) - n - len(shape.outputs)]  # that of experts
    in_axes, out_axes = shape.axes[len(spare) :][:n], shape.axes[len(spare) + n :]
    a_shape, b_shape = (*leading, *shape.inputs, rank), (*leading, rank, *shape.outputs)
    if config.init == "pissa":
        u, s, v = jnp.linalg.svd(shape.flat(kernel), full_matrices=False)
        root = jnp.sqrt(s[..., :rank] / scaling)
        a = (u[..., :rank] * root[..., None, :]).reshape(a_shape)
        b = (root[..., None] * v[..., :rank, :]).reshape(b_shape)
    else:
        a, b = jnp.zeros(a_shape, jnp.float32), jnp.zeros(b_shape, jnp.float32)
        if config.init == "zero_b":  # as PEFT: U(-1 / sqrt(inputs), 1 / sqrt(inputs))
            a = _uniform(key, a_shape, shape.matrix[0])
        else:
            b = _uniform(key, b_shape, rank)
    axes = {"a": (*spare, *in_axes, _RANK), "b": (*spare, _RANK, *out_axes)}
    factors = {"a": nnx.Param(a, logical=axes["a"]), "b": nnx.Param(b, logical=axes["b"])}
    if config.init == "pissa":
        factors["initial_a"] = nnx.Param(a, logical=axes["a"])
        factors["initial_b"] = nnx.Param(b, logical=axes["b"])
    if config.dora:
        norm = jnp.linalg.norm(shape.flat(kernel), axis=-2)
        norm = norm.reshape(*leading, *shape.outputs)
        factors["magnitude"] = nnx.Param(norm, logical=out_axes)
    return LowRank(Form(scaling, config.dropout, n), factors)


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> jax.Array:
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def give_keys(module: nnx.Module, key: Key[Array, ""]) -> None:
    """Gives all factors that drop inputs a random key, by their paths; scanned ones one a layer."""
    found = [(path, m) for path, m in nnx.iter_modules(module) if isinstance(m, LowRank)]
    for path, factors in found:
        own = fold_name(key, ".".join(map(str, path)))
        lead = factors.a.ndim - factors.form.n_inputs - 1
        if factors.form.dropout:
            factors.key = nnx.Variable(jax.random.split(own, factors.a.shape[0]) if lead else own)
