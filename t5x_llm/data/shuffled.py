"""One source's rows in shuffled order, repeated without end, each epoch in an order of its own."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from t5x_llm.core.errors import DataError
from t5x_llm.data.bins import PLAIN, Order, make_plan
from t5x_llm.data.mixing import proportions
from t5x_llm.data.packing import Packing, Spans, assemble
from t5x_llm.data.row_objective import RowObjective, check_unmasked
from t5x_llm.data.store import Split

if TYPE_CHECKING:
    import grain

_MAX_ROWS = 1 << 32  # of Grain's index shuffle
# Below this Grain's index shuffle, which draws from 2^16 until it hits a row, takes up to 13 ms.
FEW_ROWS = 4096


@functools.lru_cache(maxsize=256)
def _epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """Draws a permutation of few rows. Raw Philox output is the same in every version of NumPy."""
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(rows), kind="stable")


class Shuffle:
    """Shuffled order of the numbers below ``rows``, different in each epoch.

    Args:
      rows: number of rows, below 2^32.
      what: name of the order; equal names and seeds give equal orders.
      seed: seed of the shuffle.
    """

    def __init__(self, rows: int, what: str, seed: int):
        self.rows = rows
        digest = hashlib.sha256(f"{seed}/{what}".encode()).digest()
        self._seed = int.from_bytes(digest[:4], "little")
        self.noise_seed = int.from_bytes(digest[8:16], "little")

    @functools.cached_property
    def _order(self) -> grain.MapDataset:
        import grain  # half a second that few rows never need

        return grain.MapDataset.range(self.rows).seed(self._seed).shuffle().repeat()

    def __call__(self, ordinal: int) -> int:
        """Returns the number that comes as the ``ordinal``-th."""
        if self.rows < FEW_ROWS:
            epoch, index = divmod(ordinal, self.rows)
            return int(_epoch_order(self._seed, epoch, self.rows)[index])
        return int(self._order[ordinal])


class ShuffledRows:
    """Rows of one plan, bin after bin, in shuffled order inside each bin.

    Args:
      packing: the plan.
      what: names the order; equal names and seeds give equal orders.
      seed: of the shuffle.
      part: share of the rows that is read, again and again; 1 or more for all.

    Attributes:
      rows: in one round, an epoch of what is read.
      noise_seed: for what is drawn from the rows.
    """

    def __init__(self, packing: Packing, what: str, seed: int, part: float = 1.0):
        self.packing, count = packing, len(packing)
        starts = getattr(packing, "starts", (0, count))
        self.rows = count
        if part < 1:
            self.rows = max(round(count * part), min(count, 1))
        self._starts = [int(start) for start in starts]
        self._shuffles: list[Shuffle] = []
        self._kept: list[Shuffle | None] = []  # of bins read in part: which of the part
        for b, (start, stop) in enumerate(itertools.pairwise(self._starts)):
            name = what if len(starts) == 2 else f"{what}/{b}"
            self._shuffles.append(Shuffle(stop - start, name, seed))
            kept = self.rows - start if start < self.rows < stop else 0
            self._kept.append(Shuffle(kept, f"{name}/again", seed) if kept else None)
        whole = self._shuffles[0] if len(starts) == 2 else Shuffle(count, what, seed)
        self.noise_seed = whole.noise_seed

    def row(self, ordinal: int) -> int:
        """Returns the row of the plan that comes as the ``ordinal``-th."""
        epoch, index = divmod(ordinal, self.rows)
        b = bisect.bisect_right(self._starts, index) - 1
        start, shuffle, kept = self._starts[b], self._shuffles[b], self._kept[b]
        if kept is not None:
            return start + shuffle(kept(epoch * kept.rows + index - start))
        return start + shuffle(epoch * shuffle.rows + index - start)

    def section(self, ordinal: int) -> int:
        """Returns the number of bins begun before the row that comes as the ``ordinal``-th."""
        epoch, index = divmod(ordinal, self.rows)
        bins = bisect.bisect_left(self._starts, self.rows)
        return epoch * bins + bisect.bisect_right(self._starts, index) - 1

    def spans(self, ordinals: np.ndarray) -> Spans:
        """Returns the pieces in the rows that come as these ordinals [n]."""
        return self.packing.spans(np.array([self.row(int(o)) for o in ordinals], np.int64))


class ShuffledSource:
    """Rows of one source by ordinal.

    Args:
      name: of the source.
      split: what is read.
      packing: one of ``packing.PACKINGS``.
      length: T, or the objective's length of rows.
      seed: of the shuffles and of what the objective draws.
      objective: None for next-token prediction. The rows of its denoisers are interleaved in the
        proportions of their rates, and each reads the whole source.
      order: bins, curriculum, and what of it is read.

    Attributes:
      rows: in one epoch, in which every token that ``order`` leaves is read once; rounded if there
        are several denoisers.
      whole: the same of all of it.
      tokens: read by a row on average.
      efficiency: share of places that hold a token.

    Raises:
      DataError: there is not one row, or they are too many; or a store with a loss mask of its own
        and an objective.
    """

    def __init__(
        self,
        name: str,
        split: Split,
        packing: str,
        length: int,
        seed: int,
        objective: RowObjective | None = None,
        order: Order = PLAIN,
    ):
        self.order = order
        self.name, self.split, self._packing, self._length = name, split, packing, length
        self._objective = objective
        rates: Mapping[str, float] = {"": 1.0}
        if objective is None:
            plan = make_plan(packing, split, length, order=order)
            self._rows = {"": ShuffledRows(plan, name, seed, order.part(plan))}
        else:
            check_unmasked(name, split, objective)
            rates = {n: rate for n, rate in objective.rates.items() if rate > 0}
            plans = {
                n: objective.plan(objective.denoisers[n], packing, split, order) for n in rates
            }
            self._rows = {
                n: ShuffledRows(plan, f"{name}/{n}", seed, order.part(plan))
                for n, plan in plans.items()
            }
        for rows in self._rows.values():
            if not 0 < rows.rows < _MAX_ROWS:
                raise DataError(
                    f"Source {name!r} ({split.store.path}) has {rows.rows} rows of {length} tokens "
                    "to train on; expected at least 1 and less than 2^32. Give it more text, or "
                    "lower its validation_fraction."
                )
        self._parts = proportions(rates)
        shares = {n: rates[n] / sum(rates.values()) for n in rates}
        self._means = [(share, self._rows[n]) for n, share in shares.items()]
        self.rows = round(1 / self.epochs(1))
        self.whole = round(1 / sum(share / len(r.packing) for share, r in self._means))
        self.tokens = sum(share * r.packing.tokens / len(r.packing) for share, r in self._means)
        self.efficiency = sum(share * r.packing.efficiency for share, r in self._means)

    def section(self, ordinal: int) -> int:
        """Returns the number of bins begun before the ``ordinal``-th row, of the first denoiser."""
        share, rows = self._means[0]
        return rows.section(int(ordinal * share))

    def epochs(self, rows: int) -> float:
        """Returns the number of times that ``rows`` rows go through the source."""
        return sum(rows * share / r.rows for share, r in self._means)

    def _locate(self, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index into ``_parts.names`` [n], and the ordinal in that part [n]."""
        if len(self._rows) == 1:
            return np.zeros(len(ordinals), np.int64), ordinals
        return self._parts.locate(ordinals)

    def row(self, ordinal: int) -> int:
        """Returns the row of its plan that the source gives as its ``ordinal``-th."""
        part, at = self._locate(np.array([ordinal]))
        return self._rows[self._parts.names[part[0]]].row(int(at[0]))

    def spans(self, ordinal: int) -> tuple[Spans, int]:
        """Returns the spans in one row, and the number of times its plan had been read in full."""
        part, at = self._locate(np.array([ordinal]))
        rows = self._rows[self._parts.names[part[0]]]
        return rows.spans(at), int(at[0]) // rows.rows

    def arrays(self, ordinals: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch but ``source``, for the rows that come as these [n]."""
        if self._objective is None:
            spans = self._rows[""].spans(ordinals)
            return assemble(self.split, spans, len(ordinals), self._length)
        part, at = self._locate(ordinals)
        arrays: dict[str, np.ndarray] = {}
        for index in np.unique(part):
            here = np.flatnonzero(part == index)
            name = self._parts.names[index]
            rows = self._rows[name]
            made = self._objective.rows(
                self._objective.denoisers[name], self._packing, self.split, rows.spans(at[here]),
                len(here), rows.noise_seed, at[here].tolist(),
            )  # fmt: skip
            for field, value in made.items():
                if field not in arrays:
                    arrays[field] = np.zeros((len(ordinals), *value.shape[1:]), value.dtype)
                arrays[field][here] = value
        return arrays
