"""Every chat template that TRL ships, rendered here and by transformers."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

import trl
from transformers.utils.chat_template_utils import render_jinja_template

sys.path.insert(0, str(Path(__file__).parents[1] / "text"))

from chat_cases import CONVERSATIONS

from t5x_llm.text.chat import ChatTemplate, TemplateError, render, sandbox

FILES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_renderings_are_those_of_transformers(file, monkeypatch):
    # Here the date is always the same, there it is that of the day.
    monkeypatch.setattr(sandbox, "today", datetime.datetime.now)
    source = file.read_text("utf-8")
    for conversation in CONVERSATIONS.values():
        messages = [message.as_dict() for message in conversation.messages]
        tools = list(conversation.tools) or None
        try:
            texts, _ = render_jinja_template([messages], tools, chat_template=source, **SPECIAL)
        except Exception:  # whatever a template raises there, it is refused here
            with pytest.raises(TemplateError):
                render(ChatTemplate(file.stem, source), conversation, SPECIAL)
            continue
        try:
            found = render(ChatTemplate(file.stem, source), conversation, SPECIAL)
        except TemplateError as e:
            assert "leaves out the call" in str(e) and "é" not in texts[0]
            continue
        assert found.text == texts[0]
        # What is generated follows its prompt, and lies within the text in order.
        edges = [edge for a, b, _ in found.spans for edge in (a, b)]
        assert edges == sorted(edges) and (not edges or edges[-1] <= len(found.text))
