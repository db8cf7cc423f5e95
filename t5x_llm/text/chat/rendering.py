"""A conversation rendered once, with the characters that the assistant generates.

Where a template marks them with ``{% generation %}``, its marks are taken. Elsewhere they are
derived from renderings of prefixes: an answer begins where the prompt for it ends, and ends with
the token that stops it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import DataError
from t5x_llm.text.chat.errors import TemplateError
from t5x_llm.text.chat.messages import Conversation, Message, plain
from t5x_llm.text.chat.template import ChatTemplate, is_builtin

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_PIECES = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\s+|[^\s<\[]+|.")
_PROBE = "Zq7xKw"
# Private-use characters that no text of the model's contains, see ``marks_for``.
_PRIVATE = range(0xF0000, 0xFFFFE)


def marks_for(text: str) -> tuple[str, str]:
    """Returns two private-use characters that ``text`` does not hold."""
    used = set(text)
    free = (c for c in map(chr, _PRIVATE) if c not in used)
    return next(free), next(free)


@dataclasses.dataclass(frozen=True)
class Rendered:
    """Text of a conversation.

    Attributes:
      text: the whole, as a model sees it.
      spans: (start, stop, index of the message) of the characters that the assistant generates,
        its stop token included, in order.
      contents: (start, stop, index) of the contents of the other messages, where they stand in
        the text as they are.
      unstable: indices of assistant's messages whose prompt or answer looked otherwise when it was
        generated, because the template writes earlier turns in another way (Qwen3 drops earlier
        reasoning). They have no span: what was never served is never trained.
    """

    text: str
    spans: tuple[tuple[int, int, int], ...]
    contents: tuple[tuple[int, int, int], ...] = ()
    unstable: tuple[int, ...] = ()


class _Renderer:
    """Renders prefixes of one conversation, each at most once."""

    def __init__(
        self, template: ChatTemplate, conversation: Conversation, specials: Mapping[str, str]
    ):
        self.template, self.specials = template, dict(specials)
        self.messages = [m.as_dict() for m in conversation.messages]
        self.tools = [plain(tool) for tool in conversation.tools] or None
        self._cache: dict[tuple[int, bool], str] = {}

    def run(
        self, messages: list[dict[str, Any]], prompt: bool, marks: tuple[str, str] = ("", "")
    ) -> str:
        """Returns the text of ``messages``."""
        from t5x_llm.text.chat.sandbox import run  # jinja2 is for those who render

        values = {
            **self.specials,
            "messages": messages,
            "tools": self.tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        return run(self.template.source, self.template.name, values, marks)

    def prefix(self, count: int, prompt: bool = False) -> str:
        """Returns the text of the first ``count`` messages, with the prompt for the next or not."""
        key = (count, prompt)
        if key not in self._cache:
            self._cache[key] = self.run(self.messages[:count], prompt)
        return self._cache[key]

    def whole(self, prompt: bool, marks: tuple[str, str] = ("", "")) -> str:
        """Returns the text of all messages; an error names the first message that causes it."""
        try:
            return self.run(self.messages, prompt, marks)
        except TemplateError as e:
            raise self._located(e) from e

    def _located(self, error: TemplateError) -> TemplateError:
        for count in range(1, len(self.messages) + 1):
            try:
                self.prefix(count)
            except TemplateError as e:
                if e.message == error.message:
                    role = self.messages[count - 1]["role"]
                    return TemplateError(
                        f"{error.message} At message {count} of {len(self.messages)} ({role}; "
                        f"roles so far: {', '.join(m['role'] for m in self.messages[:count])}).",
                        error.proof,
                        count - 1,
                    )
        return error


def render(
    template: ChatTemplate,
    conversation: Conversation,
    tokenizer_specials: Mapping[str, str],
    add_generation_prompt: bool = False,
) -> Rendered:
    """Renders a conversation.

    Args:
      template: how.
      conversation: what.
      tokenizer_specials: ``special_texts(tokenizer)``.
      add_generation_prompt: whether the text ends with the beginning of an answer, for the model
        to go on.

    Raises:
      TemplateError: the template raised or broke a limit; the message names the turn.
    """
    renderer = _Renderer(template, conversation, tokenizer_specials)
    marked = _GENERATION.search(template.source) is not None
    seen = [template.source, renderer.messages, renderer.tools]
    marks = marks_for(json.dumps(seen, ensure_ascii=False))
    given = renderer.whole(add_generation_prompt, marks if marked else ("", ""))
    text, blocks = _unmarked(given, marks, template.name)
    assistants = conversation.assistants
    if not assistants:
        return Rendered(text, (), _contents(renderer, conversation, text, add_generation_prompt))
    stop = stop_text(template, tokenizer_specials)
    if marked:
        spans = _owned(renderer, text, blocks, assistants)
    else:
        spans = _derived(renderer, text, assistants, stop)
    spans = _ended(text, spans, stop)
    unstable: list[int] = []
    if not is_builtin(template):
        stable = {i: _stable(renderer, text, spans, i) for i in assistants}
        unstable = [i for i, start in stable.items() if start is None]
        # Marks may take in a header that the prompt already has.
        spans = [(max(a, stable[i] or 0), b, i) for a, b, i in spans if i not in unstable]
        spans = [span for span in spans if span[0] < span[1]]
    _check_calls(conversation, text, spans, template.name)
    contents = _contents(renderer, conversation, text, add_generation_prompt)
    return Rendered(text, tuple(spans), contents, tuple(unstable))


def stop_text(template: ChatTemplate, specials: Mapping[str, str]) -> str:
    """Returns what ends an answer: ``template.stop``, else what the template writes after one;
    '' where it writes nothing.
    """
    if template.stop is not None:
        return template.stop
    return _stop_text(template, tuple(sorted(specials.items())))


@functools.lru_cache(maxsize=64)
def _stop_text(template: ChatTemplate, specials: tuple[tuple[str, str], ...]) -> str:
    """Compares what follows a last answer with what follows an earlier one: a template may end the
    whole text with more (Phi-3's ``<|end|>`` and then EOS).
    """
    asked = Message("user", "Hello")
    probe = Conversation((asked, Message("assistant", _PROBE), asked))
    renderer = _Renderer(template, probe, dict(specials))
    rests = []
    for count in (2, 3):
        _, found, rest = renderer.prefix(count).partition(_PROBE)
        if not found:
            return ""
        rests.append(_PIECES.findall(rest))
    last, earlier = rests
    shared = len(os.path.commonprefix([last, earlier]))
    pieces = [piece for piece in last[:shared] if piece.strip()] or ["".join(last)]
    return pieces[-1].strip()


def _unmarked(text: str, marks: tuple[str, str], name: str) -> tuple[str, list[tuple[int, int]]]:
    """Takes the marks out of a text; returns it and what lay between each pair."""
    out: list[str] = []
    blocks: list[tuple[int, int]] = []
    size, begun = 0, -1
    for piece in re.split(f"([{''.join(marks)}])", text):
        if piece == marks[0]:
            if begun >= 0:
                raise TemplateError(f"Chat template {name} has a generation block in another.")
            begun = size
        elif piece == marks[1]:
            blocks.append((begun, size))
            begun = -1
        else:
            out.append(piece)
            size += len(piece)
    return "".join(out), blocks


def _owned(
    renderer: _Renderer,
    text: str,
    blocks: list[tuple[int, int]],
    assistants: tuple[int, ...],
) -> list[tuple[int, int, int]]:
    """Gives each generated block its message: one a message, or by prefixes of the text."""
    blocks = [(a, b) for a, b in blocks if b > a]
    if len(blocks) == len(assistants):
        return [(a, b, i) for (a, b), i in zip(blocks, assistants, strict=True)]
    ends = [(_common(text, _or_none(renderer, i + 1) or ""), i) for i in assistants]
    out = []
    for a, b in blocks:
        owner = next((i for end, i in ends if a < end), assistants[-1])
        out.append((a, b, owner))
    return out


def _derived(
    renderer: _Renderer, text: str, assistants: tuple[int, ...], stop: str
) -> list[tuple[int, int, int]]:
    """Finds answers by prefixes: each goes from the end of its prompt to its stop token."""
    out = []
    for i in assistants:
        prompt, answered = _or_none(renderer, i, True), _or_none(renderer, i + 1)
        if prompt is None or answered is None or not text.startswith(prompt):
            continue
        at = answered.rfind(stop, len(prompt)) if stop else -1
        end = at + len(stop) if at >= 0 else len(answered)
        if len(prompt) < end and text.startswith(answered[:end]):
            out.append((len(prompt), end, i))
    return out


def _stable(
    renderer: _Renderer, text: str, spans: list[tuple[int, int, int]], index: int
) -> int | None:
    """Returns the length of a message's prompt where prompt and answer, as served, are what the
    text holds; else None.
    """
    end = max((b for _, b, i in spans if i == index), default=0)
    prompt, answered = _or_none(renderer, index, True), _or_none(renderer, index + 1)
    if prompt is None or answered is None or len(prompt) >= end:
        return None
    return len(prompt) if text.startswith(prompt) and answered.startswith(text[:end]) else None


def _check_calls(
    conversation: Conversation, text: str, spans: list[tuple[int, int, int]], name: str
) -> None:
    """Raises TemplateError where a template leaves out a call that the assistant makes."""
    for a, b, index in spans:
        own = "".join(text[x:y] for x, y, i in spans if i == index)
        for call in conversation.messages[index].tool_calls:
            called = call.get("function", call)["name"]
            if called not in own:
                raise TemplateError(
                    f"Chat template {name} leaves out the call of {called!r} at message "
                    f"{index + 1}: {text[a:b][:60]!r}. Use a template that has tool calls.",
                    turn=index,
                )


def _or_none(renderer: _Renderer, count: int, prompt: bool = False) -> str | None:
    """Returns a prefix; None where the template does not render it."""
    try:
        return renderer.prefix(count, prompt)
    except TemplateError:
        return None


def _ended(text: str, spans: list[tuple[int, int, int]], stop: str) -> list[tuple[int, int, int]]:
    """Ends each message's spans with its stop token: spaces after that, and further marked blocks,
    are never generated.
    """
    out: list[tuple[int, int, int]] = []
    stopped: set[int] = set()
    for start, end, index in spans:
        at = text.rfind(stop, start, end) if stop else -1
        if index in stopped and at < 0:
            continue
        if at >= 0 and not text[at + len(stop) : end].strip():
            end = at + len(stop)
            stopped.add(index)
        out.append((start, end, index))
    return out


def _contents(
    renderer: _Renderer, conversation: Conversation, text: str, prompt: bool
) -> tuple[tuple[int, int, int], ...]:
    """Finds the contents of the messages that are not the assistant's, by marks around them.

    Returns:
      (start, stop, index) in order; () where the template treats marked contents otherwise.
    """
    begin, end = marks_for(text + renderer.template.source)
    messages, wanted = [], []
    for i, message in enumerate(renderer.messages):
        core = message["content"].strip()
        if message["role"] != "assistant" and core:
            before, _, after = message["content"].partition(core)
            message = message | {"content": f"{before}{begin}{core}{end}{after}"}
            wanted.append(i)
        messages.append(message)
    if not wanted:
        return ()
    try:
        found, blocks = _unmarked(renderer.run(messages, prompt), (begin, end), "")
    except TemplateError:
        return ()
    if found != text or len(blocks) != len(wanted):
        return ()
    placed = [(a, b, i) for (a, b), i in zip(blocks, wanted, strict=True)]
    return tuple(placed) if placed == sorted(placed) else ()


def _common(one: str, other: str) -> int:
    return len(os.path.commonprefix([one, other]))


def check_answered(conversation: Conversation) -> None:
    """Raises DataError where a conversation has no assistant's message."""
    if not conversation.assistants:
        roles = ", ".join(m.role for m in conversation.messages)
        raise DataError(
            f"A conversation has no assistant turn (its roles: {roles}): nothing in it can be "
            "learned. Check the mapping of the roles, or leave it out."
        )
