"""Reckons tokens that a model wants, their cost, and the worth of a repeated token.

The loss is L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv 2203.15556, approach 3)
with the constants that Besiroglu et al. (arXiv 2404.10102) fitted to the same runs: those of the
first paper contradict its other two approaches. It is nats a token of that paper's text and
tokenizer: use it to compare plans, not to foretell a curve.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from t5x_llm.core.errors import check_number
from t5x_llm.core.slices import Slice

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
# Tokens a parameter at the least compute for a loss (arXiv 2203.15556, table 3: 20.0 to 22).
CHINCHILLA = 20.0
# Epochs after which a repeat has lost 1 - 1/e of its worth (arXiv 2305.16264, section 5).
REPEATS = 15.387756
_DAY = 86400.0


def loss(parameters: float, tokens: float) -> float:
    """L(N, D), nats a token; ``tokens`` are ``effective_tokens`` where data is repeated."""
    return E + A / parameters**ALPHA + B / tokens**BETA


def optimal(compute: float) -> tuple[float, float]:
    """(parameters, tokens) of the least loss for so many FLOPs, by C = 6 N D."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    parameters = g * (compute / 6) ** (BETA / (ALPHA + BETA))
    return parameters, compute / 6 / parameters


def effective_tokens(tokens: float, unique: float) -> float:
    """Fresh tokens that ``tokens`` of ``unique`` ones are worth (arXiv 2305.16264, eq. 5)."""
    repeats = max(tokens / unique - 1, 0.0)
    fresh = min(tokens, unique)
    return fresh + fresh * REPEATS * (1 - math.exp(-repeats / REPEATS))


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips that a run is paid for.

    Attributes:
      slice: one slice.
      slices: how many.
      mfu: model FLOP utilisation.
      price: of a chip-hour, in any currency; None leaves money out.
    """

    slice: Slice
    slices: int = 1
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        check_number("--slices", self.slices, low=1, integer=True)
        check_number("--mfu", self.mfu, above=0, high=1)
        if self.price is not None:
            check_number("--price", self.price, low=0)

    @property
    def chips(self) -> int:
        """All of them."""
        return self.slice.chips * self.slices

    @property
    def flops(self) -> float:
        """Model FLOP/s."""
        return self.chips * self.slice.facts.peak * self.mfu


@dataclasses.dataclass(frozen=True)
class Point:
    """One length of training.

    Attributes:
      name: what is special about it.
      tokens: to read.
      per_parameter: tokens a parameter.
      epochs: over the unique tokens, or None where nothing bounds them.
      flops: of the training.
      loss: predicted, with repeats at their worth.
      days: on the machine, or None without one.
      cost: or None.
    """

    name: str
    tokens: float
    per_parameter: float
    epochs: float | None
    flops: float
    loss: float
    days: float | None
    cost: float | None


def points(
    parameters: float,
    flops_per_token: float,
    *,
    tokens: float | None = None,
    unique: float | None = None,
    machine: Machine | None = None,
    ratios: Sequence[float] = (CHINCHILLA, 100.0, 200.0, 1000.0),
) -> list[Point]:
    """A table of training lengths for a model, ascending.

    Args:
      parameters: N, all of them.
      flops_per_token: forward and backward.
      tokens: a length of one's own, or None.
      unique: tokens there are; reading more repeats them.
      machine: for days and money.
      ratios: tokens a parameter of the other lengths.

    Raises:
      ConfigError: a number that is none.
    """
    check_number("--parameters", parameters, above=0)
    for name, value in (("--tokens", tokens), ("--unique_tokens", unique)):
        if value is not None:
            check_number(name, value, above=0)
    wanted = {
        ("compute-optimal" if r == CHINCHILLA else f"over-trained x{r / CHINCHILLA:g}"): r
        * parameters
        for r in ratios
    }
    if tokens is not None:
        wanted["asked for"] = tokens
    if unique is not None:
        wanted["one epoch"], wanted["four epochs"] = unique, 4 * unique
    made = []
    for name, n in sorted(wanted.items(), key=lambda item: item[1]):
        flops = n * flops_per_token
        days = None if machine is None else flops / machine.flops / _DAY
        cost = None
        if machine is not None and machine.price is not None and days is not None:
            cost = days * 24 * machine.chips * machine.price
        worth = n if unique is None else effective_tokens(n, unique)
        epochs = None if unique is None else n / unique
        predicted = loss(parameters, worth)
        made.append(Point(name, n, n / parameters, epochs, flops, predicted, days, cost))
    return made
