"""New merges for a byte-level BPE tokenizer.json, learned on top of its own.

The old tokenizer splits the new text; each of its tokens is then a letter, and BPE is trained on
words of these letters. What it finds joins whole old tokens, so every new merge can be reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
from tokenizers import models, trainers

from t5x_llm.core.errors import ConfigError
from t5x_llm.text.bytes import letters
from t5x_llm.text.hf_json import HFTokenizer
from t5x_llm.text.load import SENTENCEPIECE_FILES

_FIRST = 0xE000  # of the letters that stand for tokens: past the surrogates
_LAST = 0x10FFFF
# ASCII, Latin-1's marks and general punctuation (dashes, quotes), of which the end may be missing.
_SHARED = re.compile(rb"(?:[\x00-\x7f]|\xc2[\x80-\xbf]?|\xe2(?:[\x80\x81][\x80-\xbf]?)?)*")
# Files beside a tokenizer.json that hold its vocabulary once more.
_COPIES = ("vocab.json", "merges.txt", "vocab.txt", *SENTENCEPIECE_FILES)


def admissible(piece: bytes, ascii: bool) -> bool:
    """Returns True where a piece of these bytes of UTF-8 may be added to the vocabulary."""
    return ascii or not (_SHARED.fullmatch(piece) or re.search(rb"[A-Za-z0-9]", piece))


def learn_merges(
    base: HFTokenizer, texts: Sequence[str], most: int, ascii: bool, max_length: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """New pieces in the order learned, and the rules that make them (some make old pieces).

    Args:
      base: byte-level BPE.
      texts: of the new language.
      most: pieces at most.
      ascii: whether pieces may hold ASCII letters and digits.
      max_length: characters of a piece at most.

    Raises:
      ConfigError: ``base`` is of another kind.
    """
    content = _byte_level(base)
    names = {i: token for token, i in content["model"]["vocab"].items()}
    if max(names) > _LAST - _FIRST:
        raise ConfigError("tokenizer", f"ids up to {max(names):,}", f"at most {_LAST - _FIRST:,}")
    pseudo = tokenizers.Tokenizer(models.BPE())
    alphabet = {i for word in _words(base, texts, names, ascii) for i in word}
    # Several rules may make one piece, and some are left out below: so a few more.
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + most + most // 4 + 100,
        min_frequency=2,
        show_progress=False,
        max_token_length=4 * max_length,
    )
    words = _words(base, texts, names, ascii)
    pseudo.train_from_iterator(("".join(chr(_FIRST + i) for i in w) for w in words), trainer)
    pieces: dict[str, None] = {}
    merges: list[tuple[str, str]] = []
    known = set(names.values())
    for pair in json.loads(pseudo.to_str())["model"]["merges"]:
        left, right = ("".join(names[ord(c) - _FIRST] for c in part) for part in pair)
        if left not in known or right not in known or len(pieces) == most:
            continue
        text = _bytes(left + right)
        if not admissible(text, ascii) or len(text.decode(errors="replace")) > max_length:
            continue
        if left + right not in known:
            pieces[left + right] = None
            known.add(left + right)
        merges.append((left, right))
    return list(pieces), merges


def grown_json(
    base: HFTokenizer, pieces: Sequence[str], merges: Sequence[tuple[str, str]]
) -> HFTokenizer:
    """``base`` with these pieces after its own, and the rules that these suffice for."""
    content = _byte_level(base)
    model = content["model"]
    # The library numbers an added token that is not in the vocabulary by the size of that, whatever
    # the file says: so those of the old tokenizer move into it, and keep their ids.
    moved = {t["content"]: t["id"] for t in content.get("added_tokens", ())}
    model["vocab"] = moved | model["vocab"]
    if taken := set(model["vocab"]) & set(pieces):
        raise ConfigError(
            "tokenizer", f"the added token {min(taken)!r}", "none that is a new piece"
        )
    known = set(model["vocab"]) | set(pieces)
    for i, piece in enumerate(pieces, start=base.vocab_size):
        model["vocab"][piece] = i
    old = {tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]}
    spaced = bool(model["merges"]) and isinstance(model["merges"][0], str)
    for left, right in merges:
        if {left, right, left + right} <= known and (left, right) not in old:
            model["merges"].append(f"{left} {right}" if spaced else [left, right])
    kept = {name: raw for name, raw in base.companions.items() if name not in _COPIES}
    data = json.dumps(content, ensure_ascii=False).encode()
    grown = HFTokenizer(data, "the grown tokenizer.json", kept)
    for token, i in moved.items():
        if i in base.special and i in grown.encode(token):
            raise ConfigError(
                "tokenizer",
                f"special token {token!r}",
                "one that is several words: this tokenizer looks words up before it merges, so the "
                "text of that name would become the token",
            )
    return grown


def _byte_level(base: HFTokenizer) -> dict[str, Any]:
    content = json.loads(base.data)
    model = content.get("model", {})
    decoder = json.dumps(content.get("decoder"))
    if model.get("type") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in decoder:
        raise ConfigError(
            "tokenizer",
            f"a tokenizer.json of type {model.get('type')}",
            "a SentencePiece model, or a byte-level BPE tokenizer.json",
            "Give the tokenizer.model that it was made from.",
        )
    return content


def _words(
    base: HFTokenizer, texts: Sequence[str], names: dict[int, str], ascii: bool
) -> Iterator[list[int]]:
    """Runs of tokens that may become one: within a word, and of the new text's kind."""
    raw = {i: _bytes(name) for i, name in names.items()}
    foreign = {
        i: ascii or not (name.isascii() or re.search(rb"[A-Za-z0-9]", name))
        for i, name in raw.items()
    }
    # A space may stand before a word.
    kept = {i for i, name in raw.items() if name and (foreign[i] or name == b" ")}
    for ids, places in base.encode_words(texts):
        word: list[int] = []
        at = None
        for i, place in zip(ids, places, strict=True):
            if place != at or i not in kept:
                if len(word) > 1:
                    yield word
                word = []
            at = place
            if i in kept:
                word.append(i)
        if len(word) > 1:
            yield word


def _bytes(piece: str) -> bytes:
    table = letters()
    return bytes(table[c] for c in piece if c in table)
