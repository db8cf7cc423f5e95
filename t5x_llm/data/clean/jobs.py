"""Tasks of reading and cleaning, which are pure functions of their files."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.core.errors import DataError
from t5x_llm.core.filesystems import open_input
from t5x_llm.data.clean.clean_config import Clean
from t5x_llm.data.clean.decontaminate import EvalSearch
from t5x_llm.data.clean.document import Drop
from t5x_llm.data.clean.parts import LineWriter, PartWriter
from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.clean.read.files import File
from t5x_llm.data.clean.read.formats import (
    check_head,
    format_of,
    is_cut,
    open_parquet,
    row_groups,
)
from t5x_llm.data.clean.read.records import Bad, read
from t5x_llm.data.clean.tally import FAILED, Chain, Tally
from t5x_llm.data.formats import Format, read_head
from t5x_llm.data.reading import scan
from t5x_llm.data.stretch import Stretch

QUARANTINE, REMOVED = ".quarantine.jsonl", ".removed.jsonl"
# A part holds this many shards' worth of text at most: an archive may expand to many parts.
_SHARDS_A_PART = 4


@dataclasses.dataclass(frozen=True)
class CleanContext:
    """Context that the tasks of scanning and cleaning receive.

    Attributes:
      clean: the configuration.
      folder: directory of the parts that this phase writes.
    """

    clean: Clean
    folder: str

    @property
    def part_bytes(self) -> int:
        """Bytes of text in a part, approximately."""
        return _SHARDS_A_PART * self.clean.shard_bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard that one task cleans: stretches of files of one input, which has a number."""

    source: int
    stretches: tuple[Stretch, ...]
    names: tuple[str, ...]
    kinds: tuple[Format, ...]


def scan_files(
    context: CleanContext, argument: tuple[int, tuple[File, ...]], base: str
) -> list[dict[str, Any]]:
    """Scans files for their format, their hash, and the places where they can be cut.

    Returns:
      For each file its format, sha256 and cuts; or the reason why it is quarantined.
    """
    source = context.clean.inputs[argument[0]]
    found: list[dict[str, Any]] = []
    for file in argument[1]:
        try:
            with open_input(file.path) as opened:
                head, content = read_head(opened, file.path)
            if not head:
                raise QuarantineError("empty file")
            kind = format_of(source, file.path, content)
            check_head(head, kind)
            seen = scan(file.path, is_cut(source, kind), most=context.clean.shard_bytes)
            cuts = list(seen.cuts)
            if kind.name == "parquet":
                cuts = _row_cuts(file.path, context.clean.shard_bytes)
            found.append(
                {"kind": list(kind), "sha256": seen.sha256, "size": seen.size, "cuts": cuts}
            )
        except QuarantineError as e:
            found.append({"reason": e.reason, "detail": e.detail})
        except (OSError, DataError) as e:
            found.append(
                {"reason": "cannot be read", "detail": getattr(e, "strerror", None) or str(e)}
            )
    return found


def _row_cuts(path: str, most: int) -> list[tuple[int, int]]:
    """Returns cuts like those of ``scan``, between row groups."""
    with open_input(path) as raw:
        cuts = [(0, 1)]
        for group in row_groups(open_parquet(raw)):
            if group.offset - cuts[-1][0] >= most:
                cuts.append((group.offset, group.first))
    return cuts


# The chain of the last run whose tasks this process performed; models load once in a worker.
_OPENED: dict[str, tuple[Chain, EvalSearch | None]] = {}


def open_steps(clean: Clean) -> tuple[Chain, EvalSearch | None]:
    """Returns the steps and the search for evaluation sets, opened once in a process."""
    key = repr((clean.steps, clean.decontaminate))
    if key not in _OPENED:
        _OPENED.clear()
        search = clean.decontaminate.open() if clean.decontaminate else None
        _OPENED[key] = Chain(clean.steps, Tally()), search
    return _OPENED[key]


def clean_shard(context: CleanContext, shard: Shard, base: str) -> dict[str, Any]:
    """Reads and cleans a shard.

    Returns:
      ``parts`` written, ``tally``, number of documents ``quarantined``.
    """
    clean = context.clean
    source = clean.inputs[shard.source]
    chain, search = open_steps(clean)
    tally = chain.tally = Tally()
    name = base.rsplit("/", 1)[-1]
    writer = PartWriter(context.folder, name, clean.compression, context.part_bytes)
    bad = 0
    with LineWriter(base + QUARANTINE) as quarantine, LineWriter(base + REMOVED) as listed:
        for stretch, file, kind in zip(shard.stretches, shard.names, shard.kinds, strict=True):
            for found in read(source, clean.limits, stretch, file, kind):
                if isinstance(found, Bad):
                    tally.quarantined(found.reason, found.id, found.detail)
                    quarantine.write(id=found.id, reason=found.reason, detail=found.detail)
                    bad += 1
                    continue
                tally.read(found)
                answer = chain(found)
                if isinstance(answer, Drop):
                    if answer.reason == FAILED:
                        quarantine.write(id=found.id, reason=FAILED, detail=answer.detail)
                        bad += 1
                    continue
                if search is not None:
                    verdict = search(answer)
                    tally.answered("decontaminate", answer, verdict)
                    if isinstance(verdict, Drop):
                        listed.write(
                            id=found.id, step="decontaminate", reason=verdict.reason,
                            detail=verdict.detail,
                        )  # fmt: skip
                        continue
                writer.write(answer)
                if clean.dedup is None:
                    tally.kept(answer)
    return {
        "parts": [dataclasses.astuple(part) for part in writer.close()],
        "tally": tally.to_json(),
        "quarantined": bad,
    }
