"""Exact proportions: the source of the n-th example in O(1), without state.

Guarantee: in every window of 100 consecutive positions, wherever it starts, each source appears
floor(100 w) or floor(100 w) + 1 times, w its share. Over n examples its count stays within about 5
of n w, and n / 10^6 for the rounding of w. (Grain's own proportional map rounds source after
source, so its errors add up: windows of 100 were seen off by 1.8 with three sources and by 2.5 with
six.)

How. Positions are cut into blocks of 100 slots. Every source owns floor(100 w) slots, the same in
each block, spread evenly. The m slots left over are lent anew in each block to m different sources,
source i in a share f_i = 100 w_i - floor(100 w_i) of the blocks: systematic sampling, i.e. the arcs
f_i laid end to end around a circle m times and read at one point, which turns by the golden ratio
from block to block. A source that is chosen again keeps its slot, and a newcomer takes the slot of
one that leaves, so a sliding window never sees two lent slots of one source. Shares f_i are
multiples of 1/8192; after 8,192 blocks the table is read backwards, which makes the seams identical
blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from t5x_llm.core.errors import ConfigError

WINDOW = 100
_BLOCKS = 8192
_TURN = 5063  # odd, nearest to 8192 / golden ratio


def check_weights(field: str, weights: Mapping[str, float]) -> None:
    """Raises ConfigError unless the weights are finite, at least 0 and not all 0."""
    for name, weight in weights.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight < float("inf"):
            raise ConfigError(
                field,
                weight,
                f"a finite number of at least 0 for source {name!r}",
                "Give 0 to leave a source out.",
            )
    if not any(weights.values()):
        raise ConfigError(field, dict(weights), "at least one source with a rate above 0")


class Proportions:
    """Map from a position to its source and to the number of that source's examples before it.

    Args:
      weights: of each source, any positive scale; sources of weight 0 never appear, and neither
        they nor the order of the names change the positions of the others.
    """

    def __init__(self, weights: Mapping[str, float]):
        check_weights("Mixture.rates", weights)
        self.names = tuple(sorted(name for name, weight in weights.items() if weight > 0))
        own, lent = _shares([Fraction(weights[name]) for name in self.names])
        self._own = np.array(own, np.int64)
        self._lent = np.array(lent, np.int64)
        layout = _layout(own, WINDOW - sum(own))
        # owned[r, i]: slots before r that source i owns.
        owned = np.zeros((WINDOW + 1, len(own)), np.int64)
        for slot, owner in enumerate(layout):
            owned[slot + 1] = owned[slot]
            if owner >= 0:
                owned[slot + 1, owner] += 1
        self._owned = owned
        self._layout = np.array([max(owner, -1) for owner in layout], np.int64)
        free = np.flatnonzero(self._layout < 0)
        chosen = _chosen(lent)
        # slot[b, i]: the slot lent to source i in block b, or WINDOW.
        self._slot = _lend(chosen, free)
        self._borrower = np.full((_BLOCKS, WINDOW), -1, np.int16)
        blocks, sources = np.nonzero(chosen)
        self._borrower[blocks, self._slot[blocks, sources]] = sources
        self._chosen_before = np.concatenate(
            [np.zeros((1, len(own)), np.int64), np.cumsum(chosen, axis=0, dtype=np.int64)]
        )

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index into ``names`` [n] and that source's ordinal [n] of positions [n]."""
        blocks, slots = np.divmod(np.asarray(positions, np.int64), WINDOW)
        table = _fold(blocks)[0]
        source = self._layout[slots]
        source = np.where(source < 0, self._borrower[table, slots], source)
        lent = self._slot[table, source] < slots
        ordinal = self._before_block(blocks, source) + self._owned[slots, source] + lent
        return source, ordinal

    def counts(self, position: int) -> dict[str, int]:
        """Returns the number of the first ``position`` examples that come from each source."""
        block, slot = divmod(int(position), WINDOW)
        every = np.arange(len(self.names))
        table = int(_fold(np.array([block]))[0][0])
        counts = self._before_block(np.full(len(every), block), every)
        counts = counts + self._owned[slot] + (self._slot[table] < slot)
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}

    def _before_block(self, blocks: np.ndarray, source: np.ndarray) -> np.ndarray:
        _, rounds, step = _fold(blocks)
        whole = 2 * self._lent[source]
        there = self._chosen_before[np.minimum(step, _BLOCKS), source]
        back = whole - self._chosen_before[np.minimum(2 * _BLOCKS - step, _BLOCKS), source]
        part = np.where(step <= _BLOCKS, there, back)
        return blocks * self._own[source] + rounds * whole + part


