"""What every tokenizer can do, and how one is found on disk."""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterable, Sequence

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.core.paths import as_path

MAX_FILE_BYTES = 512 * 1024**2
MAX_VOCABULARY = 4_000_000
# Longer texts are encoded in stretches of this many characters, so that memory stays bounded.
STRETCH = 200_000

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    ``decode(encode(text)) == text`` for every text that UTF-8 can carry, if the tokenizer was
    trained here or is byte-level; a file from elsewhere may normalise (Unicode forms, spaces).

    Attributes:
      vocab_size: one more than the largest id.
      bos_id, eos_id, pad_id, unk_id: ids of the special tokens; None where there is none.
      add_bos: whether a prompt begins with ``bos_id``.
      fingerprint: SHA-256 (hex) of the model file.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    add_bos: bool = True
    fingerprint: str

    @abc.abstractmethod
    def id_of(self, piece: str) -> int | None:
        """Id of the piece written so, special ones included; None if there is none."""

    @abc.abstractmethod
    def piece(self, id: int) -> str:
        """Returns a token as the model file spells it; another sign may stand for a space there."""

    @abc.abstractmethod
    def spell(self, piece: str) -> list[int]:
        """Ids that ``piece``, written so, gets in the middle of a text."""

    @abc.abstractmethod
    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        """Ids of short texts; a stretch after the first is not at the start of a text."""

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids that are all in the vocabulary."""

    @abc.abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files from which ``load_tokenizer`` and HF's AutoTokenizer make it again."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without special tokens; ``"</s>"`` in the text is five characters.

        Raises:
          DataError: the text holds half of a surrogate pair, which UTF-8 cannot carry.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Encodes several texts, each as ``encode`` does."""
        parts: list[str] = []
        counts: list[int] = []
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as e:
                raise DataError(
                    f"Text cannot be written as UTF-8 (character {e.start}: {text[e.start]!r}). "
                    "Remove unpaired surrogates before encoding."
                ) from e
            stretches = [text] if len(text) <= STRETCH else list(cut(text, STRETCH))
            parts += stretches
            counts.append(len(stretches))
        encoded = iter(self._encode(parts, threads))
        return [[i for _ in range(n) for i in next(encoded)] for n in counts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``. Special tokens have none, nor have ids beyond the vocabulary
        (rows that pad a model's embedding). Bytes that are not UTF-8 become U+FFFD.

        Raises:
          DataError: an id is negative.
        """
        ids = [int(i) for i in ids]
        if any(i < 0 for i in ids):
            raise DataError(f"Token id {min(ids)} is negative; ids are 0..{self.vocab_size - 1}.")
        return self._decode([i for i in ids if i < self.vocab_size])


def cut(text: str, limit: int) -> Iterable[str]:
    """Consecutive parts of ``text``, at most ``limit`` characters, at ends of lines if any."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1
        if end <= start + limit // 2:
            end = start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def fingerprint(data: bytes) -> str:
    """SHA-256 of a model file, in hex."""
    return hashlib.sha256(data).hexdigest()


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


def _read(path) -> bytes:
    size = path.stat().length
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} has {size:,} bytes; a tokenizer has at most {MAX_FILE_BYTES:,}.")
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"Cannot read the tokenizer {path}: {e.strerror or e}.") from e


def _companions(directory) -> dict[str, bytes]:
    """The small files that Hugging Face keeps beside a tokenizer.json."""
    names = (
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "vocab.json", "merges.txt",
    )  # fmt: skip
    return {n: _read(directory / n) for n in names if (directory / n).exists()}
