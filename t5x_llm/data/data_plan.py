"""The data plan: how much a run will read of each source, as figures and as a printable tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.units import short
from t5x_llm.data.stream import Stream

# Up to 4 times, repeated text is worth nearly what new text is (arXiv 2305.16264).
EPOCHS = 4.0
_FILLED = 0.9
_SLACK = 1e-3  # of the rows; budgets and batches are rounded


@dataclasses.dataclass(frozen=True)
class SourceBudget:
    """Budget of one source in a run, and how much of the source the run reads.

    Attributes:
      share: share of the run's rows; without a run, share in the last mixture.
      rows: rows that the run reads.
      tokens: tokens that the run reads; an estimate, exact after whole epochs.
      epochs: number of times that the part of the source that is read is read.
      repeats: tokens among ``tokens`` that were read before.
      budget: tokens that the run may read; None without a budget.
      stored: tokens of the store's training split.
      documents: documents of the store's training split.
      epoch_rows: rows of one epoch.
      filled: share of the places of these rows that hold a token.
      trained: share of a store's tokens that are trained, of conversations; None of texts, which
        are trained in whole.
    """

    share: float
    rows: int
    tokens: int
    epochs: float
    repeats: int
    budget: int | None
    stored: int
    documents: int
    epoch_rows: int
    filled: float
    trained: float | None = None


@dataclasses.dataclass(frozen=True)
class DataPlan:
    """Data plan of a run: budget of each source, schedule of the mixture, warnings.

    Attributes:
      examples: rows of the run; None if it is not known.
      length: T.
      options: packing and number of bins, in words.
      sources: budget of each source, by name.
      schedule: (row of the run, {source: share} for shares above 0, reason why it begins there) of
        each mixture, ascending.
      exhausted: sources that the run reads beyond their budgets, as no other source is left.
      step_at: rows -> step, for ``schedule``; None if it is not known.
    """

    examples: int | None
    length: int
    options: str
    sources: Mapping[str, SourceBudget]
    schedule: tuple[tuple[int, Mapping[str, float], str], ...]
    exhausted: tuple[str, ...]
    step_at: Callable[[int], int] | None = None

    def warnings(self) -> list[str]:
        """Returns a line for each figure that is probably a mistake; none if the run is unknown."""
        found = []
        for name, source in self.sources.items():
            budget = source.budget
            if not source.rows:
                found.append(f"{name} is not read")
            elif budget is not None and source.tokens < budget * (1 - _SLACK):
                found.append(
                    f"{name} reads {short(source.tokens)} of its budget of {short(budget)} tokens"
                )
            if source.epochs > EPOCHS:
                found.append(
                    f"{name} is read {source.epochs:.1f} times; beyond {EPOCHS:g} times, repeated "
                    "text is worth little (arXiv 2305.16264)"
                )
            if source.filled < _FILLED:
                found.append(
                    f"{name} leaves {1 - source.filled:.0%} of its rows empty: short documents to "
                    "fit behind long ones are missing"
                )
        return found if self.examples is not None else []

    def check(self, max_epochs: float | None = None) -> None:
        """Checks that the budgets last for the run and that no source is read too often.

        Args:
          max_epochs: number of times a source may be read; None for no limit.

        Raises:
          ConfigError: budgets end before the run does, or a source is read more than
            ``max_epochs`` times.
        """
        if self.exhausted:
            budgets = {n: s.budget for n, s in self.sources.items() if s.budget is not None}
            raise ConfigError(
                "Source.tokens", {n: short(b) for n, b in budgets.items()},
                f"budgets for a run of {short((self.examples or 0) * self.length)} tokens: "
                f"{', '.join(self.exhausted)} would be read beyond, as no other source is left",
                "Raise the budgets, give a source without one a rate, set Source.exhausted = "
                "'repeat', or lower Loop.steps.",
            )  # fmt: skip
        for name, source in self.sources.items():
            if max_epochs is not None and source.epochs > max_epochs * (1 + _SLACK):
                raise ConfigError(
                    "Mixture.max_epochs", max_epochs,
                    f"at least {source.epochs:.2f}, as often as {name!r} is read",
                    f"Lower its rate, give it a budget (Source.epochs = {max_epochs:g}), lower "
                    "Loop.steps, or prepare more text.",
                )  # fmt: skip

    def __str__(self) -> str:
        """Returns a line for each source, the schedule of the mixture, and warnings."""
        title = f"data plan: {len(self.sources)} source{'s'[: len(self.sources) != 1]}"
        if self.examples is not None:
            title += f", {self.examples:,} rows, {short(self.examples * self.length)} places"
        lines = [f"{title}, rows of {self.length} tokens, {self.options}"]
        lines += _branches(self._table())
        if len(self.schedule) > 1:
            lines += ["schedule:", *_branches([self._stage(*entry) for entry in self.schedule])]
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings())])

    def _table(self) -> list[str]:
        known = self.examples is not None
        head = ["source", "share"]
        head += ["tokens", "epochs", "repeats"] if known else []
        head += ["budget", "stored", "documents", "rows", "filled"]
        talks = any(s.trained is not None for s in self.sources.values())
        head += ["trained"] if talks else []
        table = [head]
        for name, s in self.sources.items():
            line = [name, f"{s.share:.2%}"]
            line += [short(s.tokens), f"{s.epochs:.2f}", short(s.repeats)] if known else []
            line += ["-" if s.budget is None else short(s.budget), short(s.stored)]
            line += [f"{s.documents:,}", f"{s.epoch_rows:,}", f"{s.filled:.1%}"]
            table.append([*line, f"{1 if s.trained is None else s.trained:.1%}"][: len(head)])
        if known and len(self.sources) > 1:
            tokens, repeats = (
                sum(getattr(s, k) for s in self.sources.values()) for k in ("tokens", "repeats")
            )
            table.append(["in all", "", short(tokens), "", short(repeats), *[""] * (len(head) - 5)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]

    def _stage(self, row: int, weights: Mapping[str, float], why: str) -> str:
        step = f"step {self.step_at(row):,}, " if self.step_at is not None else ""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in weights.items())
        place = f"from {step}row {row:,} ({short(row * self.length)} tokens)"
        return f"{place}: {shares}" + (f"  ({why})" if why else "")


def data_plan(
    stream: Stream, examples: int | None, step_at: Callable[[int], int] | None = None
) -> DataPlan:
    """Returns how much a run of ``examples`` rows reads of each source of a stream.

    Args:
      stream: stream with the mixtures of the run.
      examples: rows of the run; None for the stream alone.
      step_at: rows -> step.
    """
    consumed = stream.consumed(examples or 0)
    sources, exhausted = {}, []
    for name, reader in stream.readers.items():
        rows, epochs = consumed[name].examples, consumed[name].epochs
        limit = stream.blend.budgets.get(name)
        budget = None if limit is None else round(limit * reader.tokens)
        if reader.order.tokens is not None or reader.order.epochs is not None:
            budget = round(reader.rows * reader.tokens)
        elif limit is not None and rows > limit + _SLACK * (examples or 0) + 1:
            exhausted.append(name)
        again = max(rows - reader.rows, 0)
        sources[name] = SourceBudget(
            share=rows / examples if examples else stream.weights[name],
            rows=rows,
            tokens=consumed[name].tokens,
            epochs=epochs,
            repeats=round(again * reader.tokens),
            budget=budget,
            stored=reader.split.tokens,
            documents=len(reader.split),
            epoch_rows=reader.rows,
            filled=reader.efficiency,
            trained=reader.split.trained,
        )
    bins = max((reader.order.bins for reader in stream.readers.values()), default=1)
    return DataPlan(
        examples=examples,
        length=stream.length,
        options=stream.packing + (f", {bins} bins" if bins > 1 else ""),
        sources=sources,
        schedule=_schedule(stream, examples),
        exhausted=tuple(exhausted),
        step_at=step_at,
    )


def data_tree(stream: Stream, examples: int | None = None) -> str:
    """Returns the mixture of a stream as a printable tree.

    Args:
      stream: stream with the mixtures of the run.
      examples: rows of the run whose reading is shown as well; None for the mixture alone.
    """
    return str(data_plan(stream, examples))


def _schedule(
    stream: Stream, examples: int | None
) -> tuple[tuple[int, Mapping[str, float], str], ...]:
    planned = {start for start, _ in stream.blend.stages}
    found = []
    for i, (start, weights) in enumerate(stream.history):
        row = start - sum(max(min(stop, start) - first, 0) for first, stop in stream.skips)
        if examples is not None and row >= examples:
            break
        total = sum(weights.values())
        shares = {name: weight / total for name, weight in weights.items() if weight > 0}
        why = ""
        if i and start not in planned:
            before = stream.history[i - 1][1]
            gone = [n for n in stream.blend.budgets if before.get(n, 0) > 0 and n not in shares]
            why = f"{', '.join(gone)} used up" if gone else ""
        found.append((row, shares, why))
    return tuple(found)


def _branches(lines: list[str]) -> list[str]:
    return [f"{'└─' if i == len(lines) - 1 else '├─'} {line}" for i, line in enumerate(lines)]
