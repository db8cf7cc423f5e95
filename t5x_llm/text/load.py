"""Finds a tokenizer on disk and loads it by its content."""

from __future__ import annotations

import os
from typing import Any

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.paths import as_path
from t5x_llm.text.tokenizer import Tokenizer

MAX_FILE_BYTES = 512 * 1024**2
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer from a file or a directory, recognised by content and not by name.

    In a directory with both a SentencePiece model and a tokenizer.json, the SentencePiece model
    is taken if the two have the same size; otherwise tokens were added to tokenizer.json.

    Args:
      path: a SentencePiece model, a Hugging Face tokenizer.json, or a directory with either; or
        ``bytes``, for one token a byte.

    Raises:
      ConfigError: nothing is there.
      DataError: the file is neither, is damaged, or is absurdly large.
    """
    from t5x_llm.text.bytes import BYTES, byte_tokenizer
    from t5x_llm.text.hf_json import HFTokenizer
    from t5x_llm.text.sentencepiece import SentencePieceTokenizer

    if path == BYTES:
        return byte_tokenizer()
    root = as_path(path)
    if not root.exists():
        raise ConfigError(
            "tokenizer", str(path), "a file or directory that exists",
            "Check the path, or train a tokenizer first (t5x-llm prepare).",
        )  # fmt: skip
    if not root.is_dir():
        data = _read(root)
        if data.lstrip()[:1] == b"{":
            return HFTokenizer(data, f"{root}", _companions(root.parent))
        return SentencePieceTokenizer(data, f"{root}")

    model = next((root / n for n in SENTENCEPIECE_FILES if (root / n).exists()), None)
    json = root / "tokenizer.json"
    if model is None and not json.exists():
        raise DataError(
            f"No tokenizer in {root}: expected tokenizer.json or one of "
            f"{', '.join(SENTENCEPIECE_FILES)}."
        )
    if model is None:
        return HFTokenizer(_read(json), f"{json}", _companions(root))
    pieces = SentencePieceTokenizer(_read(model), f"{model}")
    if json.exists():
        whole = HFTokenizer(_read(json), f"{json}", _companions(root))
        if whole.vocab_size != pieces.vocab_size:
            return whole
    return pieces


def _read(path: Any) -> bytes:
    size = path.stat().length
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {size:,} bytes; a tokenizer has at most {MAX_FILE_BYTES:,}.")
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"Cannot read the tokenizer {path}: {e.strerror or e}.") from e


def _companions(directory: Any) -> dict[str, bytes]:
    """The small files that Hugging Face keeps beside a tokenizer.json."""
    names = (
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "vocab.json", "merges.txt",
    )  # fmt: skip
    return {n: _read(directory / n) for n in names if (directory / n).exists()}
