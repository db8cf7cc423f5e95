"""Another number of rows for an embedding table, a head or its bias; old rows keep every bit.

New rows start at the mean of the old ones, which is where a model that knows nothing of them loses
least (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html); at the mean of the rows
of the pieces that a token used to be written as (Colossal-LLaMA-2); at the mean with noise, so that
they differ; or at random, to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_llm.core.errors import check_choice, check_number

HOW = ("mean", "subpieces", "noise", "random")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Init of new rows.

    Attributes:
      how: 'mean' of the old rows; of the 'subpieces' where they are given; 'noise' about the mean;
        'random', normal about 0 with the standard deviation of all old numbers.
      noise: of 'noise' about the mean, in standard deviations of the old rows.
      seed: of the random numbers.
      leading_space: whether 'subpieces' are those at the start of a text, where many tokenizers put
        a space in front: its row is then a part of every mean, and pulls all new rows together.
    """

    how: str = "mean"
    noise: float = 0.1
    seed: int = 0
    leading_space: bool = False

    def __post_init__(self) -> None:
        check_choice("Growth.how", self.how, HOW)
        check_number("Growth.noise", self.noise, low=0)
        check_number("Growth.seed", self.seed, low=0, integer=True)


def resized(
    table: np.ndarray,
    size: int,
    growth: Growth,
    known: int | None = None,
    pieces: Mapping[int, Sequence[int]] | None = None,
) -> np.ndarray:
    """``table`` [V, ...] with ``size`` rows, in its dtype.

    Args:
      table: one row a token; rows kept are kept to the bit.
      size: rows wanted; fewer than V cuts.
      growth: how new rows begin.
      known: rows that tokens have, the rest being padding: the mean is of these, and rows from here
        on are new. All of them if None.
      pieces: new row to the old rows it is the mean of, for 'subpieces'; others get the mean.
    """
    known = min(len(table) if known is None else known, size)
    out = np.empty((size, *table.shape[1:]), table.dtype)
    out[:known] = table[:known]
    if size == known:
        return out
    old = table[:known]
    mean = np.mean(old, axis=0, dtype=np.float64)
    if growth.how in ("noise", "random"):
        rng = np.random.default_rng(growth.seed)
        variance = _variance(old, mean)
        spread = growth.noise * np.sqrt(variance)
        if growth.how == "random":
            spread = np.full_like(mean, np.sqrt(np.mean(variance + mean**2)))
            mean = np.zeros_like(mean)
        for row in range(known, size):
            out[row] = mean + rng.normal(size=mean.shape) * spread
        return out
    out[known:] = mean
    for row, parts in (pieces or {}).items():
        if growth.how == "subpieces" and known <= row < size and len(parts):
            out[row] = np.mean(old[np.asarray(parts)], axis=0, dtype=np.float64)
    return out


def _variance(old: np.ndarray, mean: np.ndarray) -> np.ndarray:
    total = np.zeros_like(mean)
    for first in range(0, len(old), 1024):
        total += np.sum((old[first : first + 1024].astype(np.float64) - mean) ** 2, axis=0)
    return total / len(old)


def rounded_up(size: int, multiple: int) -> int:
    """``size``, or the next multiple."""
    return -(-size // multiple) * multiple
