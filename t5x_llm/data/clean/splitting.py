"""Words and sentences for datatrove's filters, without models that would have to be downloaded."""

from __future__ import annotations

import functools
import re
from typing import Any

from t5x_llm.core.errors import check_choice
from t5x_llm.data.clean.characters import HAN
from t5x_llm.data.clean.sentences import sentence_spans

LANGUAGES = ("en", "zh")
# Words that blank space parts, without the rules of tables: never more than those of a language.
BLANKS = "blanks"
# English: a word keeps what an apostrophe, full stop or @ joins (it's, U.S.A), a number its
# commas; an address of the web is a word, as is a run of signs.
_ENGLISH = re.compile(r"https?://\S+|www\.\S+|\w+(?:['’.@]\w+|,\d+)*|[^\w\s]+")
_TABLE = re.compile(r"\|+|\|?(?:-{3,}\|?)+")  # bars and rules between the cells of a table
# Chinese: a character is a word, as are runs of other letters and digits.
_CHINESE = re.compile(rf"[{HAN}]|[^\W{HAN}]+|[^\w\s]")


def words(text: str, language: str) -> list[str]:
    """Returns the words of a text: English words, or Chinese characters; signs are words too."""
    if language == BLANKS:
        return [word for word in text.split() if not _TABLE.fullmatch(word)]
    return (_CHINESE if language == "zh" else _ENGLISH).findall(text)


@functools.cache
def splitter(language: str) -> Any:
    """Returns the splitter that datatrove's filters take as their ``language``.

    All filters of a language get the same object, so that datatrove splits a document once.

    Raises:
      ConfigError: for a language other than ``en`` and ``zh``.
    """
    check_choice("language", language, (*LANGUAGES, BLANKS))
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Splitter(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return words(text, language)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return sentence_spans(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end].strip() for start, end in sentence_spans(text)]

    return Splitter(language)
