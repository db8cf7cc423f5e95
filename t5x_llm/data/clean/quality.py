"""The Gopher, C4 and FineWeb families of rules, decided by datatrove's own filters.

Thresholds are the papers' for English; for Chinese, words are characters, and the thresholds are
ours: see ``chinese.py``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.sentences import has_sentences
from t5x_llm.data.clean.shortcuts import (
    Fractions,
    n_grams,
    passes_gopher,
    repeats_little,
    top_suspects,
)
from t5x_llm.data.clean.splitting import BLANKS, LANGUAGES, splitter
from t5x_llm.data.clean.wrapping import join_wrapped

# Reasons in plain words, by datatrove's names.
_REASONS = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short",
    "gopher_above_avg_threshold": "words too long",
    "gopher_too_many_hashes": "too many hashes",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "too many bullet lines",
    "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "too few words with letters",
    "gopher_enough_stop_words": "too few stop words",
    "dup_para_frac": "repeated paragraphs",
    "dup_para_char_frac": "repeated paragraphs, by characters",
    "dup_line_frac": "repeated lines",
    "dup_line_char_frac": "repeated lines, by characters",
    "line_punct_ratio": "too few lines end a sentence",
    "short_line_ratio": "too many short lines",
    "char_dup_ratio": "repeated lines, by characters",
    "list_ratio": "a list",
    "too_few_sentences": "too few sentences",
    "curly_bracket": "curly brackets",
    "lorem_ipsum": "lorem ipsum",
    "empty": "empty",
}


def through(theirs: Any, language: str) -> Callable[[Document], Answer]:
    """Returns a step that follows a filter of datatrove on documents of a language."""
    from datatrove.data import Document as Theirs

    def step(document: Document) -> Answer:
        if not document.concerns(language):
            return document
        given = Theirs(text=document.text, id=document.id)
        result = theirs.filter(given)
        if isinstance(result, tuple):
            kept, reason = result
            if not kept:
                return Drop(_REASONS.get(reason, reason.replace("_", " ")))
        elif not result:
            return Drop("refused")
        return document if given.text == document.text else document.with_text(given.text)

    return step


def check_ratios(config: object, *names: str) -> None:
    """Raises ConfigError unless these fields are ratios."""
    for name in names:
        check_number(f"{type(config).__name__}.{name}", getattr(config, name), low=0)


@dataclasses.dataclass(frozen=True)
class GopherQuality:
    """Gopher's rules of quality (arXiv 2112.11446, table A1 and section A.1.1).

    Words of English are what blank space parts, as the paper counts them: a punctuation mark is
    part of the word that it follows, and no word without letters.

    Attributes:
      language: whose documents are judged.
      min_words, max_words: those that are no signs alone.
      min_word_length, max_word_length: mean, in characters.
      max_symbol_ratio: of hashes, and of ellipses, to words.
      max_bullet_lines, max_ellipsis_lines: shares of the lines.
      min_letter_words: share of words with a letter.
      min_stop_words: how many different ones must occur.
      stop_words: empty for Gopher's eight.
    """

    language: str = "en"
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_symbol_ratio: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_letter_words: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("GopherQuality.language", self.language, LANGUAGES)
        check_number("GopherQuality.min_words", self.min_words, low=1, integer=True)
        check_number("GopherQuality.max_words", self.max_words, low=self.min_words, integer=True)
        check_number("GopherQuality.min_stop_words", self.min_stop_words, low=0, integer=True)
        check_ratios(self, "min_word_length", "max_word_length", "max_symbol_ratio")
        check_ratios(self, "max_bullet_lines", "max_ellipsis_lines", "min_letter_words")

    @property
    def name(self) -> str:
        return f"gopher quality {self.language}"

    def open(self) -> Callable[[Document], Answer]:
        from datatrove.pipeline.filters import GopherQualityFilter
        from datatrove.utils.text import PUNCTUATION_SET, split_into_words

        theirs = GopherQualityFilter(
            min_doc_words=self.min_words,
            max_doc_words=self.max_words,
            min_avg_word_length=self.min_word_length,
            max_avg_word_length=self.max_word_length,
            max_symbol_word_ratio=self.max_symbol_ratio,
            max_bullet_lines_ratio=self.max_bullet_lines,
            max_ellipsis_lines_ratio=self.max_ellipsis_lines,
            max_non_alpha_words_ratio=self.min_letter_words,
            min_stop_words=self.min_stop_words,
            stop_words=list(self.stop_words) or None,
            language=splitter(BLANKS if self.language == "en" else self.language),
        )
        decide, words = through(theirs, self.language), theirs.language

        def step(document: Document) -> Answer:
            text = document.text
            if document.concerns(self.language) and passes_gopher(
                self, theirs.stop_words, PUNCTUATION_SET, text, split_into_words(text, words)
            ):
                return document
            return decide(document)

        return step


@dataclasses.dataclass(frozen=True)
class GopherRepetition:
    """Gopher's rules against repetition (arXiv 2112.11446, table A1).

    Attributes:
      language: whose documents are judged.
      max_lines, max_paragraphs: share of lines, of paragraphs that were there before.
      max_line_characters, max_paragraph_characters: their share of the text.
      top_n_grams: (n, share of the text): of the most frequent one.
      repeated_n_grams: (n, share of the text): of all that were there before.
    """

    language: str = "en"
    max_lines: float = 0.3
    max_paragraphs: float = 0.3
    max_line_characters: float = 0.2
    max_paragraph_characters: float = 0.2
    top_n_grams: Fractions = ((2, 0.2), (3, 0.18), (4, 0.16))
    repeated_n_grams: Fractions = (
        *((5, 0.15), (6, 0.14), (7, 0.13)),
        *((8, 0.12), (9, 0.11), (10, 0.10)),
    )
    # How often the most frequent n-gram must occur, and the width of a blank between its words:
    # datatrove's.
    least: ClassVar[int] = 1
    blank: ClassVar[int] = 1

    def __post_init__(self) -> None:
        kind = type(self).__name__
        check_choice(f"{kind}.language", self.language, LANGUAGES)
        check_ratios(self, "max_lines", "max_paragraphs")
        check_ratios(self, "max_line_characters", "max_paragraph_characters")
        for field in ("top_n_grams", "repeated_n_grams"):
            pairs = getattr(self, field)
            try:
                pairs = tuple((int(n), float(share)) for n, share in pairs)
            except (TypeError, ValueError) as e:
                expected = "pairs of a length and a share, such as ((2, 0.2), (3, 0.18))"
                raise ConfigError(f"{kind}.{field}", pairs, expected) from e
            for n, share in pairs:
                check_number(f"{kind}.{field}", n, low=1)
                check_number(f"{kind}.{field}", share, low=0, high=1)
            object.__setattr__(self, field, pairs)

    @property
    def name(self) -> str:
        return f"repetition {self.language}"

    def open(self) -> Callable[[Document], Answer]:
        from datatrove.pipeline.filters import GopherRepetitionFilter
        from datatrove.utils.text import split_into_words

        words = splitter(self.language)

        def theirs(repeated: Fractions) -> Callable[[Document], Answer]:
            filter_ = GopherRepetitionFilter(
                dup_line_frac=self.max_lines,
                dup_para_frac=self.max_paragraphs,
                dup_line_char_frac=self.max_line_characters,
                dup_para_char_frac=self.max_paragraph_characters,
                top_n_grams=(),
                dup_n_grams=repeated,
                language=words,
            )
            return through(filter_, self.language)

        # Their n-grams are nine tenths of the work. The most frequent one is counted here in the
        # same way, and most texts are proved innocent of repeating any by less.
        by_lines, by_n_grams = theirs(()), theirs(self.repeated_n_grams)

        def step(document: Document) -> Answer:
            answer = by_lines(document)
            if isinstance(answer, Drop) or not document.concerns(self.language):
                return answer
            found, size = split_into_words(document.text, words), len(document.text)
            suspects = top_suspects(found, size, self.blank, self.least, self.top_n_grams)
            for n, share in suspects:
                if self._top(found, n) / size > share:
                    return Drop(f"top {n} gram")
            if repeats_little(found, size, self.repeated_n_grams):
                return answer
            return by_n_grams(document)

        return step

    def _top(self, found: Sequence[str], n: int) -> int:
        """Returns the characters of the most frequent n-gram, times its number of occurrences."""
        counts = Counter(n_grams(found, n))
        if not counts:
            return 0
        gram, count = counts.most_common(1)[0]
        return (sum(map(len, gram)) + self.blank * (n - 1)) * count if count >= self.least else 0


@dataclasses.dataclass(frozen=True)
class C4Quality:
    """C4's rules (arXiv 1910.10683, section 2.2): lines are dropped first, then documents.

    A paragraph that is wrapped at a fixed width is one line, and is written as one.

    Attributes:
      language: whose documents are judged: English, as they go by its full stops and words.
      min_sentences: of the lines that are left.
      min_words_per_line: shorter lines go.
      max_word_length: lines with a longer word go.
      end_of_sentence: lines that end without a full stop, question or exclamation mark or quote go.
      citations: whether ``[1]``, ``[edit]`` and ``[citation needed]`` are cut out.
      curly_brackets: whether documents with curly brackets are dropped, being code.
      max_curly: share of the characters up to which they may be curly brackets; C4 drops a document
        for one, however long.
      javascript, policies: whether lines about JavaScript, and about cookies and terms, go.
    """

    language: str = "en"
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    end_of_sentence: bool = True
    citations: bool = True
    curly_brackets: bool = True
    max_curly: float = 0.0
    javascript: bool = True
    policies: bool = True

    def __post_init__(self) -> None:
        check_choice("C4Quality.language", self.language, ("en",))
        for field in ("min_sentences", "min_words_per_line", "max_word_length"):
            check_number(f"C4Quality.{field}", getattr(self, field), low=1, integer=True)
        check_number("C4Quality.max_curly", self.max_curly, low=0, high=1)

    @property
    def name(self) -> str:
        return f"c4 {self.language}"

    def open(self) -> Callable[[Document], Answer]:
        from datatrove.pipeline.filters import C4QualityFilter

        def theirs(**limits: int) -> Callable[[Document], Answer]:
            filter_ = C4QualityFilter(
                min_words_per_line=self.min_words_per_line,
                filter_no_terminal_punct=self.end_of_sentence,
                remove_citations=self.citations,
                filter_curly_bracket=self.curly_brackets and not self.max_curly,
                filter_javascript=self.javascript,
                filter_policy=self.policies,
                language=splitter(self.language),
                **limits,
            )
            return through(filter_, self.language)

        # Nearly all of the time would go into the lengths of words and into counting sentences
        # further than is asked.
        of_lines = theirs(min_num_sentences=-1, max_word_length=-1)
        decide = theirs(min_num_sentences=self.min_sentences, max_word_length=self.max_word_length)

        def step(document: Document) -> Answer:
            document = _unwrapped(document, self.language)
            if self.curly_brackets and self._is_code(document):
                return Drop(_REASONS["curly_bracket"])
            if max(map(len, document.text.split()), default=0) > self.max_word_length:
                return decide(document)
            answer = of_lines(document)
            if isinstance(answer, Document) and document.concerns(self.language):
                if not has_sentences(answer.text.split("\n"), self.min_sentences):
                    return decide(document)
            return answer

        return step

    def _is_code(self, document: Document) -> bool:
        """Returns whether more than ``max_curly`` of a document are curly brackets."""
        if not self.max_curly or not document.concerns(self.language):
            return False
        found = document.text.count("{") + document.text.count("}")
        return found > self.max_curly * len(document.text)


@dataclasses.dataclass(frozen=True)
class FineWebQuality:
    """FineWeb's rules (arXiv 2406.17557, section 3.6).

    A paragraph that is wrapped at a fixed width is judged as one line; texts are not changed.

    Attributes:
      language: whose documents are judged.
      min_line_ends: share of lines that end a sentence.
      max_short_lines: share of lines of at most ``short_line`` characters.
      short_line: characters of the longest line that counts as short.
      max_repeated: share of the characters in lines that were there before.
      max_new_lines: line breaks to words.
      line_ends: signs that end a sentence; empty for datatrove's, of all scripts.
    """

    language: str = "en"
    min_line_ends: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_repeated: float = 0.01
    max_new_lines: float = 0.3
    line_ends: str = ""

    def __post_init__(self) -> None:
        kind = type(self).__name__
        check_choice(f"{kind}.language", self.language, LANGUAGES)
        check_number(f"{kind}.short_line", self.short_line, low=0, integer=True)
        check_ratios(self, "min_line_ends", "max_short_lines", "max_repeated", "max_new_lines")

    @property
    def name(self) -> str:
        return f"fineweb {self.language}"

    def open(self) -> Callable[[Document], Answer]:
        from datatrove.pipeline.filters import FineWebQualityFilter

        def theirs(words: Any) -> Callable[[Document], Answer]:
            filter_ = FineWebQualityFilter(
                line_punct_thr=self.min_line_ends,
                short_line_thr=self.max_short_lines,
                short_line_length=self.short_line,
                char_duplicates_ratio=self.max_repeated,
                new_line_ratio=self.max_new_lines,
                stop_chars=tuple(self.line_ends) or None,
                language=words,
            )
            return through(filter_, self.language)

        decide = theirs(splitter(self.language))
        # Words only matter to their number: what is no list by fewer words is none.
        by_fewer = decide if self.language == "zh" else theirs(splitter(BLANKS))

        def step(document: Document) -> Answer:
            judged = _unwrapped(document, self.language)
            answer = by_fewer(judged)
            if isinstance(answer, Drop) and answer.reason == _REASONS["list_ratio"]:
                answer = decide(judged)
            return answer if isinstance(answer, Drop) else document

        return step


def _unwrapped(document: Document, language: str) -> Document:
    """Returns the document with each paragraph on one line, if it is of the language."""
    if not document.concerns(language):
        return document
    text = join_wrapped(document.text)
    return document if text == document.text else document.with_text(text)
