"""Language models of n-grams, estimated in place and written as ARPA, which KenLM reads.

Interpolated Kneser-Ney with one discount for each order (Chen and Goodman, TR-10-98, section 2.7):

  p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) p(w | h'),

where c counts occurrences for the highest order and after <s>, and different left neighbours for
lower orders; N(h) is how many different words follow h, h' is h without its first word, and
D = n1 / (n1 + 2 n2). The unigrams are interpolated with the uniform distribution over the
vocabulary with <unk>. Counts are held in memory: meant for seeds of up to some 10 MB; KenLM's own
``lmplz`` estimates larger ones.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from t5x_llm.core.errors import DataError, check_number
from t5x_llm.core.paths import write_atomic

Gram = tuple[str, ...]
_START, _END, _UNKNOWN = "<s>", "</s>", "<unk>"


def train_arpa(
    sentences: Iterable[Sequence[str]],
    path: str | os.PathLike[str],
    order: int = 3,
    vocabulary: int = 200_000,
) -> int:
    """Estimates a model of sentences of words and writes it.

    Args:
      sentences: each a sequence of words, without blanks in them.
      path: of the ARPA file.
      order: of its longest n-grams.
      vocabulary: most frequent words that are kept; others are ``<unk>``.

    Returns:
      How many n-grams it has.

    Raises:
      DataError: if there is no word.
    """
    check_number("order", order, low=2, high=6, integer=True)
    signs = (_START, _END, _UNKNOWN)
    read = [tuple(w for w in s if w.isprintable() and w not in signs) for s in sentences]
    frequent = Counter(word for sentence in read for word in sentence).most_common(vocabulary)
    if not frequent:
        raise DataError("A language model needs text; there is not one word.")
    known = {word for word, _ in frequent}
    counts = _counts(read, known, order)
    lines = ["\\data\\", *(f"ngram {n}={len(c)}" for n, c in _sizes(counts, known)), ""]
    lower: dict[Gram, float] = {}
    weights: list[dict[Gram, float]] = [_weights(counts[n]) for n in range(order)]
    for n in range(order):
        found = _probabilities(counts[n], weights[n], lower, known)
        lines.append(f"\\{n + 1}-grams:")
        for gram in sorted(found):
            backoff = weights[n + 1].get(gram) if n + 1 < order else None
            tail = "" if n + 1 == order else f"\t{math.log10(backoff):.7g}" if backoff else "\t0"
            shown = -99.0 if gram == (_START,) else math.log10(found[gram])
            lines.append(f"{shown:.7g}\t{' '.join(gram)}{tail}")
        lines.append("")
        lower = found
    write_atomic(path, "\n".join([*lines, "\\end\\", ""]))
    return sum(len(c) for _, c in _sizes(counts, known))


def _counts(read: Sequence[Gram], known: set[str], order: int) -> list[Counter[Gram]]:
    """Returns the counts c of the formula, for n-grams of each order."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in read:
        words = (_START, *(w if w in known else _UNKNOWN for w in sentence), _END)
        for at in range(len(words) - order + 1):
            counts[-1][words[at : at + order]] += 1
        for n in range(2, order):  # nothing stands before <s>: these are counted as they occur
            if len(words) >= n:
                counts[n - 1][words[:n]] += 1
    for n in range(order - 1, 0, -1):
        for gram in counts[n]:
            counts[n - 1][gram[1:]] += 1
    return counts


def _sizes(counts: Sequence[Counter[Gram]], known: set[str]) -> list[tuple[int, set[Gram]]]:
    unigrams = {(word,) for word in (*known, _START, _END, _UNKNOWN)}
    return [(n + 1, set(c) | unigrams if n == 0 else set(c)) for n, c in enumerate(counts)]


def _discount(counts: Counter[Gram]) -> float:
    once = sum(1 for c in counts.values() if c == 1)
    twice = sum(1 for c in counts.values() if c == 2)
    return once / (once + 2 * twice) if once else 0.5


def _weights(counts: Counter[Gram]) -> dict[Gram, float]:
    """Returns the weight that each history leaves to shorter ones: D N(h) / c(h)."""
    discount = _discount(counts)
    total: Counter[Gram] = Counter()
    kinds: Counter[Gram] = Counter()
    for gram, count in counts.items():
        total[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    return {h: discount * kinds[h] / total[h] for h in total}


def _probabilities(
    counts: Counter[Gram], weights: dict[Gram, float], lower: dict[Gram, float], known: set[str]
) -> dict[Gram, float]:
    discount = _discount(counts)
    total: defaultdict[Gram, int] = defaultdict(int)
    for gram, count in counts.items():
        total[gram[:-1]] += count
    if not lower:
        words = {*known, _END, _UNKNOWN}
        rest = weights[()] / len(words)
        found: dict[Gram, float] = {
            (w,): max(counts[(w,)] - discount, 0) / total[()] + rest for w in words
        }
        found[_START,] = 0.0
        return found
    return {
        gram: (count - discount) / total[gram[:-1]] + weights[gram[:-1]] * lower[gram[1:]]
        for gram, count in counts.items()
    }
