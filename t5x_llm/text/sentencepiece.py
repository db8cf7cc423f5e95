"""SentencePiece models, read so that no character is lost.

SentencePiece writes a space as U+2581 (a lower block), so a U+2581 in the text comes back as a
space. Here the model is read with the pieces' U+2581 turned into real spaces and with escaping
off: a U+2581 in the text is then a character like any other. Ids stay those of SentencePiece for
every other text.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import sentencepiece

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.text import convert
from t5x_llm.text.companions import CONFIG, KEYS, SPECIAL_MAP, Companions, dumped
from t5x_llm.text.pieces import appends_eos, fitted
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
      companions: other files of its directory by name, as ``HFTokenizer``; tokens that they add
        become pieces. A tokenizer.json among them is one of the same pieces.

    Raises:
      DataError: it is not a model, or one of another kind.
    """

    def __init__(
        self,
        data: bytes,
        origin: str = "tokenizer.model",
        companions: Mapping[str, bytes] | None = None,
    ):
        self._companions = Companions(dict(companions or {}), origin)
        proto = parse(data, origin)
        if fitted(proto, self._companions, origin):
            data = proto.SerializeToString(deterministic=True)
        self._data = data
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
        own = {
            "unk_token": self._processor.unk_id(),
            "bos_token": self._processor.bos_id(),
            "eos_token": self._processor.eos_id(),
            "pad_token": self._processor.pad_id(),
        }
        self._ids = self._named_ids({k: i for k, i in own.items() if i >= 0})
        self.unk_id, self.bos_id = self._ids.get("unk_token"), self._ids.get("bos_token")
        self.eos_id, self.pad_id = self._ids.get("eos_token"), self._ids.get("pad_token")
        said = self._companions.add_bos
        self.add_bos = said is not False and self.bos_id is not None
        self.fingerprint = fingerprint(data)

    def _named_ids(self, own: dict[str, int]) -> dict[str, int]:
        """Returns ids of special tokens by key: those that the companions name, else ``own``."""
        ids = dict(own)
        for key, name in self._companions.named.items():
            found = None if name is None else self.id_of(name)
            if name is None and key in ids:
                del ids[key]
            elif found is not None and key in KEYS:
                ids[key] = found
        return ids

    @property
    def special(self) -> dict[int, str]:
        return {i: self._proto.pieces[i].piece for i in sorted(self._special)}

    @property
    def companions(self) -> dict[str, bytes]:
        return dict(self._companions.files)

    def id_of(self, piece: str) -> int | None:
        found = self._processor.piece_to_id(piece)
        return found if self._proto.pieces[found].piece == piece else None

    @property
    def data(self) -> bytes:
        """The model file, with the pieces that the companions add."""
        return self._data

    @property
    def proto(self) -> Any:
        """The ModelProto, as its file has it."""
        return parse(self._data, "the model")

    def with_companions(self, companions: Mapping[str, bytes]) -> SentencePieceTokenizer:
        return SentencePieceTokenizer(self._data, self._companions.origin, companions)

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

    def _encode_spans(
        self, text: str, specials: bool, start: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for part in self._controls.split(text) if specials and self._special else [text]:
            known = self.id_of(part) if specials and part else None
            if known is not None and known in self._special:
                ids.append(known)
                spans.append((at, at + len(part)))
            elif part:
                some, places = self._placed(part, start and at == 0)
                ids += some
                spans += [(at + a, at + b) for a, b in places]
            at += len(part)
        return ids, spans

    def _placed(self, text: str, start: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids and places of a text without special tokens."""
        # What SentencePiece puts in front itself is kept away from a middle, see ``spell``.
        before = "." if not start and self._strip and not self._prefix else ""
        before = " " if start and self._prefix else before
        whole = before + text
        raw = self._processor.encode(whole, out_type="serialized_proto")
        pieces = _spelled(raw)
        skip = len(self._processor.encode(before)) if before == "." else 0
        # SentencePiece counts bytes; what follows counts characters.
        at = np.cumsum([0, *(len(c.encode()) for c in whole)])
        begins = np.searchsorted(at, [p.begin for p in pieces], "right") - 1 - len(before)
        ends = np.searchsorted(at, [p.end for p in pieces]) - len(before)
        places = list(zip(begins.clip(0).tolist(), ends.clip(0).tolist(), strict=True))
        # Of the bytes of a character, the last alone has a place.
        for i in reversed(range(len(places) - 1)):
            if places[i][0] == places[i][1] == places[i + 1][0]:
                places[i] = places[i + 1]
        return [p.id for p in pieces][skip:], places[skip:]

    @functools.cached_property
    def _controls(self) -> re.Pattern[str]:
        """Pattern of the special tokens, the longest first; splitting by it keeps them."""
        names = sorted((self.piece(i) for i in self._special), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})")

    def _decode(self, ids: list[int]) -> str:
        text = self._processor.decode([i for i in ids if i not in self._special])
        return text.removeprefix(" ") if self._strip else text

    def save(self, directory: str | os.PathLike[str]) -> None:
        root = as_path(directory)
        names = {k: self._proto.pieces[i].piece for k, i in self._ids.items()}
        files = self._companions.saved(names)
        files["tokenizer.model"] = self._data
        if "tokenizer.json" not in files:
            ends = appends_eos(self._companions)
            made = convert.tokenizer_json(
                self._proto, self._strip, self.bos_id if self.add_bos else None,
                self.eos_id if ends else None,
            )  # fmt: skip
            files["tokenizer.json"] = made.encode()
            config = convert.companions(names, self.special)
            config[CONFIG] |= {
                "add_bos_token": self.add_bos and self.bos_id is not None,
                "add_eos_token": ends and self.eos_id is not None,
            }
            # llama.cpp, as its converter reads it, puts a space in front unless told otherwise.
            config[CONFIG] |= {} if self._strip else {"add_prefix_space": False}
            files[CONFIG] = dumped(_merged(self._companions.config, config[CONFIG]))
            files.setdefault(SPECIAL_MAP, dumped(config[SPECIAL_MAP]))
        for name, raw in files.items():
            write_atomic(root / name, raw)


def _spelled(raw: bytes) -> Any:
    """Returns the pieces of an encoded text with their places, in bytes."""
    from sentencepiece import sentencepiece_pb2

    schema: Any = sentencepiece_pb2  # generated at run time, unknown to type checkers
    return schema.SentencePieceText.FromString(raw).pieces


# Of a config beside a SentencePiece model: what names code or a class that would build another
# tokenizer.json than the one that is written.
_REPLACED = (
    *("tokenizer_class", "added_tokens_decoder", "add_bos_token", "add_eos_token"),
    *("add_prefix_space", "auto_map", "vocab_file", "tokenizer_file", "from_slow"),
)


def _merged(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Returns tokenizer_config.json as it was, with what belongs to the tokenizer.json we make."""
    kept = {k: v for k, v in theirs.items() if k not in _REPLACED}
    given = theirs.get("added_tokens_decoder")
    decoder = ours["added_tokens_decoder"] | (given if isinstance(given, dict) else {})
    return ours | kept | {"added_tokens_decoder": decoder}
