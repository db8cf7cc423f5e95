"""Configuration of deduplication: exact, near and long repeats."""

from __future__ import annotations

import dataclasses
import functools
import math

from t5x_llm.core.errors import ConfigError, check_choice, check_count, check_number

# Standard errors below the threshold that an estimate may lie, and how often it lies above that.
_ERRORS = 2.5
_VERIFIED = (1 + math.erf(_ERRORS / 2**0.5)) / 2
REPEAT_UNITS = ("line", "paragraph")


@dataclasses.dataclass(frozen=True)
class MinHash:
    """Near duplicates by MinHash and locality-sensitive hashing (Broder 1997).

    Two documents of Jaccard similarity s, over their n-grams, meet in one of b bands of r hashes
    with probability 1 - (1 - s**r)**b; what meets is a cluster, of which the first document stays.

    Attributes:
      threshold: Jaccard similarity from which on duplicates are to be found.
      recall: share of the pairs at ``threshold`` that is found; bands and rows are chosen for it.
      hashes: a document, at most.
      bands, rows: given both, they are taken instead.
      ngram: words of English, characters of Chinese in one shingle.
      verify: also ask that the signatures agree in a share of at least ``threshold`` less 2.5
        standard errors: fewer strangers in a cluster. ``recall`` is with it.
      seed: of the hash functions.
    """

    threshold: float = 0.8
    recall: float = 0.95
    hashes: int = 128
    bands: int = 0
    rows: int = 0
    ngram: int = 5
    verify: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        check_number("MinHash.threshold", self.threshold, above=0, high=1)
        check_number("MinHash.recall", self.recall, above=0)
        if self.recall >= 1:
            raise ConfigError("MinHash.recall", self.recall, "below 1", "Give 0.99, for instance.")
        check_number("MinHash.hashes", self.hashes, low=1, high=4096, integer=True)
        check_number("MinHash.bands", self.bands, low=0, high=4096, integer=True)
        check_number("MinHash.rows", self.rows, low=0, high=64, integer=True)
        check_number("MinHash.ngram", self.ngram, low=1, high=64, integer=True)
        check_number("MinHash.seed", self.seed, low=0, integer=True)
        if bool(self.bands) != bool(self.rows):
            raise ConfigError(
                "MinHash.bands", self.bands, f"both or neither, with MinHash.rows = {self.rows}"
            )
        self.shape  # noqa: B018  a recall that cannot be had is found now

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """(bands, rows) with the most rows whose bands reach ``recall`` within ``hashes``."""
        if self.bands:
            return self.bands, self.rows
        wanted = self.recall / _VERIFIED if self.verify else self.recall
        for rows in range(min(self.hashes, 64) if wanted < 1 else 0, 0, -1):
            met = self.threshold**rows
            bands = math.ceil(math.log1p(-wanted) / math.log1p(-met)) if met < 1 else 1
            if bands * rows <= self.hashes:
                return bands, rows
        raise ConfigError(
            "MinHash.hashes",
            self.hashes,
            f"enough for recall {self.recall:g} at similarity {self.threshold:g}",
            "Raise it, or ask for less recall.",
        )

    def found(self, similarity: float) -> float:
        """Returns the probability that a pair of this similarity is found."""
        bands, rows = self.shape
        met = 1 - (1 - similarity**rows) ** bands
        if not self.verify:
            return met
        error = max(1e-12, (similarity * (1 - similarity) / (bands * rows)) ** 0.5)
        return met * (1 + math.erf((similarity - self.least_agreement) / error / 2**0.5)) / 2

    @property
    def least_agreement(self) -> float:
        """The share of a signature that ``verify`` asks to be equal."""
        bands, rows = self.shape
        return (
            self.threshold
            - _ERRORS * (self.threshold * (1 - self.threshold) / (bands * rows)) ** 0.5
        )


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Lines or paragraphs that an earlier document, or the same one, has already.

    Attributes:
      unit: ``line``, or ``paragraph`` (blank lines between).
      shortest: characters; shorter ones are not looked at.
      copies: number of copies that stay.
    """

    unit: str = "paragraph"
    shortest: int = 40
    copies: int = 1

    def __post_init__(self) -> None:
        check_choice("Repeats.unit", self.unit, REPEAT_UNITS)
        check_number("Repeats.shortest", self.shortest, low=1, integer=True)
        check_number("Repeats.copies", self.copies, low=1, integer=True)


@dataclasses.dataclass(frozen=True)
class Suffix:
    """Long repeats wherever they begin, by a suffix array (Lee et al. 2022, arXiv 2107.06499).

    The first of two stays. Repeats are looked for within windows of the output in its order: memory
    is up to forty times a window.

    Attributes:
      length: bytes of a repeat, at least.
      window_bytes: of a window.
    """

    length: int = 300
    window_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        check_number("Suffix.length", self.length, low=8, integer=True)
        check_number("Suffix.window_bytes", self.window_bytes, low=1024, high=1 << 30, integer=True)


@dataclasses.dataclass(frozen=True)
class Dedup:
    """Deduplication of all inputs together.

    Attributes:
      documents: equal documents, letter case and white space aside.
      minhash: near duplicates; None leaves them.
      repeats: lines or paragraphs; None leaves them.
      suffix: long repeats; None leaves them.
      partition_bytes: of the keys that one job holds in memory.
    """

    documents: bool = True
    minhash: MinHash | None = dataclasses.field(default_factory=MinHash)
    repeats: Repeats | None = None
    suffix: Suffix | None = None
    partition_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        check_count("Dedup.partition_bytes", self.partition_bytes, low=1024)
        if not (self.documents or self.minhash or self.repeats or self.suffix):
            raise ConfigError(
                "Dedup.documents", False, "something to look for",
                "Leave Clean.dedup out to keep repeats.",
            )  # fmt: skip
