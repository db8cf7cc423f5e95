"""AdaLoRA: low-rank factors whose ranks are allocated while they learn (arXiv 2303.10512)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.core.rng import fold_name
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.linears import linear_places
from t5x_llm.nn.adapters.lora import give_keys
from t5x_llm.nn.adapters.low_rank import Form, LowRank
from t5x_llm.nn.adapters.targets import check_targets, chosen
from t5x_llm.nn.kernels import linear
from t5x_llm.optim.rank_allocation import RankBudget, allocate_ranks, orthogonality

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Key

_STD = 0.02  # of fresh vectors, as peft


class Triplets(LowRank):
    """Factors of a change a diag(e) b to a kernel: ``a`` [*inputs, r], ``e`` [r], ``b``."""

    def __init__(self, form: Form, factors: dict[str, nnx.Param[jax.Array]]):
        super().__init__(form, factors)
        self.e = factors["e"]

    def merged_experts(self, kernels: Float[Array, "E _ _"]) -> Float32[Array, "E _ _"]:
        """Returns the kernels [E, inputs, outputs] that do the same alone, in float32."""
        change = jnp.einsum("eir,er,ero->eio", self.a[...], self.e[...], self.b[...])
        return kernels.astype(jnp.float32) + self.form.scaling * change

    def _product(self, x: jax.Array, a: nnx.Param[jax.Array], b: nnx.Param[jax.Array]) -> jax.Array:
        inner = linear(x, (a[...] * self.e[...]).astype(x.dtype), self.form.n_inputs)
        return linear(inner, b[...].astype(x.dtype)) * jnp.asarray(self.form.scaling, x.dtype)

    def _sum(self, kernel: jax.Array) -> jax.Array:
        change = jnp.tensordot(self.a[...] * self.e[...], self.b[...], 1)
        return kernel.astype(jnp.float32) + self.form.scaling * change


@dataclasses.dataclass(frozen=True)
class AdaLoRA(Adapter):
    """AdaLoRA: every kernel begins with the same rank, and the important ones keep more of it.

    Steps are updates of the parameters, counted from 1. In the last ``final`` of them ranks stay.

    Attributes:
      rank: of every kernel at first.
      target_rank: mean rank of a kernel at the end.
      alpha: the change is scaled by alpha / rank, whatever is left of it.
      dropout: share of the inputs of ``a`` that are dropped in training.
      targets: linear layers that are adapted, see ``targets.matches``.
      start: steps before the first triplet is pruned.
      final: steps after the last one is.
      every: steps between two allocations.
      beta1: decay of the moving average of sensitivities.
      beta2: decay of that of their uncertainties.
      orthogonality: weight of the regulariser that keeps vectors orthogonal.
    """

    rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all_linear"
    start: int = 0
    final: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    method: ClassVar[str] = "AdaLoRA"

    def __post_init__(self) -> None:
        check_number("AdaLoRA.rank", self.rank, low=1, high=65_536, integer=True)
        check_number(
            "AdaLoRA.target_rank", self.target_rank, low=1, high=self.rank, integer=True,
            remedy="Ranks only fall: AdaLoRA.rank is what they begin with.",
        )  # fmt: skip
        check_number("AdaLoRA.alpha", self.alpha, above=0)
        check_number("AdaLoRA.dropout", self.dropout, low=0)
        if self.dropout >= 1:
            raise ConfigError("AdaLoRA.dropout", self.dropout, "below 1")
        object.__setattr__(self, "targets", check_targets("AdaLoRA.targets", self.targets))
        for name in ("start", "final"):
            check_number(f"AdaLoRA.{name}", getattr(self, name), low=0, integer=True)
        check_number("AdaLoRA.every", self.every, low=1, integer=True)
        for name in ("beta1", "beta2"):
            check_number(f"AdaLoRA.{name}", getattr(self, name), above=0)
            if getattr(self, name) >= 1:
                raise ConfigError(f"AdaLoRA.{name}", getattr(self, name), "below 1")
        check_number("AdaLoRA.orthogonality", self.orthogonality, low=0)

    @property
    def scaling(self) -> float:
        """Returns the factor on x a diag(e) b, with peft's guard against rank 0."""
        return self.alpha / (self.rank + 1e-5)

    def check(self, config: Any, total_steps: int | None = None) -> None:
        """Checks that there are steps to prune in; see ``Adapter``."""
        if total_steps is not None:
            self.budget(total_steps)

    def budget(self, total_steps: int) -> RankBudget:
        """Makes the budget of a run of ``total_steps`` updates.

        Raises:
          ConfigError: no step is left to prune in.
        """
        stop = total_steps - self.final
        if self.start >= stop:
            raise ConfigError(
                "AdaLoRA.final",
                self.final,
                f"steps to prune in: AdaLoRA.start + AdaLoRA.final below Loop.steps = "
                f"{total_steps}",
                "Lower AdaLoRA.start or AdaLoRA.final, or train for longer.",
            )
        return RankBudget(self.target_rank, self.start, stop, self.every)

    def optimizer(
        self, tx: optax.GradientTransformation, total_steps: int
    ) -> optax.GradientTransformation:
        """Returns the run's optimizer after the one that allocates ranks; see ``Adapter``."""
        allocate = allocate_ranks(self.budget(total_steps), self.beta1, self.beta2)
        return optax.chain(allocate, tx)

    def penalty(self, params: Any) -> Float32[Array, ""] | None:
        """Computes the regulariser, weighted; see ``Adapter``."""
        return self.orthogonality * orthogonality(params) if self.orthogonality else None

    def attach(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives the targets triplets whose ``e`` is zero; see ``Adapter``.

        Raises:
          ConfigError: a target is no layer's, a kernel is smaller than the rank, or inputs of
            experts are to be dropped.
        """
        places = dict(linear_places(module))
        for path in chosen(
            places, check_targets("AdaLoRA.targets", self.targets), "AdaLoRA.targets"
        ):
            owner, attribute, shape, _ = places[path]
            if self.rank > min(shape.matrix):
                raise ConfigError(
                    "AdaLoRA.rank",
                    self.rank,
                    f"at most {min(shape.matrix)}: {path} has {shape.matrix[0]} inputs and "
                    f"{shape.matrix[1]} outputs",
                    "Lower it, or leave this layer out of AdaLoRA.targets.",
                )
            if self.dropout and attribute != "adapter":
                raise ConfigError(
                    "AdaLoRA.dropout",
                    self.dropout,
                    f"0 for experts, whose kernels are changed before they are used ({path})",
                    "Leave experts out of AdaLoRA.targets, or do without it.",
                )
            n, own = len(shape.inputs), fold_name(key, path)
            spare = shape.axes[: len(shape.axes) - n - len(shape.outputs)]
            ins, outs = shape.axes[len(spare) :][:n], shape.axes[len(spare) + n :]
            a, b = (
                _STD
                * jax.random.normal(fold_name(own, name), (*shape.leading, *sizes), jnp.float32)
                for name, sizes in (
                    ("a", (*shape.inputs, self.rank)),
                    ("b", (self.rank, *shape.outputs)),
                )
            )
            factors = {
                "a": nnx.Param(a, logical=(*spare, *ins, "rank")),
                "e": nnx.Param(
                    jnp.zeros((*shape.leading, self.rank), jnp.float32), logical=(*spare, "rank")
                ),
                "b": nnx.Param(b, logical=(*spare, "rank", *outs)),
            }
            setattr(owner, attribute, Triplets(Form(self.scaling, self.dropout, n), factors))

    @property
    def random(self) -> bool:
        """Returns True if inputs are dropped."""
        return self.dropout > 0

    def randomise(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives each factor a key of its own, by its path; see ``Adapter``."""
        give_keys(module, key)
