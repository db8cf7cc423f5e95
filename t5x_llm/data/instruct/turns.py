"""Turns of conversations in rows of instruction data: lists of messages, and marks in a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from t5x_llm.data.instruct.markdown import is_html, to_markdown
from t5x_llm.data.instruct.records import Unreadable
from t5x_llm.text.chat import Conversation, Message

Row = Mapping[str, object]
# What data sets call the roles.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "answer"), "assistant"
    ),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
    "function_call": "function_call",
}
# Fields of a turn: its role, its text.
PAIRS = (("role", "content"), ("from", "value"), ("from", "content"), ("role", "value"))
_MARKS = re.compile(r"(?:^|\n)\s*(?P<role>Human|User|Assistant|Bot)\s*[:：]", re.I)
_HH = re.compile(r"(?:^|\n\n)(?P<role>Human|Assistant):")
_OIG = re.compile(r"(?:^|\n)\s*<(?P<role>human|bot)>\s*:")


def text(row: Row, key: str, default: str | None = None) -> str:
    """Returns the text in a field of a row.

    Raises:
      Unreadable: there is no such field and no default, or it holds something else than text.
    """
    value = row.get(key)
    if value is None and default is not None:
        return default
    if key not in row:
        raise Unreadable(f"no field {key!r}")
    if not isinstance(value, str):
        raise Unreadable(f"field {key!r} holds {kind(value)}, no text")
    return value


def kind(value: object) -> str:
    """Returns what kind of JSON a value is, with its article."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


def answer(row: Row, key: str) -> str:
    """Returns the text of an answer, which may not be empty; see ``text``."""
    found = text(row, key)
    if not found.strip():
        raise Unreadable(f"empty {key!r}")
    return found


def pair_of(turns: object) -> tuple[str, str] | None:
    """Returns the names of role and text in a list of turns; None if it is no such list."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], Mapping):
        return None
    return next(((r, c) for r, c in PAIRS if r in turns[0] and (c in turns[0])), None) or (
        ("role", "content") if "role" in turns[0] and "tool_calls" in turns[0] else None
    )


def messages(turns: object, tags: Mapping[str, str]) -> tuple[Message, ...]:
    """Returns the messages in a list of turns.

    Args:
      turns: objects with a role and a text, as OpenAI, ShareGPT or ColossalChat name them.
      tags: other names: ``role_tag`` and ``content_tag`` of the fields, ``user_tag``,
        ``assistant_tag``, ``system_tag``, ``observation_tag``, ``function_tag`` of the roles.

    Raises:
      Unreadable: it is no such list, a role is not known, a text is missing.
    """
    if not isinstance(turns, list):
        raise Unreadable(f"turns are {kind(turns)}, no list")
    if not turns:
        raise Unreadable("no turns")
    names = tags.get("role_tag"), tags.get("content_tag")
    fields = (names[0], names[1]) if names[0] and names[1] else pair_of(turns)
    if fields is None:
        raise Unreadable("turns without role and content, or from and value")
    roles = ROLES | {
        tags[f"{name}_tag"]: role
        for name, role in (
            ("user", "user"), ("assistant", "assistant"), ("system", "system"),
            ("observation", "tool"), ("function", "function_call"),
        )
        if f"{name}_tag" in tags
    }  # fmt: skip
    return tuple(_message(turn, fields, roles) for turn in turns)


def _message(turn: object, fields: tuple[str, str], roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise Unreadable(f"a turn is {kind(turn)}, no object")
    named = turn.get(fields[0])
    role = roles.get(named if isinstance(named, str) else "") or roles.get(str(named).lower())
    if role is None:
        raise Unreadable(f"unknown role {str(named)[:40]!r}")
    calls = _tool_calls(turn.get("tool_calls"))
    content = _content(turn.get(fields[1]), bool(calls))
    if role == "function_call":
        role, calls, content = "assistant", _called(content), ""
    if role == "assistant" and is_html(content):
        content = to_markdown(content)
    if role == "assistant" and not content.strip() and not calls:
        raise Unreadable("an empty answer")
    if role != "assistant":
        calls = ()
    reasoning = turn.get("reasoning_content", turn.get("reasoning", turn.get("thinking")))
    name = turn.get("name")
    trained = turn.get("trained", turn.get("weight", turn.get("train", True)))
    return Message(
        role,
        content,
        reasoning if isinstance(reasoning, str) and role == "assistant" else "",
        calls,
        name if isinstance(name, str) else "",
        bool(trained) or trained is None,
    )


def _content(value: object, calls: bool) -> str:
    """Returns the text of a turn: a text, or a list of OpenAI's parts of type ``text``."""
    if isinstance(value, str):
        return value
    if value is None and calls:
        return ""
    if isinstance(value, list):
        parts = []
        for part in value:
            words = part.get("text") if isinstance(part, Mapping) else None
            if not isinstance(words, str):
                raise Unreadable("a turn with a part that is no text")
            parts.append(words)
        return "".join(parts)
    raise Unreadable(f"a turn's text is {kind(value)}")


def _tool_calls(value: object) -> tuple[dict[str, object], ...]:
    """Returns OpenAI's calls of functions, their arguments as objects where they are JSON."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(call, Mapping) for call in value):
        raise Unreadable(f"tool_calls are {kind(value)}, no list of objects")
    calls = []
    for call in value:
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unreadable("a tool call without the name of a function")
        given = _parsed(function.get("arguments", {}))
        calls.append({**call, "function": {**function, "arguments": given}})
    return tuple(calls)


def _called(content: str) -> tuple[dict[str, object], ...]:
    """Returns the calls in a turn of role ``function_call``: JSON of one, or of a list of them."""
    value = _parsed(content)
    calls: list[dict[str, object]] = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise Unreadable("a function call that is not JSON with a name")
        function = {"name": call["name"], "arguments": _parsed(call.get("arguments", {}))}
        calls.append({"type": "function", "function": function})
    return tuple(calls)


def _parsed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def tools(row: Row) -> tuple[dict[str, object], ...]:
    """Returns the tools that a row offers, a list of objects or its JSON.

    Raises:
      Unreadable: they are something else.
    """
    value = row.get("tools")
    value = _parsed(value) if isinstance(value, str) and value.strip() else value
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise Unreadable("tools that are no list of objects")
    return tuple(dict(tool) for tool in value)


def conversation(
    turns: Iterable[Message], system: str = "", row: Row | None = None
) -> Conversation:
    """Returns a conversation of turns, with a system message before them and a row's tools."""
    found = tuple(turns)
    if system and not (found and found[0].role == "system"):
        found = (Message("system", system), *found)
    return Conversation(found, tools(row) if row is not None else ())


def marked(value: str, which: str = "marks") -> tuple[Message, ...]:
    """Returns the turns of a text that marks them itself; () for a text without marks.

    Args:
      value: the text.
      which: ``marks`` for Human:, User:, Assistant: and Bot: at the beginning of a line, ``hh`` for
        those of Anthropic's after an empty line, ``oig`` for <human>: and <bot>:.
    """
    pattern = {"marks": _MARKS, "hh": _HH, "oig": _OIG}[which]
    found = list(pattern.finditer(value))
    if not found:
        return ()
    turns: list[Message] = []
    if lead := value[: found[0].start()].strip():
        turns.append(Message("system", lead))
    ends = [*(match.start() for match in found[1:]), len(value)]
    for match, end in zip(found, ends, strict=True):
        role = ROLES[match.group("role").lower()]
        words = value[match.end() : end].strip()
        if words or role == "user":
            turns.append(Message(role, words))
    return tuple(turns)


def shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Returns the number of first messages that two lists have in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
