"""Search for near copies: bands of signatures that meet, and the clusters that they make."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from t5x_llm.core.paths import as_path
from t5x_llm.data.clean.dedup import keys, minhash
from t5x_llm.data.clean.dedup.clusters import clusters
from t5x_llm.data.clean.dedup.context import DedupContext
from t5x_llm.data.clean.dedup.dedup_config import MinHash

BANDS, PAIRS, SIGNATURES, CLUSTERS = ".bands", ".pairs", ".signatures", ".clusters"
_PAIR = np.dtype(("<u8", (2,)))
_ROWS = 1 << 16


def write_bands(context: DedupContext, number: int, signatures: np.ndarray, units: np.ndarray,
                base: str) -> int:  # fmt: skip
    """Writes the bands of a part's documents, and the pairs that meet within the part.

    Args:
      context: context of the run.
      number: number of the part.
      signatures: [n, hashes] uint32.
      units: [n] numbers of the documents that have them, ascending.
      base: path without suffix.

    Returns:
      The number of keys that are left to be looked at.
    """
    config = context.minhash
    high, low = minhash.band_keys(signatures, config)
    found = np.empty(high.size, keys.STORED)
    found["high"], found["low"] = high.ravel(), low.ravel()
    found["unit"] = np.repeat(units, config.shape[0])
    found = keys.sort(found)
    rows = np.searchsorted(units, found["unit"])

    def alike(pairs: np.ndarray) -> np.ndarray:
        return _agree(lambda places: signatures[rows[places]], pairs, context)

    pairs, firsts = keys.stars(found, alike if config.verify else None)
    keys.write(base + BANDS, found[firsts])
    _write_pairs(base, found["unit"][pairs].astype(np.uint64) + np.uint64(context.offsets[number]))
    if config.verify:
        every = np.zeros((context.parts[number].documents, signatures.shape[1]), "<u4")
        every[units] = signatures
        as_path(base + SIGNATURES).write_bytes(every.tobytes())
    return len(firsts)


def find_pairs(context: DedupContext, partition: int, base: str) -> None:
    """Writes the pairs of documents whose bands meet in one partition."""
    found = keys.load(context.by_part("sign", BANDS), partition, context.partitions["pairs"])
    offsets = context.offsets
    alike = None
    if context.minhash.verify:
        reader = _Signatures(context.by_part("sign", SIGNATURES), context.minhash)

        def alike(pairs: np.ndarray) -> np.ndarray:
            return _agree(lambda at: reader(found["part"][at], found["unit"][at]), pairs, context)

    pairs, _ = keys.stars(found, alike)
    numbers = offsets[found["part"]] + found["unit"]
    _write_pairs(base, numbers[pairs])


def _agree(
    signatures: Callable[[np.ndarray], np.ndarray], pairs: np.ndarray, context: DedupContext
) -> np.ndarray:
    least = context.minhash.least_agreement
    found = [
        minhash.agreement(signatures(some[:, 0]), signatures(some[:, 1])) >= least
        for some in np.array_split(pairs, len(pairs) // _ROWS + 1)
    ]
    return np.concatenate(found)


class _Signatures:
    """Looks up signatures in the files of parts, some of which stay open as memory maps."""

    def __init__(self, paths: Sequence[str], config: MinHash):
        self._paths, self._hashes = paths, int(np.prod(config.shape))
        self._maps: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def __call__(self, parts: np.ndarray, units: np.ndarray) -> np.ndarray:
        """Returns [n, hashes] uint32."""
        found = np.empty((len(parts), self._hashes), np.uint32)
        for part in np.unique(parts).tolist():
            here = parts == part
            found[here] = self._map(part)[units[here]]
        return found

    def _map(self, part: int) -> np.ndarray:
        if part not in self._maps:
            path = self._paths[part]
            if "://" in path:
                flat = np.frombuffer(as_path(path).read_bytes(), "<u4")
            else:
                flat = np.memmap(path, "<u4", "r")
            self._maps[part] = flat.reshape(-1, self._hashes)
            if len(self._maps) > 64:
                self._maps.popitem(last=False)
        return self._maps[part]


def _write_pairs(base: str, pairs: np.ndarray) -> None:
    """Writes pairs of document numbers [n, 2], each pair once."""
    flat = np.ascontiguousarray(pairs, "<u8").reshape(-1, 2)
    flat = flat[np.lexsort((flat[:, 1], flat[:, 0]))]
    new = np.ones(len(flat), bool)
    new[1:] = (flat[1:] != flat[:-1]).any(1)
    as_path(base + PAIRS).write_bytes(flat[new].tobytes())


def find_clusters(context: DedupContext, _: None, base: str) -> None:
    """Writes the first document of each document's cluster."""
    paths = context.by_part("sign", PAIRS) + context.by_partition("pairs", PAIRS)

    def pairs() -> Iterator[np.ndarray]:
        for path in paths:
            yield from keys.blocks(path, _PAIR, _ROWS)

    found = clusters(int(context.offsets[-1]), pairs())
    with as_path(base + CLUSTERS).open("wb") as file:
        for i in range(0, len(found), 1 << 20):
            file.write(found[i : i + (1 << 20)].astype("<u8").tobytes())


def first_of_clusters(context: DedupContext, number: int) -> np.ndarray:
    """Reads [documents] uint64: the first document of the cluster of each of a part's."""
    first, last = (int(i) for i in context.offsets[number : number + 2])
    with as_path(f"{context.work}/cluster/clusters{CLUSTERS}").open("rb") as file:
        file.seek(8 * first)
        return np.frombuffer(file.read(8 * (last - first)), "<u8")
