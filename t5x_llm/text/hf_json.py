"""Hugging Face tokenizer.json files, read by the ``tokenizers`` library."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_atomic, write_json
from t5x_llm.text import convert
from t5x_llm.text.tokenizer import MAX_VOCABULARY, Tokenizer, fingerprint

# What families call their special tokens, for a tokenizer.json that comes without a config.
USUAL = {
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "unk_token": ("<unk>", "[UNK]"),
}


class HFTokenizer(Tokenizer):
    """A tokenizer.json.

    Args:
      data: the file.
      origin: where it came from, for messages.
      companions: other files of its directory by name (tokenizer_config.json, ...); they name the
        special tokens and are saved along with it.

    Raises:
      DataError: it is malformed.
    """

    def __init__(
        self,
        data: bytes,
        origin: str = "tokenizer.json",
        companions: dict[str, bytes] | None = None,
    ):
        self._data, self._companions = data, companions or {}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # the library's panics derive from BaseException
            raise DataError(f"{origin} is not a usable Hugging Face tokenizer.json: {e}.") from e
        # A document that spells "</s>" is text; only the caller adds special tokens.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"{origin} has an empty vocabulary.")
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > MAX_VOCABULARY:
            raise DataError(
                f"{origin} has token ids up to {self.vocab_size - 1:,}: more than "
                f"{MAX_VOCABULARY:,} is no vocabulary."
            )
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i: t.content for i, t in added.items() if t.special}
        self._names = self._special_names(origin)
        ids = {k: vocabulary.get(v) for k, v in self._names.items()}
        self.bos_id, self.eos_id = ids.get("bos_token"), ids.get("eos_token")
        self.pad_id, self.unk_id = ids.get("pad_token"), ids.get("unk_token")
        self.add_bos = self._adds_bos()
        self.fingerprint = fingerprint(data)

    def _adds_bos(self) -> bool:
        """Returns ``add_bos_token`` of tokenizer_config.json; without it, what the file itself
        does.
        """
        said = json.loads(self._companions.get("tokenizer_config.json", b"{}")).get("add_bos_token")
        first = self._tokenizer.encode("a").ids[:1]
        return said if isinstance(said, bool) else first == [self.bos_id]

    def id_of(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    @property
    def data(self) -> bytes:
        """The file."""
        return self._data

    @property
    def companions(self) -> dict[str, bytes]:
        """The files of its directory that are saved with it, by name."""
        return dict(self._companions)

    def piece(self, id: int) -> str:
        return self._tokenizer.id_to_token(id) or ""

    def spell(self, piece: str) -> list[int]:
        return [token.id for token in self._tokenizer.model.tokenize(piece)]

    def encode_words(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int | None]]]:
        """Yields for each text its ids, and for each id the number of the word that it is a part
        of.
        """
        for text in texts:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            yield encoding.ids, encoding.word_ids

    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [e.ids for e in encodings]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, directory: str | os.PathLike[str]) -> None:
        root = as_path(directory)
        write_atomic(root / "tokenizer.json", self._data)
        for name, content in convert.companions(self._names, self._special).items():
            if name not in self._companions:
                write_json(root / name, content | self._bos_as_written(name))
        for name, raw in self._companions.items():
            write_atomic(root / name, raw)

    def _bos_as_written(self, name: str) -> dict[str, Any]:
        """Returns the ``add_bos_token`` that a made-up config repeats so that nothing changes."""
        if name != "tokenizer_config.json":
            return {}
        return {"add_bos_token": self.add_bos}

    def _special_names(self, origin: str) -> dict[str, str]:
        names: dict[str, str] = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            if file in self._companions:
                try:
                    content = json.loads(self._companions[file])
                except ValueError as e:
                    raise DataError(f"{file} beside {origin} is not JSON: {e}.") from e
                for key in USUAL:
                    value = content.get(key)
                    value = value.get("content") if isinstance(value, dict) else value
                    if isinstance(value, str):
                        names[key] = value
        if not self._companions:
            known = set(self._special.values())
            for key, usual in USUAL.items():
                found = next((n for n in usual if n in known), None)
                if found is not None:
                    names[key] = found
        return names
