"""What a run eats of each source, as figures and as a printable tree, before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.units import short

if TYPE_CHECKING:
    from t5x_llm.data.stream import Stream

# Up to 4 times, repeated text is worth nearly what new text is (arXiv 2305.16264).
EPOCHS = 4.0
_FILLED = 0.9
_SLACK = 1e-3  # of the rows; budgets and batches are rounded


@dataclasses.dataclass(frozen=True)
class Serving:
    """One source in a run.

    Attributes:
      share: of the run's rows; without a run, of the last mixture.
      rows: read in the run.
      tokens: about as many, exact after whole epochs.
      epochs: how often what is read of the source is read.
      repeats: tokens among ``tokens`` that were read before.
      budget: tokens; None without one.
      stored: tokens to train on in the store.
      documents: with them.
      epoch_rows: rows of one epoch.
      filled: share of their places that hold a token.
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


@dataclasses.dataclass(frozen=True)
class Diet:
    """What ``Stream.diet`` and ``Stream.tree`` say.

    Attributes:
      examples: rows of the run; None if it is not known.
      length: T.
      manner: packing and bins, in words.
      servings: by source.
      course: (row of the run, {source: share} that are not 0, why it begins there).
      overdrawn: sources read beyond their budgets in the run, as nothing else was left.
      step_at: rows -> step, for ``course``; None if it is not known.
    """

    examples: int | None
    length: int
    manner: str
    servings: Mapping[str, Serving]
    course: tuple[tuple[int, Mapping[str, float], str], ...]
    overdrawn: tuple[str, ...]
    step_at: Callable[[int], int] | None = None

    def warnings(self) -> list[str]:
        """What may not be meant."""
        found = []
        for name, serving in self.servings.items():
            budget = serving.budget
            if not serving.rows:
                found.append(f"{name} is not read")
            elif budget is not None and serving.tokens < budget * (1 - _SLACK):
                found.append(
                    f"{name} reads {short(serving.tokens)} of its budget of {short(budget)} tokens"
                )
            if serving.epochs > EPOCHS:
                found.append(
                    f"{name} is read {serving.epochs:.1f} times; beyond {EPOCHS:g} times, repeated "
                    "text is worth little (arXiv 2305.16264)"
                )
            if serving.filled < _FILLED:
                found.append(
                    f"{name} leaves {1 - serving.filled:.0%} of its rows empty: short documents to "
                    "fit behind long ones are missing"
                )
        return found if self.examples is not None else []

    def check(self, max_epochs: float | None = None) -> None:
        """Raises ConfigError if budgets end before the run does, or a source is read too often."""
        if self.overdrawn:
            budgets = {n: s.budget for n, s in self.servings.items() if s.budget is not None}
            raise ConfigError(
                "Source.tokens", {n: short(b) for n, b in budgets.items()},
                f"budgets for a run of {short((self.examples or 0) * self.length)} tokens: "
                f"{', '.join(self.overdrawn)} would be read beyond, as no other source is left",
                "Raise the budgets, give a source without one a rate, set Source.exhausted = "
                "'repeat', or lower Loop.steps.",
            )  # fmt: skip
        for name, serving in self.servings.items():
            if max_epochs is not None and serving.epochs > max_epochs * (1 + _SLACK):
                raise ConfigError(
                    "Mixture.max_epochs", max_epochs,
                    f"at least {serving.epochs:.2f}, as often as {name!r} is read",
                    f"Lower its rate, give it a budget (Source.epochs = {max_epochs:g}), lower "
                    "Loop.steps, or prepare more text.",
                )  # fmt: skip

    def __str__(self) -> str:
        """A line a source, the course of the mixture, warnings."""
        title = f"diet: {len(self.servings)} source{'s'[: len(self.servings) != 1]}"
        if self.examples is not None:
            title += f", {self.examples:,} rows, {short(self.examples * self.length)} places"
        lines = [f"{title}, rows of {self.length} tokens, {self.manner}"]
        lines += _branches(self._table())
        if len(self.course) > 1:
            lines += ["course:", *_branches([self._stage(*entry) for entry in self.course])]
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings())])

    def _table(self) -> list[str]:
        known = self.examples is not None
        head = ["source", "share"]
        head += ["tokens", "epochs", "repeats"] if known else []
        head += ["budget", "stored", "documents", "rows", "filled"]
        table = [head]
        for name, s in self.servings.items():
            line = [name, f"{s.share:.2%}"]
            line += [short(s.tokens), f"{s.epochs:.2f}", short(s.repeats)] if known else []
            line += ["-" if s.budget is None else short(s.budget), short(s.stored)]
            table.append([*line, f"{s.documents:,}", f"{s.epoch_rows:,}", f"{s.filled:.1%}"])
        if known and len(self.servings) > 1:
            tokens, repeats = (
                sum(getattr(s, k) for s in self.servings.values()) for k in ("tokens", "repeats")
            )
            table.append(["in all", "", short(tokens), "", short(repeats), *[""] * 5])
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


def diet(stream: Stream, examples: int | None, step_at: Callable[[int], int] | None = None) -> Diet:
    """What a run of ``examples`` rows reads of each source of a stream.

    Args:
      stream: with the mixtures of the run.
      examples: of the run; None for the stream alone.
      step_at: rows -> step.
    """
    eaten = stream.consumed(examples or 0)
    servings, overdrawn = {}, []
    for name, reader in stream.readers.items():
        rows, epochs = eaten[name].examples, eaten[name].epochs
        limit = stream.blend.budgets.get(name)
        budget = None if limit is None else round(limit * reader.tokens)
        if reader.order.tokens is not None or reader.order.epochs is not None:
            budget = round(reader.rows * reader.tokens)
        elif limit is not None and rows > limit + _SLACK * (examples or 0) + 1:
            overdrawn.append(name)
        again = max(rows - reader.rows, 0)
        servings[name] = Serving(
            share=rows / examples if examples else stream.weights[name],
            rows=rows,
            tokens=eaten[name].tokens,
            epochs=epochs,
            repeats=round(again * reader.tokens),
            budget=budget,
            stored=reader.split.tokens,
            documents=len(reader.split),
            epoch_rows=reader.rows,
            filled=reader.efficiency,
        )
    bins = max((reader.order.bins for reader in stream.readers.values()), default=1)
    return Diet(
        examples=examples,
        length=stream.length,
        manner=stream.packing + (f", {bins} bins" if bins > 1 else ""),
        servings=servings,
        course=_course(stream, examples),
        overdrawn=tuple(overdrawn),
        step_at=step_at,
    )


def _course(
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
