"""Chat template of a run: proved and shown before the first step, saved and exported."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator

import numpy as np

from t5x_llm.core.paths import as_path, write_atomic, write_json
from t5x_llm.data.catalog import Opened
from t5x_llm.data.instruct.encoding import prove_template
from t5x_llm.hf.generation import FILE as GENERATION
from t5x_llm.hf.generation import end_ids
from t5x_llm.run.config import Run
from t5x_llm.run.load import saved_generation
from t5x_llm.run.template import TEMPLATE
from t5x_llm.text import Tokenizer, load_tokenizer
from t5x_llm.text.chat.show import coloured, visible

_TRAINED, _PARTLY, _END = "\033[32m", "\033[33m", "\033[0m"


@dataclasses.dataclass(frozen=True)
class ShownDocument:
    """One document of a training split, to be shown.

    Attributes:
      source: name of its source.
      place: file and line it was read from.
      parts: (text, weight) of its runs of tokens of one weight, special tokens spelt out.
      tokens: of the document.
      trained: tokens whose weight is above 0.
    """

    source: str
    place: str
    parts: tuple[tuple[str, float], ...]
    tokens: int
    trained: int

    def coloured(self, colours: bool) -> str:
        """Returns the text; trained tokens green, those of less weight yellow, or in « ».

        Control characters, which could move a terminal's cursor, are spelt out.
        """
        out = []
        for raw, weight in self.parts:
            text = visible(raw)
            if not weight:
                out.append(text)
            elif colours:
                out.append(f"{_TRAINED if weight == 1 else _PARTLY}{text}{_END}")
            else:
                out.append(f"«{text}»" if weight == 1 else f"«{weight:g}:{text}»")
        return "".join(out)


def check_chat(run: Run) -> None:
    """Proves the template of a run whose tokenizer is there already, before data is prepared.

    Raises:
      TemplateError: naming the proof that failed.
      ConfigError: there is no such template.
    """
    if run.data.chat is not None and isinstance(run.data.tokenizer, str):
        prove_template(run.data.chat, load_tokenizer(run.data.tokenizer))


def begin_chat(run: Run, opened: Opened, examples: int = 3) -> None:
    """Proves the template of a run and prints examples on stderr; nothing without conversations.

    Args:
      run: the configuration.
      opened: its data.
      examples: documents printed; 0 only proves.

    Raises:
      TemplateError: naming the proof that failed.
    """
    if run.data.chat is None:
        return
    template, proofs = prove_template(run.data.chat, opened.tokenizer)
    if not examples:
        return
    colours = coloured(None, sys.stderr)
    how = "in green" if colours else "between « and »"
    end = f"{proofs.stop!r} (id {proofs.stop_id}) ends an answer"
    print(f"chat: template {template.name}, {end}; trained tokens {how}:", file=sys.stderr)
    talks = [name for name, store in opened.stores.items() if store.coded]
    for document in documents(opened, examples, talks):
        print(told(document, colours), file=sys.stderr)


def told(document: ShownDocument, colours: bool) -> str:
    """Returns a document as it is shown: a line about it, and its text."""
    head = f"{document.source}, {document.place}: {document.trained:,} of {document.tokens:,}"
    return f"── {head} tokens trained\n{document.coloured(colours)}"


def documents(
    opened: Opened, count: int, sources: list[str] | None = None
) -> Iterator[ShownDocument]:
    """Yields the first documents of the training splits, of each source in turn.

    Args:
      opened: the stores.
      count: documents in all.
      sources: names; all if None.
    """
    names = list(opened.stores) if sources is None else sources
    wanted = [(i, name) for i in range(count) for name in names]
    present = [(i, name) for i, name in wanted if i < len(opened.stores[name].train)]
    for i, name in present[:count]:
        split = opened.stores[name].train
        ids = split.document(i)
        weights = np.ones(len(ids), np.float32)
        if split.masked:
            weights = split.document_weights(i).astype(np.float32)
        yield ShownDocument(
            name,
            str(split.provenance(i)),
            tuple(_parts(opened.tokenizer, ids, weights)),
            len(ids),
            int(np.count_nonzero(weights)),
        )


def _parts(
    tokenizer: Tokenizer, ids: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Yields (text, weight) of runs of tokens; the text of a run continues what precedes it."""
    special = tokenizer.special
    edges = np.flatnonzero(np.diff(weights)) + 1
    for start, stop in zip([0, *edges], [*edges, len(ids)], strict=True):
        words, first = "", start
        for at in range(start, stop + 1):
            if at == stop or int(ids[at]) in special:
                before = tokenizer.decode(ids[:first].tolist())
                words += tokenizer.decode(ids[:at].tolist())[len(before) :]
                words += special[int(ids[at])] if at < stop else ""
                first = at + 1
        yield words, float(weights[start])


def save_template(run: Run, tokenizer: Tokenizer) -> None:
    """Writes the template into the run's directory, and its end token into its settings.

    ``generation_config.json`` of the run, which generation and export follow, names the token that
    ends an answer beside those that it names already.
    """
    if run.data.chat is None:
        return
    template, proofs = prove_template(run.data.chat, tokenizer)
    write_atomic(as_path(run.directory) / TEMPLATE, template.source)
    generation = saved_generation(run.directory)
    ends = [*end_ids(generation, run.model.vocab_size), proofs.stop_id]
    if tokenizer.eos_id is not None:
        ends.append(tokenizer.eos_id)
    ends = list(dict.fromkeys(ends))
    value = ends if len(ends) > 1 else ends[0]
    write_json(as_path(run.directory) / GENERATION, {**generation, "eos_token_id": value})


def as_json(document: ShownDocument) -> str:
    """Returns a document as one line of JSON."""
    return json.dumps(dataclasses.asdict(document), ensure_ascii=False)
