"""Finds a tokenizer on disk and loads it by its content."""

from __future__ import annotations

import os
from typing import Any

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.paths import as_path
from t5x_llm.text.companions import FILES, MODELS_OWN, TEMPLATES, Companions
from t5x_llm.text.tokenizer import Tokenizer

MAX_FILE_BYTES = 512 * 1024**2
JSON = "tokenizer.json"
SENTENCEPIECE_FILES = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model"),
    *("spm.model", "tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3"),
)
_PAIR, _WORDS = ("vocab.json", "merges.txt"), "vocab.txt"
# Vocabularies that nothing here reads.
UNREADABLE = (
    *("tekken.json", "ice_text.model", "vocab.bpe", "encoder.json", "rwkv_vocab_v20230424.txt"),
    *("qwen.tiktoken", "bpe.codes", "vocab.json", "dict.txt"),
)
# Both readings of one tokenizer agree on this, or they are not of one.
_PROBE = "  a\n\t1 23, é 你好  <b>\r\n😀 "


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer from a file or a directory, recognised by content and not by name.

    A directory may hold a tokenizer.json, a SentencePiece model (LLaMA, T5, XLM-R), GPT-2's
    vocab.json and merges.txt, BERT's vocab.txt or LLaMA-3's tiktoken file, with the small files
    that name special tokens, add tokens and bring a chat template; these are kept.

    Where a SentencePiece model lies beside a tokenizer.json, it is taken if both have the same
    pieces and special tokens; otherwise tokenizer.json is, as in transformers.

    Args:
      path: a file or a directory; or ``bytes``, for one token a byte.

    Raises:
      ConfigError: nothing is there.
      DataError: the files are of no kind that is known, are damaged or absurdly large, or give a
        token two ids.
    """
    from t5x_llm.text.bytes import BYTES, byte_tokenizer

    if path == BYTES:
        return byte_tokenizer()
    root = as_path(path)
    if not root.exists():
        raise ConfigError(
            "tokenizer", str(path), "a file or directory that exists",
            "Check the path, or train a tokenizer first (t5x-llm prepare).",
        )  # fmt: skip
    if root.is_dir():
        return _from_directory(root)
    data = _read(root)
    beside = _companions(root.parent)
    if root.name in (*_PAIR, _WORDS):
        return _from_vocabulary(root.parent, root.name == _WORDS, beside)
    if data.lstrip()[:1] == b"{":
        return _json(data, root, {**_copies(root.parent), **beside})
    if root.name not in SENTENCEPIECE_FILES:
        beside = {}  # Of a model under a name of its own, nobody knows what lies beside it.
    return _model(data, root, beside)


def has_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """Returns True where ``load_tokenizer`` would find something to load, whole or damaged."""
    root = as_path(directory)
    there = {name for name in (JSON, *SENTENCEPIECE_FILES, *_PAIR, _WORDS) if _is(root, name)}
    return bool(there - set(_PAIR)) or there >= set(_PAIR)


def unreadable(directory: str | os.PathLike[str]) -> list[str]:
    """Returns names of files that belong to tokenizers of kinds which are not read here."""
    root = as_path(directory)
    return [name for name in UNREADABLE if _is(root, name)]


def _is(root: Any, name: str) -> bool:
    return (root / name).exists()


def _from_directory(root: Any) -> Tokenizer:
    from t5x_llm.text.sentencepiece import SentencePieceTokenizer
    from t5x_llm.text.vocabularies import is_tiktoken

    models = [root / name for name in SENTENCEPIECE_FILES if _is(root, name)]
    if not has_tokenizer(root):
        found = unreadable(root)
        raise DataError(
            f"No tokenizer in {root}: expected tokenizer.json, one of "
            f"{', '.join(SENTENCEPIECE_FILES[:3])}, vocab.json with merges.txt, or vocab.txt"
            + (f"; {', '.join(found)} cannot be read here." if found else ".")
        )
    beside = _companions(root)
    if not models:
        if not _is(root, JSON):
            return _from_vocabulary(root, not _is(root, _PAIR[1]), beside)
        return _json(_read(root / JSON), root / JSON, {**_copies(root), **beside})
    data = _read(models[0])
    if not _is(root, JSON):
        return _model(data, models[0], beside)
    raw = _read(root / JSON)
    whole = _json(raw, root / JSON, {**_copies(root), **beside})
    if is_tiktoken(data):
        return whole
    pieces = SentencePieceTokenizer(data, f"{models[0]}", {**beside, JSON: raw})
    if whole.add_bos != pieces.add_bos and "add_bos_token" not in Companions(beside).config:
        pieces.add_bos = whole.add_bos
    if pieces.data == data and _alike(pieces, whole):
        return pieces
    # The model is an older part of it: kept, for those who read nothing else.
    return _json(raw, root / JSON, {**whole.companions, models[0].name: data})


def _alike(pieces: Tokenizer, whole: Tokenizer) -> bool:
    """Returns True where a model and a tokenizer.json are two spellings of one tokenizer."""
    if pieces.vocab_size != whole.vocab_size or pieces.special.keys() != whole.special.keys():
        return False
    space = "\u2581"
    for i in range(pieces.vocab_size):
        if pieces.piece(i) != whole.piece(i).replace(space, " "):
            return False
    return pieces.encode(_PROBE) == whole.encode(_PROBE)


def _json(data: bytes, path: Any, beside: dict[str, bytes]) -> Tokenizer:
    from t5x_llm.text.hf_json import HFTokenizer

    return HFTokenizer(data, f"{path}", beside)


def _model(data: bytes, path: Any, beside: dict[str, bytes]) -> Tokenizer:
    from t5x_llm.text.sentencepiece import SentencePieceTokenizer
    from t5x_llm.text.vocabularies import is_tiktoken, ranks

    if is_tiktoken(data):
        return _json(ranks(data, Companions(beside, f"{path}")), path, beside)
    return SentencePieceTokenizer(data, f"{path}", beside)


def _from_vocabulary(root: Any, words: bool, beside: dict[str, bytes]) -> Tokenizer:
    from t5x_llm.text.vocabularies import byte_level, word_pieces

    names = (_WORDS,) if words else _PAIR
    for name in names:
        if not _is(root, name):
            raise DataError(f"{root} has no {name}, which belongs to {names[0]}.")
    files = {name: _read(root / name) for name in names} | beside
    origin = f"{root}/{' and '.join(names)}"
    make = word_pieces if words else byte_level
    return _json(make(Companions(files, origin)), origin, files)


def _read(path: Any) -> bytes:
    size = path.stat().length
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {size:,} bytes; a tokenizer has at most {MAX_FILE_BYTES:,}.")
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"Cannot read the tokenizer {path}: {e.strerror or e}.") from e


def _companions(directory: Any) -> dict[str, bytes]:
    """The small files that Hugging Face keeps beside a tokenizer, and what the model says of it."""
    found = {n: _read(directory / n) for n in (*FILES, *MODELS_OWN) if _is(directory, n)}
    templates = directory / TEMPLATES
    if templates.is_dir():
        for path in sorted(templates.iterdir()):
            if path.name.endswith(".jinja"):
                found[f"{TEMPLATES}/{path.name}"] = _read(path)
    return found


def _copies(directory: Any) -> dict[str, bytes]:
    """The files beside a tokenizer.json that hold its vocabulary once more."""
    return {n: _read(directory / n) for n in (*_PAIR, _WORDS) if _is(directory, n)}
