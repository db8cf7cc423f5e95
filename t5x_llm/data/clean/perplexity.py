"""Perplexity of a text under a language model of n-grams, by KenLM."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.data.clean.arpa import train_arpa
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.sentences import split_sentences
from t5x_llm.data.clean.splitting import LANGUAGES, words

_REMEDY = "Install it: pip install kenlm (it is compiled, with a C++ compiler and CMake)."


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Drops documents that are too surprising, or too little; writes ``perplexity`` into ``meta``.

    CCNet (arXiv 1911.00359) filters Common Crawl in this way. Words are English words in lower
    case, or Chinese characters.

    Attributes:
      model: of KenLM, ARPA or binary; ``train_language_model`` makes one of good text.
      language: whose documents are judged.
      most: perplexity of a word, above which a document is dropped.
      least: below which it is dropped: what repeats itself.
      characters: of the text that are read.
    """

    model: str
    language: str = "en"
    most: float = 1000.0
    least: float = 0.0
    characters: int = 10_000

    def __post_init__(self) -> None:
        check_choice("Perplexity.language", self.language, LANGUAGES)
        check_number("Perplexity.least", self.least, low=0)
        check_number("Perplexity.most", self.most, above=self.least)
        check_number("Perplexity.characters", self.characters, low=1, integer=True)
        if not os.path.isfile(self.model):
            raise ConfigError(
                "Perplexity.model", self.model, "a model of KenLM on this machine",
                "Train one: t5x_llm.data.clean.perplexity.train_language_model.",
            )  # fmt: skip
        try:
            import kenlm  # noqa: F401
        except ImportError as e:
            raise ConfigError("Perplexity", "kenlm", "an installed package", _REMEDY) from e

    @property
    def name(self) -> str:
        return f"perplexity {self.language}"

    def open(self) -> Callable[[Document], Answer]:
        import kenlm

        try:
            model = kenlm.Model(self.model)
        except OSError as e:
            raise ConfigError("Perplexity.model", self.model, f"a model of KenLM ({e})") from e

        def step(document: Document) -> Answer:
            if not document.concerns(self.language):
                return document
            score = perplexity(model, document.text[: self.characters], self.language)
            if score > self.most:
                return Drop("surprising", f"{score:.0f}", {"perplexity": score})
            if score < self.least:
                return Drop("predictable", f"{score:.0f}", {"perplexity": score})
            return document.with_meta(perplexity=score)

        return step


def perplexity(model: Any, text: str, language: str) -> float:
    """Returns the perplexity of a word, 10^(-log10 p / words); ends of sentences are words."""
    total, count = 0.0, 0
    for sentence in _sentences(text, language):
        total += model.score(" ".join(sentence))
        count += len(sentence) + 1
    return round(10.0 ** min(300.0, -total / count), 1) if count else 0.0


def train_language_model(
    texts: Iterable[str], path: str | os.PathLike[str], language: str, order: int = 0
) -> int:
    """Estimates a model of good texts, for ``Perplexity``; see ``arpa.train_arpa``.

    Args:
      texts: some megabytes.
      path: of the ARPA file written.
      language: ``en`` or ``zh``, how words are found.
      order: of its longest n-grams; 0 is 3 for English, 5 for Chinese characters.

    Returns:
      The number of n-grams of the model.
    """
    check_choice("language", language, LANGUAGES)
    sentences = (s for text in texts for s in _sentences(text, language))
    return train_arpa(sentences, path, order or (5 if language == "zh" else 3))


def _sentences(text: str, language: str) -> Iterator[list[str]]:
    for sentence in split_sentences(text):
        yield words(sentence.lower(), language)
