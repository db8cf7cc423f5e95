"""Chat templates: built-in ones, those that a model brings, and files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources

from t5x_llm.core.errors import ConfigError, DataError, check_choice
from t5x_llm.core.paths import as_path
from t5x_llm.text.chat.errors import TemplateError
from t5x_llm.text.companions import CONFIG, TEMPLATES
from t5x_llm.text.tokenizer import Tokenizer

MAX_SOURCE = 1_000_000
BUILTIN = (
    "vicuna", "alpaca", "chatml", "llama2", "llama3", "mistral", "qwen", "gemma", "chatglm",
    "plain",
)  # fmt: skip
# Built-in templates that write no BOS of their own; they get one where the tokenizer adds it.
_WITHOUT_BOS = ("vicuna", "alpaca", "chatml", "qwen", "chatglm", "plain")
_BOS = "{{- bos_token }}\n"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
      name: for messages and records.
      source: jinja text, as transformers' ``chat_template``.
      stop: text of the token that ends a turn; None: what the template writes after an answer.
    """

    name: str
    source: str
    stop: str | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the source and the stop token."""
        return hashlib.sha256(json.dumps([self.source, self.stop]).encode()).hexdigest()


@functools.cache
def builtin(name: str) -> ChatTemplate:
    """Returns a built-in template by its name, one of ``BUILTIN``.

    Raises:
      ConfigError: there is none of that name.
    """
    check_choice("Chat.template", name, BUILTIN)
    source = resources.files("t5x_llm.text.chat").joinpath("templates", f"{name}.jinja")
    return ChatTemplate(name, source.read_text("utf-8"))


def template_for(choice: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Returns the template that a choice means for a tokenizer.

    Args:
      choice: 'auto' (what lies beside the tokenizer: chat_template.jinja, chat_template.json or
        tokenizer_config.json), 'auto:NAME' (one of several named ones there), a built-in's name,
        or the path of a .jinja file. Vicuna, Alpaca, ChatML, Qwen, ChatGLM and plain begin with BOS
        where the tokenizer adds one (``Tokenizer.add_bos``).
      tokenizer: whose companions are looked at.

    Raises:
      ConfigError: there is no such template.
      DataError: the files beside the tokenizer are malformed.
    """
    if choice == "auto" or choice.startswith("auto:"):
        return _own(choice, tokenizer)
    if choice.endswith(".jinja"):
        path = as_path(choice)
        if not path.is_file():
            raise ConfigError("Chat.template", choice, "a file", "There is no such file.")
        if path.stat().length > MAX_SOURCE:
            raise TemplateError(f"{choice} is larger than any chat template.")
        return ChatTemplate(path.name, _text(path.read_bytes(), choice))
    if choice not in BUILTIN:
        raise ConfigError(
            "Chat.template",
            choice,
            remedy="'auto' takes the model's own; a path must end in .jinja.",
            choices=(*BUILTIN, "auto"),
        )
    found = builtin(choice)
    if choice in _WITHOUT_BOS and tokenizer.add_bos and tokenizer.bos_id is not None:
        return dataclasses.replace(found, source=_BOS + found.source)
    return found


def is_builtin(template: ChatTemplate) -> bool:
    """Returns True for a built-in template, with or without BOS in front."""
    if template.name not in BUILTIN or template.stop is not None:
        return False
    source = builtin(template.name).source
    return template.source in (source, _BOS + source)


def special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """Returns ``bos_token``, ``eos_token``, ``pad_token`` and ``unk_token`` as templates see them;
    those that the tokenizer lacks are absent.
    """
    ids = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "pad_token": tokenizer.pad_id,
        "unk_token": tokenizer.unk_id,
    }
    return {key: tokenizer.piece(i) for key, i in ids.items() if i is not None}


def _own(choice: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Returns a template of the tokenizer's own; a file of its own goes before its config."""
    named = _named(tokenizer.companions)
    name = choice.partition(":")[2] or "default"
    if not named:
        raise ConfigError(
            "Chat.template",
            choice,
            "a tokenizer that brings a chat template",
            f"Base models bring none. Name a built-in one: {', '.join(BUILTIN)}.",
        )
    if name not in named:
        raise ConfigError(
            "Chat.template", choice, choices=[f"auto:{n}" for n in named],
            remedy="The tokenizer brings several named templates and no default.",
        )  # fmt: skip
    return ChatTemplate(
        "the model's own" + ("" if name == "default" else f" {name!r}"), named[name]
    )


def _named(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the templates among a tokenizer's companions, by name."""
    found: dict[str, str] = {}
    for file in (CONFIG, "chat_template.json"):
        if file not in files:
            continue
        try:
            content = json.loads(files[file])
        except (ValueError, RecursionError) as e:
            raise DataError(f"{file} beside the tokenizer is not JSON: {e}.") from e
        given = content.get("chat_template") if isinstance(content, dict) else None
        if isinstance(given, str):
            found["default"] = given
        for one in given if isinstance(given, list) else ():
            if not isinstance(one, dict) or not {"name", "template"} <= one.keys():
                raise DataError(f"{file} has a list of chat templates without name and template.")
            found[str(one["name"])] = str(one["template"])
    for file in sorted(files):
        if file.startswith(f"{TEMPLATES}/"):
            name = file.removeprefix(f"{TEMPLATES}/").removesuffix(".jinja")
            found[name] = _text(files[file], file)
    if "chat_template.jinja" in files:
        found["default"] = _text(files["chat_template.jinja"], "chat_template.jinja")
    return found


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{name} is not UTF-8 text.") from e
