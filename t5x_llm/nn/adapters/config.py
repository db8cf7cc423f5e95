"""Base class of the configurations of adapters."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import optax
    from flax import nnx
    from jaxtyping import Array, Float32, Key


@dataclasses.dataclass(frozen=True)
class Adapter(abc.ABC):
    """Trained parts that a module of a model is given beside its own, frozen parameters.

    Their parameters have ``adapter`` in their path, by which ``roots.split`` knows them.

    Attributes:
      method: name of the method, for messages and model cards.
    """

    method: ClassVar[str]

    @abc.abstractmethod
    def attach(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives a module its trained parts.

        Args:
          module: the model, with the values of its own parameters.
          key: random key; each initial value depends on it and on the part's path alone.

        Raises:
          ConfigError: no part of the model is a target, or one cannot take the adapter.
        """

    @property
    def virtual(self) -> int:
        """Returns the virtual tokens that stand before every text and take positions."""
        return 0

    @property
    def random(self) -> bool:
        """Returns True if training draws random numbers, see ``randomise``."""
        return False

    def randomise(self, module: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives the parts random keys of a training step; without them nothing is dropped."""
        return None

    def check(self, config: Any, total_steps: int | None = None) -> None:
        """Checks that the method can train a model in rows that several segments share.

        Args:
          config: of the model.
          total_steps: steps of the run; None where no run is meant.

        Raises:
          ConfigError: it cannot.
        """
        return None

    def optimizer(
        self, tx: optax.GradientTransformation, total_steps: int
    ) -> optax.GradientTransformation:
        """Returns the optimizer of the trained parts.

        Args:
          tx: the run's.
          total_steps: steps of the run.
        """
        return tx

    def penalty(self, params: Any) -> Float32[Array, ""] | None:
        """Computes what is added to the mean loss in training, float32; None for nothing.

        Args:
          params: tree of the trained parts.
        """
        return None
