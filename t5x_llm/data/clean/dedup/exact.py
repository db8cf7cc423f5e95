"""Equal documents, lines and paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from t5x_llm.core.paths import as_path
from t5x_llm.data.clean.dedup import keys
from t5x_llm.data.clean.dedup.context import DedupContext
from t5x_llm.data.clean.dedup.dedup_config import Repeats

KEYS, LOCAL, UNITS = ".keys", ".local", ".units"
_BREAK = {"line": re.compile(r"(\n)"), "paragraph": re.compile(r"(\n[^\S\n]*\n\s*)")}


def write_keys(digests: bytes | bytearray, units: np.ndarray, copies: int, base: str) -> int:
    """Writes a part's keys, and apart the units that repeat within the part.

    Args:
      digests: 16 bytes of each unit.
      units: [n] numbers of the units.
      copies: number of copies that stay.
      base: path without suffix.

    Returns:
      The number of keys that are left to be looked at.
    """
    found = keys.sort(keys.from_digests(digests, units))
    repeats = keys.beyond(found, copies)
    keys.write(base + KEYS, found[~repeats])
    local = np.stack([found["unit"], found["unit"][keys.group_starts(found)]], 1)[repeats]
    as_path(base + LOCAL).write_bytes(local[np.argsort(local[:, 0])].astype("<u4").tobytes())
    return int((~repeats).sum())


def find_repeats(context: DedupContext, argument: tuple[str, int, int], base: str) -> None:
    """Writes the units of all parts that have, in one partition, a key of earlier ones.

    Args:
      context: context of the run.
      argument: phase that wrote the keys, partition, number of copies that stay.
      base: path without suffix.
    """
    phase, partition, copies = argument
    here = base.rsplit("/", 2)[-2]
    paths = context.by_part(phase, KEYS)
    found = keys.load(paths, partition, context.partitions[here])
    keys.write_repeats(base + UNITS, found, copies, len(paths))


def repeated(context: DedupContext, number: int, keyed: str, phase: str) -> np.ndarray:
    """Returns [n] REPEAT: the units of a part that repeat others, and what each repeats.

    Args:
      context: context of the run.
      number: number of the part.
      keyed: phase that wrote the keys.
      phase: phase that looked for repeats.
    """
    raw = np.frombuffer(as_path(context.by_part(keyed, LOCAL)[number]).read_bytes(), "<u4")
    count = len(context.parts)
    found = [keys.read_repeats(path, number, count) for path in context.by_partition(phase, UNITS)]
    elsewhere = np.sort(np.concatenate([np.empty(0, keys.REPEAT), *found]), order="unit")
    local = np.empty(len(raw) // 2, keys.REPEAT)
    local["unit"], local["first"] = raw.reshape(-1, 2).T
    local["part"] = number
    if len(elsewhere):  # what is first here may repeat what is first elsewhere
        at = np.minimum(np.searchsorted(elsewhere["unit"], local["first"]), len(elsewhere) - 1)
        known = elsewhere["unit"][at] == local["first"]
        for name in ("part", "first"):
            local[name] = np.where(known, elsewhere[name][at], local[name])
    return np.sort(np.concatenate([local, elsewhere]), order="unit")


def pieces(text: str, repeats: Repeats) -> Iterator[tuple[str, bool]]:
    """Yields lines or paragraphs with the break after them, and whether each is looked at."""
    split = _BREAK[repeats.unit].split(text)
    for i in range(0, len(split), 2):
        end = split[i + 1] if i + 1 < len(split) else ""
        yield split[i] + end, len(split[i].strip()) >= repeats.shortest


def without(text: str, repeats: Repeats, first: int, drop: np.ndarray) -> tuple[str, int]:
    """Returns the text without the pieces to be dropped, and the next document's first number.

    Args:
      text: text of a document.
      repeats: unit of the pieces.
      first: number in the part of its first piece that is looked at.
      drop: [units] bool, of the part.

    Returns:
      The text; the number of the next document's first piece.
    """
    kept, unit = [], first
    for piece, counted in pieces(text, repeats):
        if not (counted and unit < len(drop) and drop[unit]):
            kept.append(piece)
        unit += counted
    return ("".join(kept).rstrip() if drop[first:unit].any() else text), unit
