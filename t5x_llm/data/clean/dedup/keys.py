"""Equal keys in files of many parts, found partition by partition, so that memory is bounded.

A part's file holds its keys sorted, with an index, so that any task can read those of one range. Of
a key that a part has many times only the first ones are in its file: what follows is known to
repeat without looking elsewhere, and no key, however frequent, can fill a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from t5x_llm.core.paths import as_path

# 128 bits of a key, and what has it: the number of a document or of a line in the part.
STORED = np.dtype([("high", "<u8"), ("low", "<u8"), ("unit", "<u4")])
LOADED = np.dtype([("high", "<u8"), ("low", "<u8"), ("part", "<u4"), ("unit", "<u4")])
# A unit that repeats, and where its key is first: the number of the part, the unit in it.
REPEAT = np.dtype([("unit", "<u4"), ("part", "<u4"), ("first", "<u4")])
# Of the index; there are at most as many partitions.
PREFIXES = 1024
_INDEX = PREFIXES + 1


def from_digests(digests: bytes | bytearray, units: np.ndarray) -> np.ndarray:
    """Returns [n] STORED of n digests of 16 bytes and their units [n]."""
    halves = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
    keys = np.empty(len(units), STORED)
    keys["high"], keys["low"], keys["unit"] = halves[:, 0], halves[:, 1], units
    return keys


def sort(keys: np.ndarray) -> np.ndarray:
    """Returns keys [n] in the order of their bits, then of the documents."""
    fields = ["unit", *(["part"] if "part" in (keys.dtype.names or ()) else []), "low", "high"]
    return keys[np.lexsort([keys[name] for name in fields])]


def group_starts(keys: np.ndarray) -> np.ndarray:
    """Returns [n] int64: the start of the run of equal keys of each of sorted keys [n]."""
    high, low = keys["high"], keys["low"]
    begins = np.ones(len(keys), bool)
    begins[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    at = np.flatnonzero(begins)
    return np.repeat(at, np.diff(np.append(at, len(keys))))


def beyond(keys: np.ndarray, copies: int) -> np.ndarray:
    """Returns [n] bool: True for each of sorted keys [n] behind ``copies`` equal ones."""
    return np.arange(len(keys)) - group_starts(keys) >= copies


def write(path: str, keys: np.ndarray) -> None:
    """Writes sorted STORED keys with their index."""
    prefixes = np.arange(PREFIXES, dtype=np.uint64) << np.uint64(64 - 10)
    index = np.append(np.searchsorted(keys["high"], prefixes), len(keys)).astype("<u8")
    path_ = as_path(path)
    path_.parent.mkdir(parents=True, exist_ok=True)
    with path_.open("wb") as file:
        file.write(index.tobytes())
        file.write(keys.tobytes())


def partitions(records: int, most_bytes: int) -> int:
    """Returns the number of partitions, a power of two, of at most ``most_bytes`` of keys."""
    count = 1
    while count < PREFIXES and records * LOADED.itemsize > count * most_bytes:
        count *= 2
    return count


def load(paths: Sequence[str], partition: int, count: int) -> np.ndarray:
    """Reads [n] LOADED: all parts' sorted keys of one of ``count`` partitions."""
    step = PREFIXES // count
    found = []
    for number, path in enumerate(paths):
        with as_path(path).open("rb") as file:
            file.seek(partition * step * 8)
            index = np.frombuffer(file.read((step + 1) * 8), "<u8")
            first, last = int(index[0]), int(index[-1])
            if first == last:
                continue
            file.seek(_INDEX * 8 + first * STORED.itemsize)
            stored = np.frombuffer(file.read((last - first) * STORED.itemsize), STORED)
        keys = np.empty(len(stored), LOADED)
        for name in ("high", "low", "unit"):
            keys[name] = stored[name]
        keys["part"] = number
        found.append(keys)
    return sort(np.concatenate(found)) if found else np.empty(0, LOADED)


def write_repeats(path: str, keys: np.ndarray, copies: int, parts: int) -> None:
    """Writes, by part, the sorted LOADED keys that come after ``copies`` equal ones."""
    firsts, late = keys[group_starts(keys)], beyond(keys, copies)
    firsts, keys = firsts[late], keys[late]
    order = np.lexsort((keys["unit"], keys["part"]))
    index = np.searchsorted(keys["part"][order], np.arange(parts + 1)).astype("<u8")
    found = np.empty(len(keys), REPEAT)
    found["unit"], found["part"], found["first"] = keys["unit"], firsts["part"], firsts["unit"]
    with as_path(path).open("wb") as file:
        file.write(index.tobytes())
        file.write(found[order].tobytes())


def read_repeats(path: str, part: int, parts: int) -> np.ndarray:
    """Reads a part's repeats, [n] REPEAT."""
    with as_path(path).open("rb") as file:
        file.seek(part * 8)
        first, last = (int(i) for i in np.frombuffer(file.read(16), "<u8"))
        file.seek((parts + 1) * 8 + first * REPEAT.itemsize)
        return np.frombuffer(file.read((last - first) * REPEAT.itemsize), REPEAT)


# Pairs [n, 2] of places among the keys -> bool [n], True for pairs that are alike.
Alike = Callable[[np.ndarray], np.ndarray]
_ROUNDS = 16


def stars(keys: np.ndarray, alike: Alike | None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs the first of equal keys with each of the others.

    With ``alike``, keys that are not like the first are looked at again among themselves.

    Args:
      keys: [n], sorted.
      alike: the check; None trusts the key.

    Returns:
      [m, 2] places of pairs; [k] places of those that were a first, in order.
    """
    places = np.arange(len(keys))
    starts = group_starts(keys)
    pairs, firsts = [], []
    for _ in range(_ROUNDS):
        begins = np.ones(len(places), bool)
        begins[1:] = starts[places[1:]] != starts[places[:-1]]
        at = np.flatnonzero(begins)
        hubs = np.repeat(places[at], np.diff(np.append(at, len(places))))
        firsts.append(places[at])
        edges = np.stack([hubs, places], 1)[~begins]
        if alike is None or not len(edges):
            pairs.append(edges)
            break
        same = alike(edges)
        pairs.append(edges[same])
        places = edges[~same, 1]
        if not len(places):
            break
    return np.concatenate(pairs), np.sort(np.concatenate(firsts))


def blocks(path: str, dtype: np.dtype, rows: int) -> Iterator[np.ndarray]:
    """Yields the records of a plain file, ``rows`` at a time."""
    with as_path(path).open("rb") as file:
        while data := file.read(rows * dtype.itemsize):
            yield np.frombuffer(data, dtype)
