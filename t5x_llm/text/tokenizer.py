"""Interface of every tokenizer."""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

from t5x_llm.core.errors import DataError

MAX_VOCABULARY = 4_000_000
# Longer texts are encoded in stretches of this many characters, so that memory stays bounded.
STRETCH = 200_000


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

    @property
    def special(self) -> dict[int, str]:
        """Special tokens by id, as the model file spells them; they stand for no text."""
        return {}

    @property
    def companions(self) -> dict[str, bytes]:
        """Files of its directory by name; those of the tokenizer are saved with it."""
        return {}

    def with_companions(self, companions: Mapping[str, bytes]) -> Tokenizer:
        """Returns the same tokenizer with other files beside it; itself where it keeps none."""
        return self

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
            _check_utf8(text)
            stretches = [text] if len(text) <= STRETCH else list(cut(text, STRETCH))
            parts += stretches
            counts.append(len(stretches))
        encoded = iter(self._encode(parts, threads))
        return [[i for _ in range(n) for i in next(encoded)] for n in counts]

    def encode_spans(
        self, text: str, specials: bool, start: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encodes a text and says which characters each token stands for.

        Args:
          text: any text; it is not cut into stretches.
          specials: whether special tokens that the text spells are those tokens; else they are
            characters, as ``encode`` has it.
          start: whether it begins a text; else it stands in the middle of one, where tokenizers
            that put a space in front of a text put none.

        Returns:
          The ids, and for each (start, stop) in characters of ``text``. The tokens of one
          character all have its place.

        Raises:
          DataError: the text is no UTF-8, or this kind of tokenizer cannot tell.
        """
        _check_utf8(text)
        return self._encode_spans(text, specials, start) if text else ([], [])

    def _encode_spans(
        self, text: str, specials: bool, start: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Does ``encode_spans`` for a text that is UTF-8 and not empty."""
        raise DataError(f"A {type(self).__name__} cannot say which characters a token stands for.")

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


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"Text cannot be written as UTF-8 (character {e.start}: {text[e.start]!r}). "
            "Remove unpaired surrogates before encoding."
        ) from e


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
