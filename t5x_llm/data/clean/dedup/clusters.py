"""Clusters of documents, by the pairs that belong together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def clusters(documents: int, pairs: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the first document of each document's cluster.

    Union-find on arrays: a root is hung below the smaller one that a pair leads to, until both ends
    of every pair have one root. Memory: eight bytes a document.

    Args:
      documents: number of documents.
      pairs: blocks [n, 2] of document numbers.

    Returns:
      [documents] int64.
    """
    parent = np.arange(documents, dtype=np.int64)
    for block in pairs:
        ends = block.astype(np.int64)
        while len(ends):
            ends = np.sort(_roots(parent, ends.ravel()).reshape(-1, 2), 1)
            ends = ends[ends[:, 0] != ends[:, 1]]
            np.minimum.at(parent, ends[:, 1], ends[:, 0])
    for i in range(0, documents, 1 << 20):
        block = np.arange(i, min(i + (1 << 20), documents))
        parent[block] = _roots(parent, block)
    return parent


def _roots(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Returns the roots of nodes [n], and shortens the paths to them."""
    found = parent[nodes]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            break
        found = above
    parent[nodes] = found
    return found
