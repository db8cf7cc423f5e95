"""One source's rows in shuffled order, repeated without end, each epoch in an order of its own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import grain
import numpy as np

from t5x_llm.core.errors import DataError
from t5x_llm.data.mixing import proportions
from t5x_llm.data.objective import Objective, check_unmasked
from t5x_llm.data.packing import Packing, Spans, assemble, make_packing
from t5x_llm.data.store import Split

_MAX_ROWS = 1 << 32  # of Grain's index shuffle
# Below this Grain's index shuffle, which draws from 2^16 until it hits a row, takes up to 13 ms.
FEW_ROWS = 4096


@functools.lru_cache(maxsize=256)
def _epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """A permutation of few rows. Raw Philox output is the same in every version of NumPy."""
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(rows), kind="stable")


class Rows:
    """The rows of one plan in shuffled order.

    Args:
      packing: the plan.
      what: names the order; equal names and seeds give equal orders.
      seed: of the shuffle.
    """

    def __init__(self, packing: Packing, what: str, seed: int):
        self.packing, self.rows = packing, len(packing)
        digest = hashlib.sha256(f"{seed}/{what}".encode()).digest()
        self._seed = int.from_bytes(digest[:4], "little")
        self.noise_seed = int.from_bytes(digest[8:16], "little")
        if 0 < self.rows < _MAX_ROWS:
            self._order = grain.MapDataset.range(self.rows).seed(self._seed).shuffle().repeat()

    def row(self, ordinal: int) -> int:
        """Row of the plan that comes as the ``ordinal``-th."""
        if self.rows < FEW_ROWS:
            epoch, index = divmod(ordinal, self.rows)
            return int(_epoch_order(self._seed, epoch, self.rows)[index])
        return int(self._order[ordinal])

    def spans(self, ordinals: np.ndarray) -> Spans:
        """The pieces in the rows that come as these."""
        return self.packing.spans(np.array([self.row(int(o)) for o in ordinals], np.int64))


class ShuffledSource:
    """One source's rows by ordinal.

    Args:
      name: of the source.
      split: what is read.
      packing: ``concat`` or ``whole``.
      length: T, or what ``objective`` makes of it.
      seed: of the shuffles and of what the objective draws.
      objective: None for next-token prediction. The rows of its denoisers are interleaved in the
        proportions of their rates, and each reads the whole source.

    Attributes:
      rows: in one epoch, in which every token is read once; rounded if there are several denoisers.
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
        objective: Objective | None = None,
    ):
        self.name, self.split, self._packing, self._length = name, split, packing, length
        self._objective = objective
        rates: Mapping[str, float] = {"": 1.0}
        if objective is None:
            self._rows = {"": Rows(make_packing(packing, split, length), name, seed)}
        else:
            check_unmasked(name, split, objective)
            rates = {n: rate for n, rate in objective.rates.items() if rate > 0}
            self._rows = {
                n: Rows(objective.plan(objective.denoisers[n], packing, split), f"{name}/{n}", seed)
                for n in rates
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
        self.tokens = sum(share * r.packing.tokens / r.rows for share, r in self._means)
        self.efficiency = sum(share * r.packing.efficiency for share, r in self._means)

    def epochs(self, rows: int) -> float:
        """How many times so many rows go through the source."""
        return sum(rows * share / r.rows for share, r in self._means)

    def _locate(self, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index into ``_parts.names``, and that part's ordinal."""
        if len(self._rows) == 1:
            return np.zeros(len(ordinals), np.int64), ordinals
        return self._parts.locate(ordinals)

    def row(self, ordinal: int) -> int:
        """Row of its plan that the source gives as its ``ordinal``-th."""
        part, at = self._locate(np.array([ordinal]))
        return self._rows[self._parts.names[part[0]]].row(int(at[0]))

    def spans(self, ordinal: int) -> tuple[Spans, int]:
        """The pieces of documents in one row, and how often its plan had been read in full."""
        part, at = self._locate(np.array([ordinal]))
        rows = self._rows[self._parts.names[part[0]]]
        return rows.spans(at), int(at[0]) // rows.rows

    def arrays(self, ordinals: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a batch but ``source``, for the rows that come as these [n]."""
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
