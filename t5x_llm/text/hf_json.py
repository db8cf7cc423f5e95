"""Hugging Face tokenizer.json files, read by the ``tokenizers`` library."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_atomic
from t5x_llm.text import convert
from t5x_llm.text.companions import CONFIG, AddedToken, Companions, dumped
from t5x_llm.text.tokenizer import MAX_VOCABULARY, Tokenizer, fingerprint


class HFTokenizer(Tokenizer):
    """A tokenizer.json.

    Args:
      data: the file.
      origin: where it came from, for messages.
      companions: other files of its directory by name (tokenizer_config.json, ...); they name the
        special tokens, may add tokens, and are saved along with it. config.json and
        generation_config.json among them are read for ids alone.

    Raises:
      DataError: it is malformed, or its tokens do not have the ids that it says.
    """

    def __init__(
        self,
        data: bytes,
        origin: str = "tokenizer.json",
        companions: Mapping[str, bytes] | None = None,
    ):
        self._companions = Companions(dict(companions or {}), origin)
        content = _parsed(data)
        if content is not None and with_added(content, self._companions.added, origin):
            data = _dumped(content)
        self._data = data
        try:
            if content is not None and _named_special(content, self._companions.named.values()):
                data = _dumped(content)
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
        if content is not None:
            check_ids(content, vocabulary, origin)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i: t.content for i, t in added.items() if t.special}
        self._names = self._companions.special_names(self._special, vocabulary)
        ids = {k: vocabulary.get(v) for k, v in self._names.items()}
        self.bos_id, self.eos_id = ids.get("bos_token"), ids.get("eos_token")
        self.pad_id, self.unk_id = ids.get("pad_token"), ids.get("unk_token")
        self.add_bos = self._adds_bos()
        self.fingerprint = fingerprint(self._data)

    def _adds_bos(self) -> bool:
        """Returns ``add_bos_token`` of tokenizer_config.json; without it, what the file itself
        does.
        """
        said = self._companions.add_bos
        if said is not None or self.bos_id is None:
            return bool(said)
        return self._tokenizer.encode("a").ids[:1] == [self.bos_id]

    @property
    def special(self) -> dict[int, str]:
        return dict(self._special)

    def id_of(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    @property
    def data(self) -> bytes:
        """The file."""
        return self._data

    @property
    def companions(self) -> dict[str, bytes]:
        """The files of its directory that are saved with it, by name."""
        return dict(self._companions.files)

    def with_companions(self, companions: Mapping[str, bytes]) -> HFTokenizer:
        return HFTokenizer(self._data, self._companions.origin, companions)

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

    def _encode_spans(
        self, text: str, specials: bool, start: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        coder = self._placing[specials]
        if start:
            encoding = coder.encode(text, add_special_tokens=False)
            spans = encoding.offsets
            # A space that is put in front has the place of the first character.
            if len(spans) > 1 and spans[0] != spans[1] and spans[0][1] > spans[1][0]:
                spans[0] = (spans[0][0], spans[1][0])
            return encoding.ids, spans
        for before in ("a", "\n", ".", "0", "一"):
            encoding = coder.encode(before + text, add_special_tokens=False)
            ids, size = encoding.ids, len(before)
            spans = [(a - size, b - size) for a, b in encoding.offsets]
            skip = sum(b <= 0 for _, b in spans)
            # A token of both, or one that stands for nothing, would belong to neither side.
            if all(a >= 0 for a, _ in spans[skip:]):
                return ids[skip:], spans[skip:]
        raise DataError(
            f"The tokenizer {self._companions.origin} joins {text[:20]!r} to whatever is before it."
        )

    @functools.cached_property
    def _placing(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """Copies whose offsets keep spaces; the second takes special tokens for what they are."""
        content = json.loads(self._tokenizer.to_str())
        content["post_processor"] = None
        made = []
        for specials in (False, True):
            coder = tokenizers.Tokenizer.from_str(json.dumps(content))
            coder.encode_special_tokens = not specials
            made.append(coder)
        return made[0], made[1]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, directory: str | os.PathLike[str]) -> None:
        root = as_path(directory)
        files = self._companions.saved(self._names)
        for name, content in convert.companions(self._names, self._special).items():
            if name == CONFIG:
                content = content | {"add_bos_token": self.add_bos}
            files.setdefault(name, dumped(content))
        for name, raw in (files | {"tokenizer.json": self._data}).items():
            write_atomic(root / name, raw)


def _parsed(data: bytes) -> dict[str, Any] | None:
    """Returns a tokenizer.json; None where it is none, which the library then says better."""
    try:
        content = json.loads(data)
        _ids(content)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    return content


def _dumped(content: dict[str, Any]) -> bytes:
    # Half of a surrogate pair, which JSON can write, is left to the library to refuse.
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


def with_added(content: dict[str, Any], added: Mapping[int, AddedToken], origin: str) -> bool:
    """Puts tokens that other files add to it into a tokenizer.json; returns True where there were.

    Raises:
      DataError: an added token would take the id of another.
    """
    old = {token["content"] for token in content.get("added_tokens") or ()}
    new = [(i, token) for i, token in sorted(added.items()) if token.content not in old]
    if not new:
        return False
    names = {i: token for token, i in _ids(content).items()}
    for i, token in new:
        if names.get(i, token.content) != token.content:
            raise DataError(
                f"The files beside {origin} add {token.content!r} with id {i}, which is "
                f"{names[i]!r}. They belong to another tokenizer."
            )
    more = [{"id": i, **dataclasses.asdict(token)} for i, token in new]
    content["added_tokens"] = [*(content.get("added_tokens") or ()), *more]
    return True


def _named_special(content: dict[str, Any], names: Iterable[str | None]) -> bool:
    """Marks added tokens that other files name as special, as transformers does; True if any was
    not so marked.
    """
    plain = [t for t in content.get("added_tokens") or () if not t.get("special")]
    named = set(names)
    found = [token for token in plain if token["content"] in named]
    for token in found:
        token["special"] = True
    return bool(found)


def _ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids that a tokenizer.json says its tokens have."""
    vocabulary = content["model"].get("vocab") or {}
    if not isinstance(vocabulary, dict):
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    added = content.get("added_tokens") or ()
    return {**vocabulary, **{token["content"]: token["id"] for token in added}}


def check_ids(content: Mapping[str, Any], loaded: Mapping[str, int], origin: str) -> None:
    """Raises DataError if a token got another id on loading than its file says.

    The library numbers added tokens that are not in the vocabulary from the vocabulary's size on,
    whatever their ids in the file are.
    """
    for token, i in _ids(content).items():
        if loaded.get(token) != i:
            raise DataError(
                f"{origin} says that {token!r} is token {i}; read by the tokenizers library it is "
                f"{loaded.get(token)}, which may be another token's id. Number the added tokens "
                "from the size of the vocabulary on, or put them into the vocabulary too."
            )
