"""Conversations: messages with their roles, tools and reasoning, checked as they are made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import DataError

ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
      role: 'system', 'user', 'assistant' or 'tool' (what a tool answered).
      content: text.
      reasoning: what an assistant thought before it answered.
      tool_calls: functions that an assistant calls, each ``{"name": ..., "arguments": {...}}`` or
        OpenAI's ``{"type": "function", "function": {...}}``.
      name: of the speaker or the tool; '' for none.
      trained: whether an assistant's message is learned; ignored for the other roles.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    trained: bool = True

    def __post_init__(self):
        if self.role not in ROLES:
            raise DataError(
                f"A message has the role {self.role!r}; roles are {', '.join(ROLES)}. Map the "
                "roles of the file to these."
            )
        for field in ("content", "reasoning", "name"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise DataError(
                    f"The {field} of a message of role {self.role!r} is {type(value).__name__}; "
                    "it is text. Pictures and other parts cannot be trained on."
                )
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        if self.role != "assistant" and (self.reasoning or self.tool_calls):
            raise DataError(f"A message of role {self.role!r} reasons or calls tools.")
        for call in self.tool_calls:
            function = call.get("function", call) if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise DataError(f"A tool call has no name: {call!r}.")

    def as_dict(self) -> dict[str, Any]:
        """Returns what a template sees, in the form that transformers gives it.

        Reasoning is ``reasoning_content`` and ``thinking``. A call's arguments are an object, also
        where the file had them as JSON text, because templates write them by ``tojson``.
        """
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            found |= {"reasoning_content": self.reasoning, "thinking": self.reasoning}
        if self.tool_calls:
            found["tool_calls"] = [_call(call) for call in self.tool_calls]
        if self.name:
            found["name"] = self.name
        return found


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order.

    Attributes:
      messages: at least one.
      tools: JSON schemas of functions that the assistant may call.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "messages", tuple(self.messages))
        object.__setattr__(self, "tools", tuple(self.tools))
        if not self.messages:
            raise DataError("A conversation has no message.")

    @property
    def assistants(self) -> tuple[int, ...]:
        """Indices of the assistant's messages."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == "assistant")

    def before(self, index: int) -> Conversation:
        """Returns the messages before ``index``, with the same tools."""
        return dataclasses.replace(self, messages=self.messages[:index])


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", call))
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    outer = {k: plain(v) for k, v in call.items() if k not in ("function", "arguments", "name")}
    return {**outer, "type": "function", "function": plain(function)}


def plain(value: Any) -> Any:
    """Returns a copy made of JSON's types alone, so that a template can reach nothing else.

    Raises:
      DataError: it holds something that JSON does not have.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise DataError(f"A tool or a call of it holds a {type(value).__name__}, which is not JSON.")
