"""Quick proofs that datatrove's filters would keep a text; what they do not settle, it decides."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

Fractions = tuple[tuple[int, float], ...]


class GopherRules(Protocol):
    """Thresholds of ``quality.GopherQuality``, which has their meaning."""

    @property
    def min_words(self) -> int: ...
    @property
    def max_words(self) -> int: ...
    @property
    def min_word_length(self) -> float: ...
    @property
    def max_word_length(self) -> float: ...
    @property
    def max_symbol_ratio(self) -> float: ...
    @property
    def max_bullet_lines(self) -> float: ...
    @property
    def max_ellipsis_lines(self) -> float: ...
    @property
    def min_letter_words(self) -> float: ...
    @property
    def min_stop_words(self) -> int: ...


def passes_gopher(
    rules: GopherRules, stop_words: Iterable[str], signs: set[str], text: str, found: list[str]
) -> bool:
    """Returns whether a text with these words passes every rule of quality.

    Each different word is looked at once. A word that consists of ``signs`` alone does not count.
    """
    counts = Counter(found)
    plain = size = letters = 0
    for word, count in counts.items():
        if not signs.issuperset(word):
            plain += count
            size += count * len(word)
        if word.isalpha() or any(map(str.isalpha, word)):
            letters += count
    total = len(found)
    return (
        rules.min_words <= plain <= rules.max_words
        and rules.min_word_length <= size / plain <= rules.max_word_length
        and text.count("#") / total <= rules.max_symbol_ratio
        and (text.count("...") + text.count("…")) / total <= rules.max_symbol_ratio
        and letters / total >= rules.min_letter_words
        and sum(word in counts for word in set(stop_words)) >= rules.min_stop_words
        and _passes_lines(rules, text)
    )


def _passes_lines(rules: GopherRules, text: str) -> bool:
    dots, bullets = "..." in text or "…" in text, "•" in text or "-" in text
    if not (dots or bullets):
        return True
    lines = text.splitlines()
    started = sum(line.lstrip().startswith(("•", "-")) for line in lines) if bullets else 0
    ended = sum(line.rstrip().endswith(("...", "…")) for line in lines) if dots else 0
    return (
        started / len(lines) <= rules.max_bullet_lines
        and ended / len(lines) <= rules.max_ellipsis_lines
    )


def top_suspects(
    found: Sequence[str], size: int, blank: int, least: int, top: Fractions
) -> Fractions:
    """Returns the rules on the most frequent n-gram that may drop a text of ``size`` characters.

    The words of an n-gram are those of n / 2 pairs, rounded up, none of which is rarer: their
    characters, times how often it occurs, are no more than those of the pairs that have most.
    """
    wanted = {n: share * size / ((n + 1) // 2) for n, share in top}
    low = min(wanted.values(), default=0)
    width = 2 * (max(map(len, found), default=0) + blank)
    most = 0
    for (one, other), count in Counter(itertools.pairwise(found)).items():
        if count >= least and count * width > low:
            most = max(most, count * (len(one) + len(other) + 2 * blank))
    return tuple((n, share) for n, share in top if n < 2 or most > wanted[n])


def repeats_little(found: Sequence[str], size: int, repeated: Fractions) -> bool:
    """Returns whether no rule on repeated n-grams drops a text of ``size`` characters.

    A repeated n-gram consists of repeated k-grams for every k <= n, so that the characters of all
    words in repeated k-grams bound those that any rule from k on counts.
    """
    rules = sorted(repeated)
    for at, (n, share) in enumerate(rules):
        most = _covered(found, n) / size
        if most <= min(share for _, share in rules[at:]):
            return True
        if most > share and _repeated(found, n) / size > share:
            return False
    return True


def _covered(found: Sequence[str], n: int) -> int:
    """Returns the characters of the words in n-grams that were there before."""
    before: dict[tuple[str, ...], int] = {}
    first = map(before.setdefault, n_grams(found, n), itertools.count())
    again = [at for at, where in enumerate(first) if at != where]
    characters, end = 0, 0
    for at in again:
        characters += sum(map(len, found[max(end, at) : at + n]))
        end = at + n
    return characters


def _repeated(found: Sequence[str], n: int) -> int:
    """Returns the characters of n-grams that were there before, counted as datatrove does."""
    text, starts = "".join(found), list(itertools.accumulate(map(len, found), initial=0))
    seen: set[str] = set()
    characters, at, last = 0, 0, len(found) - n
    while at <= last:
        gram = text[starts[at] : starts[at + n]]
        if gram in seen:
            characters += len(gram)
            at += n
        else:
            seen.add(gram)
            at += 1
    return characters


def n_grams(found: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Yields each n words that follow each other."""
    return zip(*(found[i:] for i in range(n)), strict=False)
