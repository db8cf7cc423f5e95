"""Documents that use phrases of a list: profanity, advertisements, or what a user lists."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, DataError, check_number
from t5x_llm.data.clean.characters import HAN
from t5x_llm.data.clean.document import Answer, Document, Drop

SHIPPED = Path(__file__).parent / "lists"
_HAN = re.compile(f"[{HAN}]")


@dataclasses.dataclass(frozen=True)
class PhraseList:
    """Drops documents with many phrases of a list; case and width of blanks do not matter.

    A phrase with Chinese characters is found anywhere, any other one between ends of words.

    Attributes:
      lists: names of shipped lists, ``spam_en`` and ``spam_zh``: phrases of advertisements.
      files: further ones, a phrase a line, UTF-8, ``#`` begins a comment: profanity, for instance.
      least: different phrases that must occur to drop a document.
      per_thousand: and occurrences to a thousand characters.
      drop: whether to drop; otherwise they are only counted, in ``meta``.
      title: of this list in the report, where there are several.
    """

    lists: tuple[str, ...] = ("spam_en", "spam_zh")
    files: tuple[str, ...] = ()
    least: int = 3
    per_thousand: float = 2.0
    drop: bool = True
    title: str = "phrases"

    def __post_init__(self) -> None:
        for field in ("lists", "files"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        shipped = [path.stem for path in SHIPPED.glob("*.txt")]
        for name in self.lists:
            if name not in shipped:
                raise ConfigError("PhraseList.lists", name, choices=shipped)
        for file in self.files:
            filesystems.check_readable("PhraseList.files", file)
            if not filesystems.exists(file):
                raise ConfigError("PhraseList.files", file, "a file with one phrase a line")
        if not (self.lists or self.files):
            raise ConfigError("PhraseList.files", self.files, "a list, shipped or your own")
        check_number("PhraseList.least", self.least, low=1, integer=True)
        check_number("PhraseList.per_thousand", self.per_thousand, low=0)

    @property
    def name(self) -> str:
        return self.title

    def open(self) -> Callable[[Document], Answer]:
        files = [*(str(SHIPPED / f"{name}.txt") for name in self.lists), *self.files]
        phrases = {p for file in files for p in _read(file)}
        chinese = _one_of(p for p in phrases if _HAN.search(p))
        others = _one_of(p for p in phrases if not _HAN.search(p))

        def step(document: Document) -> Answer:
            text = document.text.lower()
            found = others.findall(text) if others else []
            if chinese and not text.isascii():
                found += chinese.findall(text)
            if not found:
                return document
            different = {" ".join(phrase.split()) for phrase in found}
            rate = 1000 * len(found) / len(text)
            if self.drop and len(different) >= self.least and rate >= self.per_thousand:
                return Drop("listed phrases", ", ".join(sorted(different)))
            return document.with_meta(**{self.title: {"found": len(found)}})

        return step


def _read(path: str) -> set[str]:
    try:
        lines = filesystems.read_text(path).splitlines()
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8: {e}") from e
    phrases = (" ".join(line.lower().split("#")[0].split()) for line in lines)
    return {phrase for phrase in phrases if phrase}


def _one_of(phrases: Iterable[str]) -> re.Pattern[str] | None:
    """Returns a pattern of any of the phrases, the longest first.

    Common beginnings are shared, so that the time hardly grows with the number of phrases.
    """
    root: dict[str, dict] = {}
    bounded = True
    for phrase in phrases:
        bounded = bounded and not _HAN.search(phrase)
        node = root
        for char in phrase:
            node = node.setdefault(char, {})
        node[""] = {}
    if not root:
        return None
    pattern = _pattern(root)
    return re.compile(rf"(?<!\w){pattern}(?!\w)" if bounded else pattern)


def _pattern(node: dict[str, dict]) -> str:
    chars = sorted(char for char in node if char)
    parts = [(r"\s+" if c == " " else re.escape(c)) + _pattern(node[c]) for c in chars]
    if not parts:
        return ""
    group = parts[0] if len(parts) == 1 and "" not in node else f"(?:{'|'.join(parts)})"
    return f"{group}?" if "" in node else group
