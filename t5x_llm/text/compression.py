"""Weighs what a larger vocabulary saves in tokens against what it costs in parameters.

Training a token takes work in proportion to the parameters outside the input table: those of the
body and of the head. A larger vocabulary makes fewer tokens of a text and each of them dearer, so

    cost(n) = tokens(n) / tokens(0) * (body + head(n)) / (body + head(0))

is the work of training on one character of the new text, beside that of the old vocabulary. It
falls, and then rises again; the smallest vocabulary within ``TOLERANCE`` of the least is advised.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from t5x_llm.core.errors import check_count, check_number
from t5x_llm.core.paths import as_path, write_atomic, write_json
from t5x_llm.text.grow import Additions
from t5x_llm.text.tokenizer import Tokenizer

TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Counts:
    """Texts as a tokenizer writes them.

    Attributes:
      documents, characters, bytes, tokens: in all.
    """

    documents: int
    characters: int
    bytes: int
    tokens: int

    def figures(self) -> dict[str, float]:
        """The counts, and characters and bytes of a token, tokens of a character and a document."""
        tokens, characters = max(self.tokens, 1), max(self.characters, 1)
        return dataclasses.asdict(self) | {
            "characters_per_token": self.characters / tokens,
            "bytes_per_token": self.bytes / tokens,
            "tokens_per_character": self.tokens / characters,
            "tokens_per_document": self.tokens / max(self.documents, 1),
        }


@dataclasses.dataclass(frozen=True)
class Body:
    """The model whose tables grow.

    Attributes:
      parameters: without input table and head.
      width: of a row.
      tied: whether table and head are one.
    """

    parameters: int
    width: int
    tied: bool

    def __post_init__(self) -> None:
        check_count("parameters", self.parameters, low=0)
        check_number("width", self.width, low=1, integer=True)

    def total(self, rows: int) -> int:
        """Parameters with so many rows."""
        return self.parameters + rows * self.width * (1 if self.tied else 2)

    def worked(self, rows: int) -> int:
        """Parameters that every token works with: all but the input table."""
        return self.parameters + rows * self.width


@dataclasses.dataclass(frozen=True)
class Size:
    """One number of new pieces.

    Attributes:
      added: pieces.
      vocabulary: tokens in all.
      new, old: held-out text of the new and of the old language; None where none is given.
      same: share of the old documents whose ids stay what they were.
      parameters: added to the model; None if it is not known.
      share: of those in the whole model.
      cost: of training on the new text, beside the old vocabulary; of tokens alone if the model is
        not known.
    """

    added: int
    vocabulary: int
    new: Counts
    old: Counts | None
    same: float | None
    parameters: int | None
    share: float | None
    cost: float


def count(texts: Sequence[str], ids: Iterable[Sequence[int]]) -> Counts:
    """Counts of texts and their ids."""
    return Counts(
        len(texts),
        sum(map(len, texts)),
        sum(len(text.encode()) for text in texts),
        sum(map(len, ids)),
    )


def doublings(most: int, first: int = 500) -> list[int]:
    """``first``, twice that, and so on, and ``most``."""
    sizes = []
    while first < most:
        sizes.append(first)
        first *= 2
    return [*sizes, most]


def compare(
    growth: Additions,
    sizes: Sequence[int],
    new: Sequence[str],
    old: Sequence[str] = (),
    body: Body | None = None,
    progress: bool = True,
) -> list[Size]:
    """Measures each size, and 0 before them.

    Args:
      growth: what was learned.
      sizes: numbers of new pieces.
      new: held-out texts of the new language.
      old: texts of the old language.
      body: the model.
      progress: show a bar.
    """
    wanted = sorted({0, *(min(s, len(growth.pieces)) for s in sizes)})
    found: list[Size] = []
    before: list[list[int]] = []
    for added in tqdm(wanted, "measuring", unit=" sizes", disable=None if progress else True):
        tokenizer = growth.grown(added) if added else growth.base
        counts = count(new, tokenizer.encode_batch(new, threads=2))
        ids = tokenizer.encode_batch(old, threads=2)
        before = before or ids
        rows, base = tokenizer.vocab_size, growth.base.vocab_size
        cost = counts.tokens / max(found[0].new.tokens if found else counts.tokens, 1)
        grown = None
        if body is not None:
            cost *= body.worked(rows) / body.worked(base)
            grown = body.total(rows) - body.total(base)
        found.append(
            Size(
                added,
                rows,
                counts,
                count(old, ids) if old else None,
                sum(a == b for a, b in zip(before, ids, strict=True)) / len(old) if old else None,
                grown,
                None if body is None or grown is None else grown / body.total(rows),
                cost,
            )
        )
    return found


def advised(sizes: Sequence[Size]) -> Size:
    """The smallest whose cost is within ``TOLERANCE`` of the least."""
    least = min(size.cost for size in sizes)
    return next(size for size in sizes if size.cost <= least * (1 + TOLERANCE))


def write_growth(
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer,
    sizes: Sequence[Size],
    chosen: Size,
    facts: dict[str, Any],
) -> None:
    """Writes the grown tokenizer with ``growth.json``, ``growth.md`` and ``growth.png``."""
    root = as_path(directory)
    tokenizer.save(root)
    rows = [
        dataclasses.asdict(size)
        | {"new": size.new.figures(), "old": size.old and size.old.figures()}
        for size in sizes
    ]
    best = advised(sizes)
    write_json(
        root / "growth.json",
        {**facts, "added": chosen.added, "advised": best.added, "sizes": rows},
    )
    write_atomic(root / "growth.md", page(sizes, chosen, facts))
    write_atomic(root / "growth.png", picture(sizes, chosen))


def page(sizes: Sequence[Size], chosen: Size, facts: dict[str, Any]) -> str:
    """The report, in Markdown."""
    before, best = sizes[0], advised(sizes)
    lines = ["# Vocabulary growth", ""]
    lines += [f"* {name}: {value}" for name, value in facts.items()]
    was, now = before.new.figures(), chosen.new.figures()
    lines += [
        "",
        f"**{before.vocabulary:,} + {chosen.added:,} = {chosen.vocabulary:,} tokens.**",
        f"On {chosen.new.documents:,} held-out documents of the new text, before -> after:",
        "",
        f"* tokens of a character: {was['tokens_per_character']:.3f} -> "
        f"{now['tokens_per_character']:.3f}",
        f"* characters of a token: {was['characters_per_token']:.3f} -> "
        f"{now['characters_per_token']:.3f}; bytes: {was['bytes_per_token']:.3f} -> "
        f"{now['bytes_per_token']:.3f}",
        f"* mean length of a document: {was['tokens_per_document']:,.1f} -> "
        f"{now['tokens_per_document']:,.1f} tokens",
        "",
        table(sizes),
        "",
        f"Advised: {best.added:,} pieces, the fewest within {TOLERANCE:.0%} of the least cost. "
        "Cost is the work of training on a character of the new text, beside the old vocabulary: "
        "tokens times the parameters that each works with.",
        "",
        "![characters of a token and cost by size](growth.png)",
        "",
    ]
    return "\n".join(lines)


def table(sizes: Sequence[Size]) -> str:
    """A row for each size, in Markdown that a terminal shows as well."""
    head = ["pieces added", "vocabulary", "new: char/token", "byte/token", "tokens/document"]
    old, body = sizes[0].old is not None, sizes[0].parameters is not None
    head += ["old: char/token", "same ids"] if old else []
    head += ["parameters added", "of the model"] if body else []
    rows = [[*head, "cost"]]
    for size in sizes:
        new = size.new.figures()
        row = [f"{size.added:,}", f"{size.vocabulary:,}", f"{new['characters_per_token']:.3f}"]
        row += [f"{new['bytes_per_token']:.3f}", f"{new['tokens_per_document']:,.1f}"]
        if size.old is not None:
            row += [f"{size.old.figures()['characters_per_token']:.3f}", f"{size.same:.2%}"]
        if size.parameters is not None:
            row += [f"{size.parameters:,}", f"{size.share:.2%}"]
        rows.append([*row, f"{size.cost:.3f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def picture(sizes: Sequence[Size], chosen: Size) -> bytes:
    """Characters of a token, and cost, by pieces added; a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=140, layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    at = [size.added for size in sizes]
    per_token = [size.new.figures()["characters_per_token"] for size in sizes]
    left.plot(at, per_token, "o-", color="#3b82d6")
    right.plot(at, [size.cost for size in sizes], "s--", color="#e0702b")
    left.axvline(chosen.added, color="#8a93a3", linewidth=1)
    left.set_xlabel("pieces added")
    left.set_ylabel("characters of a token, new text", color="#3b82d6")
    right.set_ylabel("cost of training on it", color="#e0702b")
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()
