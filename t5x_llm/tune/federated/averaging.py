"""Averages of adapters: of low-rank changes the products, of everything else the numbers.

A party's change to a kernel is scaling * A_i B_i. The server's is

    delta = sum_i w_i A_i B_i,  sum_i w_i = 1,

which is not the product of the averages (sum_i w_i A_i)(sum_i w_i B_i) (FLoRA, arXiv 2409.05976,
section 3). Its rank may be the sum of all ranks. It is cut back to the adapter's rank r by a
truncated singular value decomposition, the nearest matrix of rank r in the Frobenius norm (Eckart
and Young), in float64. From stacked factors, [A_1 ... A_k] and [w_1 B_1; ...; w_k B_k], it is
computed through their QR decompositions, and no matrix of the kernel's size is formed.

The new factors are A = U / sqrt(3) and B = sqrt(3) S V, since the columns of PEFT's fresh A have
norm 1 / sqrt(3) on average: A is never zero, so that a direction without a change still learns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Tree = Mapping[str, Any]
Path = tuple[str, ...]
_GAUGE = 1.0 / math.sqrt(3.0)
_RANK_AXIS = "rank"


@dataclasses.dataclass(frozen=True)
class Truncated:
    """Change to a kernel, cut to a rank.

    Attributes:
      a: [..., I, r] float64.
      b: [..., r, O] float64.
      kept: squared Frobenius norm of a b.
      dropped: that of the remainder.
    """

    a: np.ndarray
    b: np.ndarray
    kept: float
    dropped: float


def truncate_factors(a: np.ndarray, b: np.ndarray, rank: int) -> Truncated:
    """Computes the nearest matrix of a rank to a b, whose matrix is never formed.

    Args:
      a: [..., I, R], R of any size.
      b: [..., R, O].
      rank: r, at most I and O.
    """
    left, right_a = np.linalg.qr(np.asarray(a, np.float64))
    right, right_b = np.linalg.qr(np.swapaxes(np.asarray(b, np.float64), -1, -2))
    core = truncate_matrix(right_a @ np.swapaxes(right_b, -1, -2), min(rank, a.shape[-1]))
    made = Truncated(left @ core.a, core.b @ np.swapaxes(right, -1, -2), core.kept, core.dropped)
    return _padded(made, rank)


def truncate_matrix(matrix: np.ndarray, rank: int) -> Truncated:
    """Computes the nearest matrix of a rank to ``matrix``."""
    u, s, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    kept, rest = s[..., :rank], s[..., rank:]
    return Truncated(
        u[..., :, :rank] * _GAUGE,
        kept[..., :, None] * v[..., :rank, :] / _GAUGE,
        float(np.sum(kept**2)),
        float(np.sum(rest**2)),
    )


def _padded(made: Truncated, rank: int) -> Truncated:
    """Widens factors of fewer columns than the rank by zeros."""
    more = rank - made.a.shape[-1]
    if more <= 0:
        return made
    lead = [(0, 0)] * (made.a.ndim - 2)
    a = np.pad(made.a, [*lead, (0, 0), (0, more)])
    b = np.pad(made.b, [*lead, (0, more), (0, 0)])
    return dataclasses.replace(made, a=a, b=b)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Place of two factors in a tree, and the shapes of their matrices.

    Attributes:
      path: of the dict that holds ``a`` and ``b``.
      a: shape [*lead, *inputs, r].
      b: shape [*lead, r, *outputs].
      lead: number of axes before the kernel's own: repeats, experts.
    """

    path: Path
    a: tuple[int, ...]
    b: tuple[int, ...]
    lead: int

    @property
    def rank(self) -> int:
        return self.a[-1]

    def matrices(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the factors as [*lead, I, r] and [*lead, r, O]."""
        lead = self.a[: self.lead]
        return a.reshape(*lead, -1, self.rank), b.reshape(*lead, self.rank, -1)

    @property
    def product(self) -> tuple[int, ...]:
        """Returns the shape [*lead, I, O] of the product."""
        lead = self.a[: self.lead]
        inputs, outputs = self.a[self.lead : -1], self.b[self.lead + 1 :]
        return (*lead, math.prod(inputs), math.prod(outputs))


class Averager:
    """Averages adapters of one shape.

    Args:
      adapter: tree of one of them, whose leaves have shapes and dtypes.
      axes: the same tree with each parameter's logical axis names, where the rank is ``rank``.

    Attributes:
      size: numbers in a ``contribution``.
    """

    def __init__(self, adapter: Tree, axes: Tree):
        self._leaves: dict[Path, Any] = _flatten(adapter)
        names = _flatten(axes, leaf=lambda x: isinstance(x, (tuple, list)))
        self._pairs: list[_Pair] = []
        for path, leaf in self._leaves.items():
            beside = (*path[:-1], "b")
            if path[-1] == "a" and beside in self._leaves:
                own = names[beside]
                outputs = len(own) - 1 - own.index(_RANK_AXIS)
                b = tuple(self._leaves[beside].shape)
                lead = len(b) - 1 - outputs
                self._pairs.append(_Pair(path[:-1], tuple(leaf.shape), b, lead))
        factors = {(*p.path, name) for p in self._pairs for name in "ab"}
        self._plain = [path for path in self._leaves if path not in factors]
        self.size = sum(math.prod(p.product) for p in self._pairs) + sum(
            math.prod(self._leaves[path].shape) for path in self._plain
        )

    def pack(self, adapter: Tree) -> np.ndarray:
        """Returns all numbers of an adapter as one vector, [n] float32."""
        flat = _flatten(adapter)
        return np.concatenate([np.asarray(flat[p], np.float32).ravel() for p in self._leaves])

    def unpack(self, vector: np.ndarray) -> Tree:
        """Returns the adapter that ``pack`` made a vector of."""
        found, start = {}, 0
        for path, leaf in self._leaves.items():
            stop = start + math.prod(leaf.shape)
            found[path] = vector[start:stop]
            start = stop
        return self._tree(found)

    def average(self, adapters: Sequence[Tree], weights: Sequence[float]) -> tuple[Tree, float]:
        """Averages adapters that are known one by one.

        Args:
          adapters: those of the parties.
          weights: theirs, of any scale.

        Returns:
          (adapter, share of the squared norm of all changes that the truncation dropped).
        """
        share = shares(weights)
        flat = [_flatten(adapter) for adapter in adapters]
        found: dict[Path, np.ndarray] = {}
        cut = []
        for pair in self._pairs:
            at_a, at_b = (*pair.path, "a"), (*pair.path, "b")
            factors = [
                pair.matrices(np.asarray(f[at_a], np.float64), np.asarray(f[at_b], np.float64))
                for f in flat
            ]
            a = np.concatenate([a for a, _ in factors], axis=-1)
            b = np.concatenate([w * b for w, (_, b) in zip(share, factors, strict=True)], axis=-2)
            cut.append(truncate_factors(a, b, pair.rank))
        for path in self._plain:
            leaves = [np.asarray(f[path], np.float64) for f in flat]
            found[path] = sum(w * x for w, x in zip(share, leaves, strict=True))
        return self._made(found, cut)

    def contribution(self, adapter: Tree, share: float) -> np.ndarray:
        """Returns what a party adds to the sum, [n]: share * A B of each pair, share * all else.

        Args:
          adapter: the party's.
          share: its weight over the weights of all.
        """
        flat = _flatten(adapter)
        parts = []
        for pair in self._pairs:
            a, b = (np.asarray(flat[(*pair.path, name)], np.float64) for name in "ab")
            a, b = pair.matrices(a, b)
            parts.append((share * (a @ b)).ravel())
        parts += [share * np.asarray(flat[path], np.float64).ravel() for path in self._plain]
        return np.concatenate(parts)

    def of_sum(self, total: np.ndarray) -> tuple[Tree, float]:
        """Makes the averaged adapter of the sum of all contributions; see ``average``."""
        start, cut = 0, []
        for pair in self._pairs:
            stop = start + math.prod(pair.product)
            cut.append(truncate_matrix(total[start:stop].reshape(pair.product), pair.rank))
            start = stop
        found = {}
        for path in self._plain:
            stop = start + math.prod(self._leaves[path].shape)
            found[path] = total[start:stop]
            start = stop
        return self._made(found, cut)

    def _made(self, found: dict[Path, np.ndarray], cut: Sequence[Truncated]) -> tuple[Tree, float]:
        for pair, each in zip(self._pairs, cut, strict=True):
            found[(*pair.path, "a")], found[(*pair.path, "b")] = each.a, each.b
        dropped = sum(each.dropped for each in cut)
        whole = dropped + sum(each.kept for each in cut)
        return self._tree(found), dropped / whole if whole else 0.0

    def _tree(self, found: Mapping[Path, np.ndarray]) -> Tree:
        """Returns flat arrays as a tree, each with the shape and dtype of the adapter's leaf."""
        tree: dict[str, Any] = {}
        for path, leaf in self._leaves.items():
            at = tree
            for name in path[:-1]:
                at = at.setdefault(name, {})
            at[path[-1]] = found[path].reshape(leaf.shape).astype(leaf.dtype)
        return tree


def shares(weights: Sequence[float]) -> list[float]:
    """Returns weights over their sum.

    Raises:
      ValueError: one is negative or not finite, or none is above 0.
    """
    total = math.fsum(weights)
    if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
        raise ValueError(f"weights of parties must be at least 0, and one above: {weights}")
    return [w / total for w in weights]


def _flatten(tree: Tree, leaf: Any = lambda x: not isinstance(x, Mapping)) -> dict[Path, Any]:
    found: dict[Path, Any] = {}
    for name in sorted(tree):
        value = tree[name]
        if leaf(value):
            found[(name,)] = value
        else:
            found |= {(name, *path): x for path, x in _flatten(value, leaf).items()}
    return found
