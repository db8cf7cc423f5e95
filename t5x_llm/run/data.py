"""Prepared data of a run: its stores, its training stream and its held-out documents."""

from __future__ import annotations

import dataclasses

from t5x_llm.data.catalog import Opened, open_stores, open_stream, read_catalog
from t5x_llm.data.data_plan import data_plan
from t5x_llm.data.sources import Data
from t5x_llm.data.stream import Stream
from t5x_llm.evaluate.perplexity import HeldOut
from t5x_llm.run.config import Run
from t5x_llm.run.reading import ReadSchedule, read_schedule


@dataclasses.dataclass(frozen=True)
class OpenData:
    """Data of a run, opened for training.

    Attributes:
      opened: the stores and the tokenizer.
      stream: the training rows.
    """

    opened: Opened
    stream: Stream


def held_out(opened: Opened) -> list[HeldOut]:
    """Returns the held-out documents of every source that has any."""
    return [
        HeldOut(
            name,
            store.validation,
            opened.languages[name],
            store.validation.measured if store.coded else None,
        )
        for name, store in opened.stores.items()
        if len(store.validation)
    ]


def open_data(run: Run) -> OpenData:
    """Opens the prepared stores, and the stream over them.

    Raises:
      ConfigError: the run asks for more than its budgets or ``Mixture.max_epochs`` allow.
      DataError: they were not prepared, or for another configuration.
    """
    opened = open_stores(run.data)
    return OpenData(opened, open_run_stream(run, opened))


def open_run_stream(run: Run, opened: Opened, read: ReadSchedule | None = None) -> Stream:
    """Opens the stream of a run and checks its data plan; see ``open_data``.

    Args:
      run: the configuration.
      opened: its data.
      read: the schedule of its steps; that of its directory if None.
    """
    loop, read = run.loop, read or read_schedule(run)
    stream = open_stream(run.data, opened, loop.sequence_length, loop.seed, read.examples_after)
    mixture = run.data.mixture
    data_plan(stream, read.examples_after(loop.steps)).check(
        mixture.max_epochs if mixture else None
    )
    return stream


def planned_source_names(data: Data) -> tuple[str, ...]:
    """Returns the names of a run's sources, in the order in which batches count them.

    For a seqio mixture that is not prepared yet, seqio is asked for them.
    """
    if data.mixture is not None:
        return tuple(source.name for source in data.mixture.sources)
    if (catalog := read_catalog(data)) is not None:
        return tuple(source["name"] for source in catalog["sources"])
    from t5x_llm.data.tasks import planned_sources

    return planned_sources(data)
