"""The small files that Hugging Face keeps beside a tokenizer: special tokens, chat templates.

They name the tokens that begin and end a text, add tokens to the vocabulary, and say what else
belongs to a tokenizer (``model_max_length``, ``chat_template``). All are saved again as they were;
config.json and generation_config.json are read for ids of special tokens alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Container, Mapping
from typing import Any

from t5x_llm.core.errors import DataError

CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
# Read, and not saved with the tokenizer: they are the model's.
MODELS_OWN = ("config.json", "generation_config.json")
FILES = (
    CONFIG, SPECIAL_MAP, "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"
KEYS = ("bos_token", "eos_token", "pad_token", "unk_token")
_OTHERS = ("cls_token", "sep_token", "mask_token")
# What families call their special tokens, for a tokenizer whose files name none.
USUAL = {
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "unk_token": ("<unk>", "[UNK]"),
}


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a text before anything else.

    Attributes:
      content: as it is written.
      special: stands for no text; is matched only where the caller asks for it.
      single_word, lstrip, rstrip, normalized: as Hugging Face's AddedToken.
    """

    content: str
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclasses.dataclass(frozen=True)
class Companions:
    """Files of a tokenizer's directory, the vocabulary's aside.

    Attributes:
      files: content by name.
      origin: the tokenizer that they lie beside, for messages.
    """

    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    origin: str = "the tokenizer"

    def parsed(self, name: str) -> dict[str, Any]:
        """Returns the object in a JSON file; {} where there is no such file.

        Raises:
          DataError: it is not JSON, or no object. (Whoever reads the model says so of its files; a
            tokenizer may lie beside others of their names.)
        """
        if name not in self.files:
            return {}
        try:
            found = json.loads(self.files[name])
        except (ValueError, RecursionError) as e:
            if name in MODELS_OWN:
                return {}
            raise DataError(f"{name} beside {self.origin} is not JSON: {e}.") from e
        if not isinstance(found, dict):
            if name in MODELS_OWN:
                return {}
            raise DataError(f"{name} beside {self.origin} is no JSON object.")
        return found

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self.parsed(CONFIG)

    @functools.cached_property
    def kind(self) -> str:
        """Returns the tokenizer's class without 'Fast'; '' where no file names one."""
        for found in (self.config.get("tokenizer_class"), self._model.get("tokenizer_class")):
            if isinstance(found, str):
                return found.removesuffix("Fast")
        return ""

    @functools.cached_property
    def model_type(self) -> str:
        """``model_type`` of config.json, or ''."""
        found = self._model.get("model_type")
        return found if isinstance(found, str) else ""

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        return self.parsed("config.json")

    @property
    def add_bos(self) -> bool | None:
        """Returns ``add_bos_token``, None where it is not said."""
        said = self.config.get("add_bos_token")
        return said if isinstance(said, bool) else None

    @functools.cached_property
    def named(self) -> dict[str, str | None]:
        """Special tokens that the files name, by key; None for those that they say are absent."""
        names: dict[str, str | None] = {}
        for file in (SPECIAL_MAP, CONFIG):
            content = self.parsed(file)
            for key in (*KEYS, *_OTHERS):
                value = content.get(key)
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    names[key] = value
                elif key in content and value is None:
                    names.setdefault(key, None)
        return names

    @functools.cached_property
    def added(self) -> dict[int, AddedToken]:
        """Tokens by id that the files add to the vocabulary, or say are special."""
        found: dict[int, AddedToken] = {}
        special = {name for name in self.named.values() if name}
        for file in (SPECIAL_MAP, CONFIG):
            more = self.parsed(file).get("additional_special_tokens") or ()
            for token in more if isinstance(more, list) else ():
                token = token.get("content") if isinstance(token, dict) else token
                special |= {token} if isinstance(token, str) else set()
        for content, i in self.parsed("added_tokens.json").items():
            found[self._id(i)] = AddedToken(content, content in special)
        decoder = self.config.get("added_tokens_decoder")
        for i, token in (decoder if isinstance(decoder, dict) else {}).items():
            token = {"content": token} if isinstance(token, str) else token
            if isinstance(token, dict) and isinstance(token.get("content"), str):
                flags = {f.name for f in dataclasses.fields(AddedToken)[1:]}
                given = {k: token[k] for k in flags & token.keys() if isinstance(token[k], bool)}
                given.setdefault("special", token["content"] in special)
                found[self._id(i)] = AddedToken(token["content"], **given)
        return found

    def _id(self, value: Any) -> int:
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise DataError(f"An added token beside {self.origin} has the id {value!r}.")
        return int(text)

    def _model_ids(self, key: str) -> list[int]:
        """Ids that generation_config.json and config.json give a special token."""
        found: list[int] = []
        for file in reversed(MODELS_OWN):
            value = self.parsed(file).get(f"{key}_id")
            many = value if isinstance(value, list) else [value]
            found += [i for i in many if isinstance(i, int) and not isinstance(i, bool)]
        return found

    def special_names(
        self, special: Mapping[int, str], vocabulary: Container[str]
    ) -> dict[str, str]:
        """Returns the tokens that begin, end and pad a text or stand for the unknown, by key.

        They are those that the files name. Where they name neither begin nor end, the usual names
        of special tokens are taken, and then the model's ids; the latter also decide where several
        tokens have usual names.

        Args:
          special: special tokens by id.
          vocabulary: all tokens; a name that is none of them is no name.
        """
        said = {k: v for k, v in self.named.items() if v is None or v in vocabulary}
        names = {k: v for k, v in said.items() if k in KEYS and v is not None}
        if "bos_token" not in said and "eos_token" not in said:
            wanted = ["bos_token", "eos_token"]
        else:
            wanted = [] if "eos_token" in said else ["eos_token"]
        if not self.named:
            wanted += ["pad_token", "unk_token"]
        usual_ends = {*USUAL["bos_token"], *USUAL["eos_token"]}
        for key in wanted:
            ids = [i for i in self._model_ids(key) if i in special]
            known = [n for n in USUAL[key] if n in special.values()]
            sure = [special[i] for i in ids if special[i] in (*known, *usual_ends)]
            found = [*sure, *known, *(special[i] for i in ids)]
            if found:
                names[key] = found[0]
        return names

    def saved(self, names: Mapping[str, str]) -> dict[str, bytes]:
        """Returns the files to save: as they were, with special tokens that they do not name.

        Args:
          names: of all special tokens, by key.
        """
        out = {n: raw for n, raw in self.files.items() if n not in MODELS_OWN}
        found = {k: v for k, v in names.items() if self.named.get(k) != v}
        if CONFIG in out and found:
            out[CONFIG] = dumped({**self.config, **found})
        return out


def inherited(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns companions of a tokenizer that came of another: its own, and what only the old has.

    A chat template, a limit on length and the like stay right where every old id keeps its meaning.
    """
    own = {CONFIG, SPECIAL_MAP, "added_tokens.json", *MODELS_OWN}
    names = {n for n in old if n in (*FILES, *MODELS_OWN) or n.startswith(TEMPLATES)}
    out = {n: old[n] for n in names - (own if CONFIG in new else set())} | dict(new)
    if CONFIG in old and CONFIG in new:
        before, after = Companions(old).config, Companions(new).config
        if missing := {k: v for k, v in before.items() if k not in after}:
            out[CONFIG] = dumped({**after, **missing})
    return out


def dumped(value: Any) -> bytes:
    """Returns ``value`` as indented UTF-8 JSON."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
