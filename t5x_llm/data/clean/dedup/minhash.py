"""MinHash signatures and their bands (Broder 1997)."""

from __future__ import annotations

import functools

import numpy as np

from t5x_llm.data.clean.dedup.dedup_config import MinHash
from t5x_llm.data.clean.hashing import mix, ngrams, random_words, words

# Shingles hashed at once: rows of the product that fit the cache.
_BLOCK = 256


@functools.lru_cache(maxsize=4)
def _functions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns odd factors and summands [count] uint64 of multiply-add-shift (Dietzfelbinger)."""
    numbers = random_words(2 * count, seed)
    return numbers[:count] | np.uint64(1), numbers[count:]


def shingles(text: str, config: MinHash) -> np.ndarray:
    """Returns [n] uint64 hashes of the text's n-grams of words (characters of Chinese)."""
    return ngrams(words(text)[0], config.ngram)


def signature(grams: np.ndarray, config: MinHash) -> np.ndarray | None:
    """Returns the least value of each hash function, [bands * rows] uint32; None without any."""
    if not len(grams):
        return None
    bands, rows = config.shape
    factors, summands = _functions(bands * rows, config.seed)
    least = np.full(bands * rows, np.iinfo(np.uint32).max, np.uint32)
    for i in range(0, len(grams), _BLOCK):
        values = grams[i : i + _BLOCK, None] * factors
        values += summands
        values >>= np.uint64(32)
        np.minimum(least, values.min(0), out=least, casting="unsafe")
    return least


def band_keys(signatures: np.ndarray, config: MinHash) -> tuple[np.ndarray, np.ndarray]:
    """Returns 128 bits, two [documents, bands] uint64, of each band of signatures."""
    bands, rows = config.shape
    values = signatures.reshape(-1, bands, rows).astype(np.uint64)
    high = np.zeros(values.shape[:2], np.uint64) + np.arange(bands, dtype=np.uint64)
    low = high + np.uint64(bands)
    for i in range(rows):
        high, low = mix(high ^ values[..., i]), mix(low * np.uint64(3) + values[..., i])
    return high, low


def agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the share [n] of equal values in signatures [n, hashes]: a Jaccard estimate."""
    return (one == other).mean(1)
