"""Configuration of adapters: which there are, and where they go."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.nn.adapters.targets import check_targets

if TYPE_CHECKING:
    import jax
    from flax import nnx

INITS = ("zero_b", "zero_a", "pissa")


@dataclasses.dataclass(frozen=True)
class Adapter(abc.ABC):
    """Trained parts that a module of a model is given beside its own, frozen parameters.

    Their parameters have ``adapter`` in their path, by which ``roots.split`` knows them.

    Attributes:
      method: name of the method, for messages and model cards.
    """

    method: ClassVar[str]

    @abc.abstractmethod
    def attach(self, module: nnx.Module, key: jax.Array) -> None:
        """Gives a module its trained parts.

        Args:
          module: the model, with the values of its own parameters.
          key: random key; each initial value depends on it and on the part's path alone.

        Raises:
          ConfigError: no part of the model is a target, or one cannot take the adapter.
        """

    @property
    def random(self) -> bool:
        """Returns True if training draws random numbers, see ``randomise``."""
        return False

    def randomise(self, module: nnx.Module, key: jax.Array) -> None:
        """Gives the parts random keys of a training step; without them nothing is dropped."""
        return None


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

    def attach(self, module: nnx.Module, key: jax.Array) -> None:
        """Gives the targets low-rank factors; see ``Adapter``."""
        from t5x_llm.nn.adapters.attach import attach_low_rank

        attach_low_rank(module, self, key)

    @property
    def random(self) -> bool:
        """Returns True if inputs are dropped."""
        return self.dropout > 0

    def randomise(self, module: nnx.Module, key: jax.Array) -> None:
        """Gives each factor a key of its own, by its path; see ``Adapter``."""
        from t5x_llm.nn.adapters.attach import give_keys

        give_keys(module, key)
