"""Hashes of words and n-grams of a text, all at once in numpy, the same on every machine."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from typing import Any

import numpy as np

_SEPARATOR, _WORD, _ALONE = 0, 1, 2
_LAST = 0x110000
# Characters hashed at once; of a longer word than _LONGEST the rest does not count.
_BLOCK, _LONGEST = 1 << 16, 256
# Odd, so that multiplication modulo 2**64 can be undone.
_BASE = 0x9E3779B97F4A7C15
_ORDER = 0xD1342543DE82EF95
# Scripts without spaces between words: each character stands alone. Kana, Han, Bopomofo; Thai, Lao,
# Myanmar and Khmer.
_ALONE_RANGES = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3041, 0x312F), (0x31A0, 0x31BF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),
)


@functools.cache
def _classes() -> np.ndarray:
    """Returns [code points] uint8: separator, part of a word, or a word of its own."""
    classes = np.zeros(_LAST, np.uint8)
    for point in range(0x30000):
        # Letters, digits and the marks that belong to letters.
        if unicodedata.category(chr(point))[0] in "LNM":
            classes[point] = _WORD
    for first, last in _ALONE_RANGES:
        inside = classes[first : last + 1]
        inside[inside == _WORD] = _ALONE
    classes[0x30000:0x40000] = _ALONE
    return classes


def mix(values: np.ndarray) -> np.ndarray:
    """Maps [...] uint64 one to one; each output bit depends on all input bits (splitmix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Returns powers of the base and of its inverse modulo 2**64, one a character of a block."""
    up = np.full(_BLOCK + _LONGEST, _BASE, np.uint64)
    down = np.full(_BLOCK + _LONGEST, pow(_BASE, -1, 1 << 64), np.uint64)
    up[0] = down[0] = 1
    return np.cumprod(up, dtype=np.uint64), np.cumprod(down, dtype=np.uint64)


@functools.cache
def _mixed() -> np.ndarray:
    """Returns [code points] uint64, a hash of each."""
    return mix(np.arange(_LAST, dtype=np.uint64))


def words(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes the words of a text in lower case, without punctuation and white space.

    A word is a run of letters and digits; a character of Chinese, Japanese or another script
    without spaces is a word of its own.

    Returns:
      hashes [words] uint64; starts and ends [words] int64, in characters of ``text.lower()``.
    """
    lowered = text.lower()
    points = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _classes()[points]
    before = np.concatenate(([np.uint8(_SEPARATOR)], classes[:-1]))
    begins = (classes == _ALONE) | ((classes == _WORD) & (before != _WORD))
    starts = np.flatnonzero(begins)
    if not len(starts):
        empty = np.empty(0, np.int64)
        return np.empty(0, np.uint64), empty, empty
    after = np.concatenate((classes[1:], [np.uint8(_SEPARATOR)]))
    stops = (classes == _ALONE) | ((classes == _WORD) & (after != _WORD))
    ends = np.flatnonzero(stops) + 1
    # Polynomial of the characters' hashes: that of a word is a difference of prefixes, shifted.
    up, down = _powers()
    hashes = np.empty(len(starts), np.uint64)
    for begin in range(0, len(points), _BLOCK):
        some = slice(*np.searchsorted(starts, (begin, begin + _BLOCK)))
        first = starts[some] - begin
        last = np.minimum(ends[some] - begin, first + _LONGEST)
        block = _mixed()[points[begin : begin + _BLOCK + _LONGEST]]
        prefix = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * up[: len(block)], out=prefix[1:])
        hashes[some] = (prefix[last] - prefix[first]) * down[first]
    return mix(hashes), starts, ends


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes the n-grams of words [words] uint64 to [words - n + 1]; fewer words are one n-gram.

    Returns none for no words.
    """
    n = min(n, len(hashes))
    if not n:
        return hashes
    total = np.zeros(len(hashes) - n + 1, np.uint64)
    for i in range(n):
        total = total * np.uint64(_ORDER) + hashes[i : len(hashes) - n + 1 + i]
    return mix(total)


def text_key(text: str) -> bytes:
    """Returns a hash of 16 bytes that ignores letter case, width and white space (NFKC)."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def random_words(count: int, seed: int) -> np.ndarray:
    """Returns [count] uint64 that depend on ``seed`` alone, on no version of a library."""
    numbers: Any = np.arange(count, dtype=np.uint64)
    return mix(mix(numbers + np.uint64(1)) + np.uint64(seed % (1 << 64)))
