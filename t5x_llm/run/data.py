"""Prepared data of a run: its stores, its training stream and its held-out documents."""

from __future__ import annotations

import dataclasses

from t5x_llm.data.catalog import Opened, open_stores, open_stream
from t5x_llm.data.stream import Stream
from t5x_llm.evaluate.perplexity import HeldOut
from t5x_llm.run.config import Run


@dataclasses.dataclass(frozen=True)
class OpenData:
    """What training reads.

    Attributes:
      opened: stores and tokenizer.
      stream: the training rows.
    """

    opened: Opened
    stream: Stream


def held_out(opened: Opened) -> list[HeldOut]:
    """The held-out documents of every source that has any."""
    return [
        HeldOut(name, store.validation, opened.languages[name])
        for name, store in opened.stores.items()
        if len(store.validation)
    ]


def open_data(run: Run) -> OpenData:
    """Prepared stores and the stream over them.

    Raises:
      ConfigError: if the run asks for more than its budgets or ``Mixture.max_epochs`` allow.
      DataError: if they were not prepared, or for another configuration.
    """
    opened = open_stores(run.data)
    return OpenData(opened, open_run_stream(run, opened))


def open_run_stream(run: Run, opened: Opened) -> Stream:
    """The stream of a run, its diet checked; see ``open_data``."""
    loop = run.loop
    stream = open_stream(run.data, opened, loop.sequence_length, loop.seed, loop.examples_after)
    mixture = run.data.mixture
    stream.diet(loop.examples).check(mixture.max_epochs if mixture else None)
    return stream
