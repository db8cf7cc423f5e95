"""SentencePiece models, read so that no character is lost.

SentencePiece writes a space as U+2581 (a lower block), so a U+2581 in the text comes back as a
space. Here the model is read with the pieces' U+2581 turned into real spaces and with escaping
off: a U+2581 in the text is then a character like any other. Ids stay those of SentencePiece for
every other text.
"""

from __future__ import annotations

import os
from typing import Any

import sentencepiece

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_atomic, write_json
from t5x_llm.text import convert
from t5x_llm.text.tokenizer import MAX_VOCABULARY, Tokenizer, fingerprint

SPACE = "\u2581"


def parse(data: bytes, origin: str) -> Any:
    """The ModelProto of a SentencePiece BPE or unigram model.

    Raises:
      DataError: it is not one.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # generated at run time, unknown to type checkers
    try:
        proto = schema.ModelProto.FromString(data)
    except DecodeError:
        proto = None
    if proto is None or not proto.pieces or not proto.HasField("trainer_spec"):
        raise DataError(
            f"{origin} is neither a SentencePiece model nor a Hugging Face tokenizer.json "
            f"(it begins with {data[:16]!r})."
        )
    if len(proto.pieces) > MAX_VOCABULARY:
        raise DataError(f"{origin} has {len(proto.pieces):,} pieces: more than {MAX_VOCABULARY:,}.")
    kind = schema.TrainerSpec.ModelType.Name(proto.trainer_spec.model_type)
    if kind not in ("BPE", "UNIGRAM") or proto.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(f"{origin} is a SentencePiece {kind} model; BPE and UNIGRAM can be read.")
    return proto


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece BPE or unigram model.

    Args:
      data: the model file.
      origin: where it came from, for messages.

    Raises:
      DataError: it is not a model, or one of another kind.
    """

    def __init__(self, data: bytes, origin: str = "tokenizer.model"):
        self._data = data
        proto = parse(data, origin)
        spaced = type(proto)()
        spaced.CopyFrom(proto)
        for piece in spaced.pieces:
            piece.piece = piece.piece.replace(SPACE, " ")
        if len({p.piece for p in spaced.pieces}) < len(spaced.pieces):
            raise DataError(f"{origin} has pieces that differ only in how they write a space.")
        normalizer = spaced.normalizer_spec
        self._strip = normalizer.add_dummy_prefix
        # Added here rather than by SentencePiece, so that only the start of a text gets it.
        self._prefix = normalizer.add_dummy_prefix and not normalizer.remove_extra_whitespaces
        normalizer.escape_whitespaces = False
        normalizer.add_dummy_prefix = self._strip and not self._prefix
        self._proto = spaced
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=spaced.SerializeToString()
            )
        except (RuntimeError, OSError) as e:
            raise DataError(f"{origin} is a damaged SentencePiece model: {e}.") from e
        special = (spaced.pieces[0].UNKNOWN, spaced.pieces[0].CONTROL)
        self._special = {i for i, p in enumerate(spaced.pieces) if p.type in special}

        self.vocab_size = len(spaced.pieces)
        self.unk_id, self.bos_id, self.eos_id, self.pad_id = (
            i if i >= 0 else None
            for i in (
                self._processor.unk_id(),
                self._processor.bos_id(),
                self._processor.eos_id(),
                self._processor.pad_id(),
            )
        )
        self.fingerprint = fingerprint(data)

    def id_of(self, piece: str) -> int | None:
        found = self._processor.piece_to_id(piece)
        return found if self._proto.pieces[found].piece == piece else None

    @property
    def proto(self) -> Any:
        """The ModelProto, as its file has it."""
        return parse(self._data, "the model")

    def piece(self, id: int) -> str:
        return self._proto.pieces[id].piece

    def spell(self, piece: str) -> list[int]:
        if not self._strip or self._prefix:
            return self._processor.encode(piece)
        # SentencePiece itself puts a space in front: only the start of a text gets it.
        marked = self._processor.encode("." + piece)
        return marked[len(self._processor.encode(".")) :]

    def encode_batch(self, texts, threads: int = 1) -> list[list[int]]:
        return super().encode_batch([" " + t if self._prefix and t else t for t in texts], threads)

    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=threads)

    def _decode(self, ids: list[int]) -> str:
        text = self._processor.decode([i for i in ids if i not in self._special])
        return text.removeprefix(" ") if self._strip else text

    def save(self, directory: str | os.PathLike[str]) -> None:
        root = as_path(directory)
        write_atomic(root / "tokenizer.model", self._data)
        write_atomic(root / "tokenizer.json", convert.tokenizer_json(self._proto, self._strip))
        for name, content in convert.companions(self._names(), self._specials()).items():
            write_json(root / name, content)

    def _names(self) -> dict[str, str]:
        ids = {"unk": self.unk_id, "bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        pieces = self._proto.pieces
        return {f"{k}_token": pieces[i].piece for k, i in ids.items() if i is not None}

    def _specials(self) -> dict[int, str]:
        return {i: self._proto.pieces[i].piece for i in sorted(self._special)}
