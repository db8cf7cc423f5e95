"""Stages, budgets and replay as a history of mixtures, known before the run begins.

All that a blend says becomes (stream position, weights) entries, those that a checkpoint carries
(``positions``): a stage begins at its position, and a source whose budget is used up leaves behind
its last row, found by bisection in the counts of ``mixing``. The stream learns no more than that,
so it stays pure and O(1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.units import count
from t5x_llm.data.mixing import proportions
from t5x_llm.data.positions import History
from t5x_llm.data.sources import Mixture
from t5x_llm.data.store import TokenStore


@dataclasses.dataclass(frozen=True)
class Blend:
    """Plan of a mixture: its stages, and the budgets of its sources.

    Attributes:
      sources: names; every entry of a history gives each a share, and the shares add up to 1.
      stages: (stream position, {source: weight}) from which weights hold; the first at 0.
      budgets: rows after which a source leaves.
    """

    sources: tuple[str, ...]
    stages: History
    budgets: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def history(self, past: History = (), at: int = 0) -> History:
        """Returns the entries of ``past`` up to stream position ``at`` and the blend's from there.

        Equal ``past`` and ``at`` give equal histories, and a history that is made again from any
        position of itself is the same history. Where no source of a stage is left, the last
        weights go on.
        """
        made = [(start, dict(weights)) for start, weights in past if start <= at]
        # Rows passed where the last entry begins.
        passed = dict.fromkeys(self.sources, 0)
        for (start, weights), (stop, _) in zip(made, made[1:], strict=False):
            passed = _passed(passed, weights, stop - start)
        position: int | None = at
        while position is not None:
            here = passed
            if made:
                here = _passed(passed, made[-1][1], position - made[-1][0])
            wanted = self._weights(position, here)
            if wanted is None:
                wanted = made[-1][1] if made else self._shares(self._stage(position))
            if not made or wanted != made[-1][1]:
                if made and made[-1][0] == position:
                    made.pop()
                made.append((position, wanted))
                passed = here
            position = self._next(position, made[-1], passed, here)
        return tuple(made)

    def _stage(self, position: int) -> Mapping[str, float]:
        return next(w for start, w in reversed(self.stages) if start <= position)

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        total = sum(weights.values())
        return {name: weights.get(name, 0.0) / total for name in self.sources}

    def _weights(self, position: int, passed: Mapping[str, int]) -> dict[str, float] | None:
        """Returns the shares at a position; None if no source of the stage has anything left."""
        left = {
            name: weight
            for name, weight in self._stage(position).items()
            if name not in self.budgets or passed[name] < self.budgets[name]
        }
        return self._shares(left) if any(left.values()) else None

    def _next(
        self,
        position: int,
        entry: tuple[int, Mapping[str, float]],
        passed: Mapping[str, int],
        here: Mapping[str, int],
    ) -> int | None:
        """Returns the next position at which a stage begins or a budget is used up, or None."""
        start, weights = entry
        found = [first for first, _ in self.stages if first > position][:1]
        for name, budget in self.budgets.items():
            if weights.get(name, 0.0) > 0 and here[name] < budget:
                rows = budget - passed[name]
                end = start + _first(weights, name, rows)
                found.append(end)
        return min(found, default=None)


def _passed(passed: Mapping[str, int], weights: Mapping[str, float], rows: int) -> dict[str, int]:
    """Returns the rows passed of each source after ``rows`` more rows of a mixture."""
    more = proportions(weights).counts(rows)
    return {name: before + more.get(name, 0) for name, before in passed.items()}


def _first(weights: Mapping[str, float], name: str, rows: int) -> int:
    """Returns the number of positions of a mixture after which a source has given ``rows`` rows."""
    counts = proportions(weights).counts
    low, high = 0, rows
    while counts(high)[name] < rows:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if counts(middle)[name] >= rows else (middle, high)
    return high


def stages(
    mixture: Mixture,
    rates: Mapping[str, float],
    length: int,
    examples_after: Callable[[int], int] | None,
) -> History:
    """Returns the stages of a mixture by stream position, with the shares of ``Mixture.replay``.

    Args:
      mixture: with its ``stages`` and ``replay``.
      rates: weights before the first of them, and among replayed sources that a stage leaves out.
      length: T; a stage that starts at so many tokens starts at the row that holds the next.
      examples_after: steps -> examples that they consume.

    Raises:
      ConfigError: stages by steps where there are none.
    """
    found: list[tuple[int, Mapping[str, float]]] = [(0, rates)]
    for start, weights in mixture.stages:
        if start == 0:
            at = 0
        elif isinstance(start, str):
            at = -(-count("Mixture.stages", start) // length)
        elif examples_after is None:
            expected = "tokens of the run, such as '20B': nothing says how many rows a step has"
            raise ConfigError("Mixture.stages", start, expected)
        else:
            at = examples_after(start)
        if at == found[-1][0]:
            found.pop()
        found.append((at, weights))
    return tuple((at, replayed(mixture, weights, rates)) for at, weights in found)


def mixed_sizes(mixture: Mixture | None, stores: Mapping[str, TokenStore]) -> dict[str, float]:
    """Returns what ``proportional``, ``temperature`` and ``examples`` rates are made of, by source.

    These are its training tokens. For ``examples`` they count in the ratio of the documents that
    the mixture wants to those that there are: documents of all sources then come in the ratio of
    min(documents, max_examples) ** (1 / temperature), however long they are (T5, arXiv 1910.10683,
    section 3.5.2; FLAN, 2109.01652, section 2.2).
    """
    if mixture is None or mixture.rates != "examples":
        return {name: store.train.tokens for name, store in stores.items()}
    sizes = {}
    for name, store in stores.items():
        documents = max(len(store.train), 1)
        wanted = min(documents, mixture.max_examples or documents) ** (1 / mixture.temperature)
        sizes[name] = store.train.tokens * wanted / documents
    return sizes


def replayed(
    mixture: Mixture, weights: Mapping[str, float], rates: Mapping[str, float]
) -> dict[str, float]:
    """Returns weights with the shares of ``Mixture.replay``; the other sources keep their ratios.

    Raises:
      ConfigError: a stage that has nothing but what is replayed.
    """
    if not mixture.replay:
        return dict(weights)
    groups = {key: mixture.group(key) for key in mixture.replay}
    taken = {name for names in groups.values() for name in names}
    others = {name: weight for name, weight in weights.items() if name not in taken}
    if not any(others.values()):
        expected = "at least one source with a weight that Mixture.replay does not name"
        raise ConfigError("Mixture.stages", dict(weights), expected)
    rest = 1 - sum(mixture.replay.values())
    shares = _scaled(others, rest)
    for key, names in groups.items():
        shares |= _scaled(_chosen(names, weights, rates), mixture.replay[key])
    return shares


def _chosen(names: Sequence[str], *tables: Mapping[str, float]) -> dict[str, float]:
    """Returns these sources' weights in the first table that has any, else equal weights."""
    for table in tables:
        found = {name: table.get(name, 0.0) for name in names}
        if any(found.values()):
            return found
    return dict.fromkeys(names, 1.0)


def _scaled(weights: Mapping[str, float], total: float) -> dict[str, float]:
    whole = sum(weights.values())
    # Rounded, so that equal shares are equal numbers and no new mixture.
    return {name: round(total * weight / whole, 12) for name, weight in weights.items()}
