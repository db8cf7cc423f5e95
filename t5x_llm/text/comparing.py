"""Comparison of tokenizers: two belong together if their ids mean the same."""

from __future__ import annotations

from collections.abc import Iterable

from t5x_llm.core.errors import ConfigError
from t5x_llm.text.tokenizer import Tokenizer

_SPECIAL = ("bos_id", "eos_id")
# Written in several scripts, so that other merges of the same pieces are seen.
PROBES = (
    "The quick brown fox jumps over 12 lazy dogs; isn't it so? def f(x):\n    return x + 1",
    "春眠不觉晓，处处闻啼鸟。模型从文字中学习。",
)


NAMES = "one", "the other"


def difference(
    first: Tokenizer,
    second: Tokenizer,
    texts: Iterable[str] = PROBES,
    names: tuple[str, str] = NAMES,
) -> str:
    """Finds in what two tokenizers differ, for a model that both are used with.

    Equal fingerprints settle it. Files that are written differently (a SentencePiece model and the
    tokenizer.json made of it, a file saved again by another program) are compared by what their ids
    mean, by the ids of begin and end where both have them, and by the ids that ``texts`` get.

    Args:
      first: a tokenizer.
      second: the other.
      texts: texts that both encode.
      names: what the two are called in the answer.

    Returns:
      The first difference in words, without a full stop; "" if there is none.
    """
    if first.fingerprint == second.fingerprint:
        return ""
    longer = max(first, second, key=lambda each: each.vocab_size)
    beyond = range(min(first.vocab_size, second.vocab_size), longer.vocab_size)
    if any(longer.decode([i]) for i in beyond):  # tokens without text, such as one that pads, may
        return f"{names[0]} has {first.vocab_size:,} tokens, {names[1]} {second.vocab_size:,}"
    if found := differing_id(first, second, names):
        return found
    for name in _SPECIAL:
        ids = getattr(first, name), getattr(second, name)
        if None not in ids and ids[0] != ids[1]:
            return f"{name} is {ids[0]} in {names[0]}, {ids[1]} in {names[1]}"
    for text in texts:
        if first.encode(text) != second.encode(text):
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            return f"the text {shown!r} gets other ids of the same pieces"
    return ""


def differing_id(first: Tokenizer, second: Tokenizer, names: tuple[str, str] = NAMES) -> str:
    """Finds an id that means one thing in ``first`` and another in ``second``.

    Ids that only one of them has are passed over.

    Returns:
      The difference in words; "" if there is none.
    """
    for i in range(min(first.vocab_size, second.vocab_size)):
        if first.piece(i) == second.piece(i):
            continue
        # Two kinds of file may spell one piece differently, and text at its start too.
        texts = first.decode([i]), second.decode([i])
        if texts[0].strip(" ") != texts[1].strip(" ") or not texts[0].strip(" "):
            spelled = first.piece(i), second.piece(i)
            return f"id {i} is {spelled[0]!r} in {names[0]}, {spelled[1]!r} in {names[1]}"
    return ""


def check_same_tokenizer(
    field: str, first: Tokenizer, second: Tokenizer, names: tuple[str, str], remedy: str
) -> None:
    """Raises ConfigError, with both named, unless two tokenizers belong together.

    Args:
      field: what is refused.
      first: the tokenizer that ``field`` gives or brings along.
      second: the tokenizer that it meets.
      names: where each comes from.
      remedy: what to change.
    """
    if found := difference(first, second, names=names):
        received = f"{names[0]} (tokenizer {first.fingerprint[:12]})"
        wanted = f"the tokenizer of {names[1]} ({second.fingerprint[:12]}), but {found}"
        raise ConfigError(field, received, wanted, remedy)