@functools.lru_cache(maxsize=64)
def _cached(weights: tuple[tuple[str, float], ...]) -> Proportions:
    return Proportions(dict(weights))


def proportions(weights: Mapping[str, float]) -> Proportions:
    """Returns the ``Proportions`` of these weights, which are made once."""
    return _cached(tuple(sorted(weights.items())))


def _fold(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each block's row of the table, the rounds completed, and the step in the round."""
    rounds, step = np.divmod(blocks, 2 * _BLOCKS)
    return np.where(step < _BLOCKS, step, 2 * _BLOCKS - 1 - step), rounds, step


def _shares(weights: list[Fraction]) -> tuple[list[int], list[int]]:
    """Returns each source's own slots of 100, and the blocks of 8192 in which it borrows one."""
    total = sum(weights)
    exact = [WINDOW * weight / total for weight in weights]
    own = [int(share) for share in exact]
    parts = [(share - whole) * _BLOCKS for share, whole in zip(exact, own, strict=True)]
    lent = [int(part) for part in parts]
    missing = (WINDOW - sum(own)) * _BLOCKS - sum(lent)
    by_remainder = sorted(range(len(lent)), key=lambda i: (lent[i] - parts[i], i))
    for i in by_remainder[:missing]:
        lent[i] += 1
    for i in range(len(lent)):
        if own[i] == 0 and lent[i] == 0:  # rarer than once in 819,200, but not absent
            lent[i] += 1
            lent[max(range(len(lent)), key=lambda j: lent[j])] -= 1
    return own, lent


def _layout(own: list[int], free: int) -> list[int]:
    """Returns the owner of each slot of a block, -1 for one that is lent, spread evenly."""
    wanted = [*own, free]
    placed = [0] * len(wanted)
    layout = []
    for slot in range(WINDOW):
        behind = [(slot + 1) * w - WINDOW * p for w, p in zip(wanted, placed, strict=True)]
        best = max(
            (i for i in range(len(wanted)) if placed[i] < wanted[i]), key=lambda i: (behind[i], -i)
        )
        placed[best] += 1
        layout.append(best if best < len(own) else -1)
    return layout


def _chosen(lent: list[int]) -> np.ndarray:
    """Returns [blocks, sources] bool: True where the source borrows a slot in the block."""
    point = np.arange(_BLOCKS, dtype=np.int64) * _TURN % _BLOCKS
    length = np.array(lent, np.int64)
    start = np.cumsum(length) - length
    return (point[:, None] - start) % _BLOCKS < length


def _lend(chosen: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Returns [blocks, sources] int16: the slot that each borrower gets, 100 for the others."""
    slots = np.full(chosen.shape, WINDOW, np.int16)
    if not len(free):
        return slots
    current = np.full(chosen.shape[1], WINDOW, np.int16)
    current[chosen[0]] = free
    slots[0] = current
    leaves, enters = chosen[:-1] & ~chosen[1:], chosen[1:] & ~chosen[:-1]
    for block in range(1, len(chosen)):
        gone, come = leaves[block - 1], enters[block - 1]
        current[come] = current[gone]
        current[gone] = WINDOW
        slots[block] = current
    return slots
