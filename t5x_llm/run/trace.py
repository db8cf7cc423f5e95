"""Documents of a batch: the stream of a run, fresh or as its journal says it went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from t5x_llm.core.errors import ConfigError


class Opened(NamedTuple):
    """A run that is looked at: its config, its opened data, and its stream where it stands."""

    run: Any
    data: Any
    stream: Any


def opened(flags: Any, directory: str | None) -> Opened:
    """The run of gin flags, or of a run directory with its history and its skips.

    Raises:
      ConfigError: neither or both are given.
    """
    from t5x_llm.core.paths import as_path
    from t5x_llm.data.catalog import open_stores
    from t5x_llm.data.positions import DataState, merge_ranges
    from t5x_llm.run.config import load_run, load_saved
    from t5x_llm.run.data import open_run_stream
    from t5x_llm.train.journal import JOURNAL, decisions, read_journal
    from t5x_llm.train.recovery import mixture_history

    if directory is None:
        run = load_run(flags)[0]
        data = open_stores(run.data)
        stream = open_run_stream(run, data)
        return Opened(run, data, stream.at(DataState(skips=merge_ranges(run.loop.skips))))
    if flags.gin_files or flags.bindings:
        expected = "no gin flags beside it: a run directory has its own configuration"
        raise ConfigError("run directory", directory, expected)
    run = load_saved(directory)[0]
    data = open_stores(run.data)
    lines = read_journal(as_path(directory) / JOURNAL)
    skips = merge_ranges([*run.loop.skips, *(d.skip for d in decisions(lines))])
    state = DataState(history=mixture_history(lines), skips=skips)
    return Opened(run, data, open_run_stream(run, data).at(state))


def trace(found: Opened, first: int, rows: Sequence[int], chars: int) -> Iterator[dict[str, Any]]:
    """What each row of a batch holds.

    Args:
      found: the run.
      first: examples before the batch.
      rows: of the batch.
      chars: of text shown of each piece.
    """
    for row in rows:
        pieces = found.stream.documents(first + row)
        source = pieces[0].source if pieces else ""
        yield {
            "row": row,
            "example": first + row,
            "stream_position": found.stream.stream_position(first + row),
            "source": source,
            "pieces": [_piece(found, piece, chars) for piece in pieces],
        }


def _piece(found: Opened, piece: Any, chars: int) -> dict[str, Any]:
    split = found.data.stores[piece.source].train
    tokens = split.document(piece.document)
    shown = tokens[piece.start : min(piece.stop, piece.start + 4 * chars)]
    text = " ".join(found.data.tokenizer.decode(shown.tolist()).split())
    return {
        "file": piece.provenance.file,
        "line": piece.provenance.line,
        "column": piece.column,
        "tokens": [piece.start, piece.stop],
        "of": len(tokens),
        "epoch": piece.epoch,
        "text": text if len(text) <= chars else text[: max(chars - 3, 0)] + "...",
    }
