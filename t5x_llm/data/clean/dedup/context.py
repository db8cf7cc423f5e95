"""Context of the tasks of deduplication: configuration, directories, names of files."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping

import numpy as np

from t5x_llm.core.paths import as_path
from t5x_llm.data.clean.clean_config import Clean
from t5x_llm.data.clean.dedup.dedup_config import Dedup, MinHash
from t5x_llm.data.clean.parts import CorpusPart


@dataclasses.dataclass(frozen=True)
class DedupContext:
    """Context that every task of deduplication receives.

    Attributes:
      clean: the configuration, its ``dedup`` not None.
      work: directory of the phases.
      folder: directory of the parts that a phase writes.
      source: directory of the parts that are read.
      listing: file that lists them.
      partitions: number of partitions of each phase.
    """

    clean: Clean
    work: str
    folder: str
    source: str
    listing: str
    partitions: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def dedup(self) -> Dedup:
        """The configuration of deduplication."""
        assert self.clean.dedup is not None
        return self.clean.dedup

    @property
    def minhash(self) -> MinHash:
        """The configuration of near copies."""
        assert self.dedup.minhash is not None
        return self.dedup.minhash

    @property
    def parts(self) -> tuple[CorpusPart, ...]:
        """The parts that are read, in the order of the inputs."""
        return _listed(self.listing)

    @property
    def offsets(self) -> np.ndarray:
        """[parts + 1] int64: number of the first document of each part."""
        return np.cumsum([0, *(part.documents for part in self.parts)], dtype=np.int64)

    def path(self, number: int) -> str:
        """Returns the path of a part."""
        return f"{self.source}/{self.parts[number].file}"

    def by_part(self, phase: str, suffix: str) -> list[str]:
        """Returns the paths of a phase's files, one a part."""
        return [f"{self.work}/{phase}/{stem(part)}{suffix}" for part in self.parts]

    def by_partition(self, phase: str, suffix: str) -> list[str]:
        """Returns the paths of a phase's files, one a partition."""
        return [f"{self.work}/{phase}/{i:04d}{suffix}" for i in range(self.partitions[phase])]


def stem(part: CorpusPart) -> str:
    """Returns the name of a part's files, without suffix."""
    return part.file.split(".")[0]


@functools.lru_cache(maxsize=4)
def _listed(listing: str) -> tuple[CorpusPart, ...]:
    found = json.loads(as_path(listing).read_text(encoding="utf-8"))
    return tuple(CorpusPart(*each) for each in found)
