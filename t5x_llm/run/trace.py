"""Traces the documents of a batch, in a fresh run or as the journal of a run records it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from t5x_llm.config import Flags
    from t5x_llm.data.catalog import Opened
    from t5x_llm.data.stream import DocumentSpan, Stream
    from t5x_llm.run.config import Run
    from t5x_llm.run.reading import ReadSchedule


class TracedRun(NamedTuple):
    """A run whose batches are traced.

    Attributes:
      run: its config.
      data: its stores and its tokenizer.
      stream: its rows, with its history of mixtures and its skips.
      directory: the run directory; "" for a run of gin flags, which begins.
      read: the schedule by which its steps were read.
    """

    run: Run
    data: Opened
    stream: Stream
    directory: str
    read: ReadSchedule


class TracedBatch(NamedTuple):
    """A batch that is traced.

    Attributes:
      data: the stores and the tokenizer of its run.
      stream: the rows as the run read them at that step.
      first: examples before the batch.
      size: its rows.
    """

    data: Opened
    stream: Stream
    first: int
    size: int


def opened(flags: Flags, directory: str | None) -> TracedRun:
    """Opens the run of gin flags, or of a run directory with its history and its skips.

    Raises:
      ConfigError: neither or both are given.
    """
    from t5x_llm.core.paths import as_path
    from t5x_llm.data.catalog import open_stores
    from t5x_llm.data.positions import DataState, merge_ranges
    from t5x_llm.run.config import load_run, load_saved
    from t5x_llm.run.data import open_run_stream
    from t5x_llm.run.reading import ReadSchedule, fresh, stretches
    from t5x_llm.train.journal import JOURNAL, decisions, read_journal
    from t5x_llm.train.recovery import mixture_history

    if directory is None:
        run = load_run(flags)[0]
        data = open_stores(run.data)
        stream = open_run_stream(run, data, fresh(run.loop)).at(
            DataState(skips=merge_ranges(run.loop.skips))
        )
        return TracedRun(run, data, stream, "", fresh(run.loop))
    if flags.gin_files or flags.bindings:
        expected = "no gin flags beside it: a run directory has its own configuration"
        raise ConfigError("run directory", directory, expected)
    run = load_saved(directory)[0]
    data = open_stores(run.data)
    lines = read_journal(as_path(directory) / JOURNAL)
    read = ReadSchedule(tuple(stretches(lines, run.loop)))
    # The skips that a fresh run began with hold, whatever is configured later.
    skips = merge_ranges([*read.stretches[0].loop.skips, *(d.skip for d in decisions(lines))])
    state = DataState(history=mixture_history(lines), skips=skips)
    return TracedRun(run, data, open_run_stream(run, data, read).at(state), directory, read)


def batch_of(found: TracedRun, step: int) -> TracedBatch:
    """Returns the batch of a step, counted from 1, as the process that trained it read it.

    Raises:
      DataError: it was read from other data than there is now.
    """
    from t5x_llm.run.data import open_run_stream

    then, run, stream = found.read.at(step), found.run, found.stream
    if (then.loop.seed, then.loop.sequence_length) != (run.loop.seed, run.loop.sequence_length):
        earlier = open_run_stream(dataclasses.replace(run, loop=then.loop), found.data, found.read)
        stream = earlier.at(stream.state())
    if then.stream not in ("", stream.fingerprint):
        raise DataError(
            f"Step {step} of {found.directory} was read from data that changed since: the files of "
            "a source, the tokenizer, or how Data reads them. Put them back, and run `t5x-llm "
            "prepare`, to trace it."
        )
    first = then.first_example(step)
    return TracedBatch(found.data, stream, first, then.loop.size_at(first))


def trace(found: TracedBatch, rows: Sequence[int], chars: int) -> Iterator[dict[str, Any]]:
    """Yields what each row of a batch holds, as JSON.

    Args:
      found: the batch.
      rows: indices of the rows within the batch.
      chars: length of the text shown of each span.
    """
    first = found.first
    for row in rows:
        spans = found.stream.documents(first + row)
        source = spans[0].source if spans else ""
        yield {
            "row": row,
            "example": first + row,
            "stream_position": found.stream.stream_position(first + row),
            "source": source,
            "pieces": [_span(found, span, chars) for span in spans],
        }


def _span(found: TracedBatch, span: DocumentSpan, chars: int) -> dict[str, Any]:
    split = found.data.stores[span.source].train
    tokens = split.document(span.document)
    shown = tokens[span.start : min(span.stop, span.start + 4 * chars)]
    text = " ".join(found.data.tokenizer.decode(shown.tolist()).split())
    weighed: dict[str, Any] = {}
    if split.coded:
        weights = split.document_weights(span.document)[span.start : span.stop]
        begins = (weights > 0) & (np.concatenate([[0], weights[:-1]]) == 0)
        weighed = {
            "trained": int(np.count_nonzero(weights)),
            "weight": round(float(weights.sum()), 6),
            "turns": int(np.count_nonzero(begins)),
        }
    return {
        "file": span.provenance.file,
        "line": span.provenance.line,
        "column": span.column,
        "tokens": [span.start, span.stop],
        "of": len(tokens),
        "epoch": span.epoch,
        **weighed,
        "text": text if len(text) <= chars else text[: max(chars - 3, 0)] + "...",
    }
