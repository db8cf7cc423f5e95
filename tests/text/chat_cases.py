"""Conversations and tokenizers that the tests of chat templates share."""

from __future__ import annotations

import functools
import json
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from t5x_llm.text.bytes import byte_tokenizer
from t5x_llm.text.chat import ChatTemplate, Conversation, Message
from t5x_llm.text.hf_json import HFTokenizer

# Special tokens of all built-in templates.
SPECIALS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "[TOOL_CALLS]",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]", "<sop>",
)  # fmt: skip
# Those that demand user, assistant, user, ...; and those that trim what the assistant says.
ALTERNATING = ("llama2", "mistral", "gemma")
TRIMMING = ("llama2", "llama3", "gemma")
WITH_TOOLS = ("chatml", "llama3", "mistral", "qwen", "chatglm")


def with_specials(tokenizer, **names: str | None):
    """The tokenizer with the special tokens of all templates added."""
    have = set(tokenizer.special.values())
    new = [s for s in SPECIALS if s not in have]
    named = {"bos_token": "<s>", "eos_token": "</s>"} | names
    return tokenizer.with_companions(
        {
            "added_tokens.json": json.dumps(
                {s: tokenizer.vocab_size + i for i, s in enumerate(new)}
            ).encode(),
            "special_tokens_map.json": json.dumps(
                named | {"additional_special_tokens": list(SPECIALS)}
            ).encode(),
            "tokenizer_config.json": json.dumps(
                {"add_bos_token": bool(named["bos_token"])}
            ).encode(),
        }
    )


@functools.cache
def byte_level():
    """A token a byte, and the special tokens."""
    return with_specials(byte_tokenizer())


_TEXT = (
    "Hello there.\n\nHow are you? I am well, thank you.\n\n\n  Two  spaces.\n- one\n- two\n",
    "ASSISTANT: Hi! USER: What is 2+2? It's 4.\n\n### Response:\nThe answer.\n\n",
    "你好，世界。\n请问\n\n最后呢? The model answers.\n\n  def f(x):\n\n    return x\n",
)


_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def merging():
    """A byte-level BPE that splits words as Llama-3 does, with tokens such as two newlines."""
    coder = tokenizers.Tokenizer(models.BPE())
    coder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    coder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    coder.train_from_iterator(_TEXT * 20, trainer)
    return with_specials(HFTokenizer(coder.to_str().encode()))


@functools.cache
def prefixing():
    """A BPE of LLaMA's kind, with a space before the first word of a text."""
    coder = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    coder.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    coder.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=240, show_progress=False, special_tokens=["<unk>"])
    coder.train_from_iterator(_TEXT * 20, trainer)
    content = json.loads(coder.to_str())
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return with_specials(HFTokenizer(json.dumps(content).encode()))


def talk(*turns: str | tuple[str, ...], tools=()) -> Conversation:
    """A conversation of (role, content[, reasoning]); a text alone is the user's, the next the
    assistant's, and so on.
    """
    roles = ("user", "assistant")
    messages = [
        Message(*turn) if isinstance(turn, tuple) else Message(roles[i % 2], turn)
        for i, turn in enumerate(turns)
    ]
    return Conversation(tuple(messages), tools)


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds a & b <both>, 加法.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CONVERSATIONS = {
    "plain": talk("Hi", "Hello!", "What is 2+2?\nSay.", " It's 4 "),
    "system": talk(("system", "Be 友好."), ("user", "Hi"), ("assistant", "Hello!")),
    "reasoning": talk(
        ("user", "Hi"), ("assistant", "Hello!", "hm"), ("user", "2+2?"), ("assistant", "4", "two")
    ),
    "tools": Conversation(
        (
            Message("user", "add"),
            Message(
                "assistant", "", tool_calls=({"name": "add", "arguments": '{"a": 1, "b": "é"}'},)
            ),
            Message("tool", '{"sum": 2}', name="add"),
            Message("assistant", "It is 2"),
            Message("user", "Thanks"),
            Message("assistant", "Welcome"),
        ),
        (ADD,),
    ),
    "in a row": talk(("user", "Hi"), ("assistant", "Hello!"), ("assistant", "More")),
    "assistant first": talk(("assistant", "Hello!"), ("user", "x"), ("assistant", "More")),
    "input": talk("Translate.\n\n### Input:\nChat", "Katze"),
}


def without_marks(template: ChatTemplate) -> ChatTemplate:
    """The template as it would be without ``{% generation %}``."""
    source = re.sub(r"\{%- generation %\}", "{%- if true %}", template.source)
    source = re.sub(r"\{%- endgeneration %\}", "{%- endif %}", source)
    assert source != template.source
    return ChatTemplate(f"{template.name} without marks", source)
