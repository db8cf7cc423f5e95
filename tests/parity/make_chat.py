"""Writes tests/text/golden/chat.json from transformers. Run it in the parity environment only:

    .venv-parity/bin/python tests/parity/make_chat.py

For each built-in template and conversation of tests/text/chat_cases.py it holds what transformers'
``apply_chat_template`` makes of the very source: the text, the ids (their SHA-256) with a
byte-level tokenizer, and the assistant's tokens; or the message with which the template refuses.
Templates of models as their authors wrote them, collected by TRL (Apache-2.0), are there with
their source.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import jinja2
import numpy as np
import transformers
import trl

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))

from chat_cases import CONVERSATIONS, byte_level

from t5x_llm.text.chat import BUILTIN, builtin

OUT = Path(__file__).parents[1] / "text" / "golden" / "chat.json"
MODELS = ("qwen3", "qwen2_5", "qwen3_training", "llama3", "gemma", "phi3", "glm4moe")


def rendered(tokenizer, source: str) -> dict[str, dict]:
    """What transformers makes of every conversation by one template."""
    found = {}
    for name, conversation in CONVERSATIONS.items():
        messages = [message.as_dict() for message in conversation.messages]
        options = {"tools": list(conversation.tools) or None, "chat_template": source}
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except (jinja2.TemplateError, TypeError) as e:
            found[name] = {"refused": str(e)}
            continue
        coded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, **options
        )
        ids = np.asarray(coded["input_ids"], np.int32)
        edges = np.flatnonzero(np.diff([0, *coded["assistant_masks"], 0])).reshape(-1, 2)
        found[name] = {
            "text": text,
            "ids": hashlib.sha256(ids.tobytes()).hexdigest(),
            "assistant": edges.tolist(),
        }
    return found


def main() -> None:
    """Renders all and writes the file."""
    with tempfile.TemporaryDirectory() as directory:
        byte_level().save(directory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    golden = {name: rendered(tokenizer, builtin(name).source) for name in BUILTIN}
    folder = Path(trl.__file__).parent / "chat_templates"
    models = {}
    for name in MODELS:
        source = (folder / f"{name}.jinja").read_text("utf-8")
        models[name] = {"source": source, "rendered": rendered(tokenizer, source)}
    content = {"builtin": golden, "models": models}
    OUT.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
