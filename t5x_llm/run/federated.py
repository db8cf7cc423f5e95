"""Federated training, as a run is configured for it; ``tune/federated`` does it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from t5x_llm.core.errors import ConfigError, check_choice, check_number

if TYPE_CHECKING:
    from t5x_llm.run.config import Run

WEIGHTS = ("data", "tokens", "equal")


@dataclasses.dataclass(frozen=True)
class Federated:
    """Rounds in which parties train adapters, each on its own source, and a server averages them.

    Every source of ``Data.mixture`` is a party with a token store of its own. The run has
    ``Loop.steps / local_steps`` rounds; ``Loop.batch_size`` is a party's.

    Attributes:
      local_steps: steps of every party between two averages.
      weights: weight of a party in the average: ``data``, tokens of its store (McMahan et al.,
        arXiv 1602.05629); ``tokens``, those it predicted in this round; or ``equal``.
      secure: True masks what the parties send, so that only sums can be read. Products A B are sent
        then, as large as the kernels.
    """

    local_steps: int = 10
    weights: str = "data"
    secure: bool = False

    def __post_init__(self) -> None:
        check_number("Federated.local_steps", self.local_steps, low=1, integer=True)
        check_choice("Federated.weights", self.weights, WEIGHTS)
        if not isinstance(self.secure, bool):
            raise ConfigError("Federated.secure", self.secure, "True or False")


def check_federated(run: Run) -> None:
    """Raises ConfigError where the rest of a run cannot go with ``Run.federated``."""
    config = run.federated
    if config is None:
        return
    if not isinstance(config, Federated):
        raise ConfigError("Run.federated", config, "@Federated() or None")
    method = None if run.adapter is None else run.adapter.method
    if method is None or method == "AdaLoRA":
        raise ConfigError(
            "Run.adapter",
            run.adapter,
            "an adapter that can be averaged, as Run.federated is set",
            "Set Run.adapter = @LoRA()."
            if method is None
            else "Each party of AdaLoRA would choose other ranks: take @LoRA().",
        )
    mixture, loop = run.data.mixture, run.loop
    if mixture is None or len(mixture.sources) < 2:
        raise ConfigError(
            "Mixture.sources",
            None if mixture is None else tuple(source.name for source in mixture.sources),
            "at least two sources, as each is a party of Run.federated",
        )
    if not isinstance(run.data.tokenizer, str):
        raise ConfigError(
            "Data.tokenizer",
            run.data.tokenizer,
            "the path of a tokenizer: no party has the text to train one for all",
            "Take that of Run.start_from.",
        )
    if loop.steps % config.local_steps:
        raise ConfigError(
            "Loop.steps",
            loop.steps,
            f"a multiple of Federated.local_steps = {config.local_steps}, as rounds are whole",
        )
    for field, value in (("ramp", loop.ramp), ("profile_steps", loop.profile_steps)):
        if value is not None:
            raise ConfigError(f"Loop.{field}", value, "None, as Run.federated is set")
