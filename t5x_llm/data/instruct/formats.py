"""Formats of instruction data: what a row of each holds, and which one a row looks like.

Names of fields are those that the data sets are published with; ``Source.columns`` maps others, by
the names that LLaMA-Factory's dataset_info.json has for columns and tags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.data.instruct import oasst
from t5x_llm.data.instruct.records import (
    Dialogue,
    LabelledAnswer,
    LabelledSteps,
    Preference,
    TypedRecord,
    Unreadable,
)
from t5x_llm.data.instruct.turns import (
    Row,
    answer,
    conversation,
    kind,
    marked,
    messages,
    pair_of,
    shared,
    text,
)
from t5x_llm.text.chat import Conversation, Message

Tags = Mapping[str, str]
Reader = Callable[[Row, Tags], Sequence[TypedRecord]]


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """One format of rows.

    Attributes:
      name: as ``Source.format`` has it.
      needs: fields that every row has.
      read: a row to its records.
      columns: fields of ``Source.columns`` to this format's own.
    """

    name: str
    needs: tuple[str, ...]
    read: Reader
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


_TAGS = tuple(
    f"{name}_tag"
    for name in ("role", "content", "user", "assistant", "system", "observation", "function")
)
COLUMNS = (
    *("prompt", "query", "response", "history", "messages", "system", "tools"),
    *("chosen", "rejected", "label", "completions", "labels", *_TAGS),
)


def _one(prompt: str, reply: str, system: str = "", row: Row | None = None) -> list[TypedRecord]:
    turns = (Message("user", prompt), Message("assistant", reply))
    return [Dialogue(conversation(turns, system, row))]


def _instruction(row: Row, key: str = "instruction", more: str = "input") -> str:
    """Returns an instruction and its input, as one prompt."""
    parts = [text(row, key), text(row, more, "")]
    parts = [p for p in parts if p.strip() and p.strip() != "<noinput>"]
    if not parts:
        raise Unreadable(f"empty {key!r}")
    return "\n".join(parts)


def _alpaca(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise Unreadable(f"history is {kind(history)}, no list")
    for pair in history:
        if not isinstance(pair, list) or [type(x) for x in pair] != [str, str]:
            raise Unreadable("history that is no list of [question, answer]")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    turns += [Message("user", _instruction(row)), Message("assistant", answer(row, "output"))]
    return [Dialogue(conversation(turns, text(row, "system", ""), row))]


def _marked_alpaca(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    """Reads alpaca's fields, where an instruction may hold earlier turns (BELLE, Linly)."""
    if pair_of(row.get("conversations")):
        return _sharegpt(row, tags)
    before = marked(text(row, "instruction"))
    if not any(turn.role == "assistant" for turn in before) and len(before) < 2:
        return _alpaca(row, tags)
    if before[-1].role != "assistant" and not before[-1].content:
        raise Unreadable("an empty question")
    turns = (*before, Message("assistant", answer(row, "output")))
    return [Dialogue(conversation(turns))]


def _sharegpt(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    turns = messages(row.get("conversations", row.get("items")), tags)
    return [Dialogue(conversation(turns, text(row, "system", ""), row))]


def _openai(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    return [Dialogue(conversation(messages(row.get("messages"), tags), row=row))]


def _dolly(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    parts = [text(row, "instruction"), text(row, "context", "")]
    return _one("\n\n".join(p for p in parts if p.strip()), answer(row, "response"))


def _gpt4all(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    return _one(text(row, "prompt"), answer(row, "response"))


def _oig(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    turns = marked(text(row, "text"), "oig")
    if not turns:
        raise Unreadable("a text without <human>: and <bot>:")
    return [Dialogue(Conversation(turns))]


def _completion(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    prompt, turns = _prompt(row, tags), _answers(row, "completion", tags)
    return [Dialogue(Conversation((*prompt.messages, *turns), prompt.tools))]


def _prompt(row: Row, tags: Tags) -> Conversation:
    """Returns the turns before an answer: of a text, of a list, or of ColossalChat's context."""
    value = row.get("prompt", row.get("context", row.get("conversations")))
    if value is None and "instruction" in row:
        value = _instruction(row)
    system = text(row, "system", "")
    if isinstance(value, list):
        return conversation(messages(value, tags), system, row)
    if value is None:
        raise Unreadable("no field 'prompt'")
    if not isinstance(value, str):
        raise Unreadable(f"field 'prompt' holds {kind(value)}, no text and no list")
    return conversation((Message("user", value),), system, row)


def _answers(row: Row, key: str, tags: Tags) -> tuple[Message, ...]:
    """Returns the turns of an answer: of a text, of a turn, or of a list of turns."""
    value = row.get(key)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return messages(value, tags)
    return (Message("assistant", answer(row, key)),)


def _preference(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    """Reads a prompt with two answers, or two conversations that begin alike (implicit prompt)."""
    implicit = not any(k in row for k in ("prompt", "context", "conversations", "instruction"))
    texts = [row.get(key) for key in ("chosen", "rejected")]
    if implicit and all(isinstance(value, str) for value in texts):
        pair = [marked(str(value), "hh") for value in texts]
        if not all(pair):
            raise Unreadable("no field 'prompt', and answers without Human: and Assistant:")
    else:
        pair = [_answers(row, key, tags) for key in ("chosen", "rejected")]
    prompt = None if implicit else _prompt(row, tags)
    same = shared(*pair)
    if same and (prompt is None or pair[0][:same] != prompt.messages[-same:]):
        if not implicit and same == 1 and pair[0][0].role == "assistant":
            raise Unreadable("two answers that are the same")
        # Both repeat the conversation: it is the prompt, whatever 'prompt' says of its last turn.
        prompt = conversation(pair[0][:same], text(row, "system", ""), row)
    chosen, rejected = (turns[same:] for turns in pair)
    if not chosen or not rejected:
        raise Unreadable("two answers that are the same")
    if prompt is None:
        raise Unreadable("two conversations that do not begin alike")
    return [Preference(prompt, chosen, rejected)]


def _labelled(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    label = row.get("label")
    if label not in (0, 1) or isinstance(label, float):
        raise Unreadable(f"a label that is {kind(label)}, neither true nor false")
    return [LabelledAnswer(_prompt(row, tags), _answers(row, "completion", tags), bool(label))]


def _stepwise(row: Row, tags: Tags) -> Sequence[TypedRecord]:
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list) or not all(isinstance(s, str) and s.strip() for s in steps):
        raise Unreadable("completions that are no list of texts")
    if not isinstance(labels, list) or len(labels) != len(steps) or not steps:
        raise Unreadable("labels that are not one a step")
    # -100 marks a step that is not judged; as a truth value it would be true.
    judged = {True: True, False: False, -1: False, -100: None, None: None}
    if any(isinstance(label, (float, str, list, dict)) or label not in judged for label in labels):
        raise Unreadable("a step's label that is neither true nor false")
    found = tuple(judged[label] for label in labels)
    return [LabelledSteps(_prompt(row, tags), tuple(steps), found)]


def _oasst(best: bool) -> Reader:
    return lambda row, tags: oasst.tree_dialogues(row, best)


_PAIR = {"prompt": "prompt", "response": "completion", "system": "system"}
_ALPACA = {
    "prompt": "instruction", "query": "input", "response": "output", "history": "history",
    "system": "system", "tools": "tools",
}  # fmt: skip
_TURNS = {"messages": "conversations", "system": "system", "tools": "tools"}
_CHOSEN = {
    "prompt": "prompt", "messages": "conversations", "chosen": "chosen", "rejected": "rejected",
    "system": "system", "tools": "tools",
}  # fmt: skip
FORMATS = {
    made.name: made
    for made in (
        ChatFormat("alpaca", ("instruction", "output"), _alpaca, _ALPACA),
        ChatFormat("sharegpt", ("conversations",), _sharegpt, _TURNS),
        ChatFormat("openai", ("messages",), _openai, {**_TURNS, "messages": "messages"}),
        ChatFormat("oasst", (), _oasst(False)),
        ChatFormat("oasst_best", (), _oasst(True)),
        ChatFormat(
            "dolly", ("instruction", "response"), _dolly,
            {"prompt": "instruction", "query": "context", "response": "response"},
        ),
        ChatFormat("belle", (), _marked_alpaca, {**_ALPACA, "messages": "conversations"}),
        ChatFormat("oig", ("text",), _oig, {"messages": "text"}),
        ChatFormat("linly", ("instruction", "output"), _marked_alpaca, _ALPACA),
        ChatFormat(
            "gpt4all", ("prompt", "response"), _gpt4all,
            {"prompt": "prompt", "response": "response"},
        ),
        ChatFormat(
            "colossal_chat", ("messages",), _openai, {**_TURNS, "messages": "messages"}
        ),
        ChatFormat("prompt_completion", ("prompt", "completion"), _completion, _PAIR),
        ChatFormat("preference", ("chosen", "rejected"), _preference, _CHOSEN),
        ChatFormat(
            "labelled", ("prompt", "completion", "label"), _labelled, {**_PAIR, "label": "label"}
        ),
        ChatFormat(
            "stepwise", ("prompt", "completions", "labels"), _stepwise,
            {"prompt": "prompt", "completions": "completions", "labels": "labels"},
        ),
    )
}  # fmt: skip
NAMES = ("auto", *FORMATS)


def check_format(field: str, name: str, columns: Mapping[str, str], where: str) -> None:
    """Checks the format of a source and its mapping of columns.

    Args:
      field: prefix of the fields, ``Source``.
      name: of the format.
      columns: names of LLaMA-Factory to columns of the file.
      where: name of the source.

    Raises:
      ConfigError: a format or a column that is not known, or a column the format does not have.
    """
    check_choice(f"{field}.format", name, NAMES)
    for key, value in columns.items():
        check_choice(f"{field}.columns", key, COLUMNS)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{field}.columns", value, f"the name of the column for {key!r}")
        own = FORMATS[name].columns if name in FORMATS else {key: key}
        if key not in own and key not in _TAGS:
            raise ConfigError(
                f"{field}.columns", key, f"a column of the format {name!r} of {where!r}: "
                f"{', '.join(own) or 'none'}",
            )  # fmt: skip


def looks_like(row: Row) -> str | None:
    """Returns the format that a row looks like; None for no format of conversations."""
    have = row.keys()
    if {"chosen", "rejected"} <= have:
        return "preference"
    for key in ("messages", "conversations"):
        if (pair := pair_of(row.get(key))) is not None:
            if key == "messages":
                return "colossal_chat" if pair[0] == "from" else "openai"
            return "sharegpt"
    if oasst.is_message(row) or isinstance(row.get("prompt"), Mapping):
        return "oasst"
    for name in ("stepwise", "labelled", "prompt_completion", "gpt4all"):
        if set(FORMATS[name].needs) <= have:
            return name
    if {"instruction", "output"} <= have:
        instruction = row.get("instruction")
        turns = marked(instruction) if isinstance(instruction, str) else ()
        return "belle" if any(turn.role == "assistant" for turn in turns) else "alpaca"
    if {"instruction", "response"} <= have:
        return "dolly"
    words = row.get("text")
    return "oig" if isinstance(words, str) and marked(words, "oig") else None


def format_of_columns(columns: Mapping[str, str]) -> str | None:
    """Returns the format that a mapping of columns is of; None if it says nothing."""
    for key, name in (
        ("labels", "stepwise"), ("chosen", "preference"), ("label", "labelled"),
        ("messages", "sharegpt"), ("response", "alpaca"),
    ):  # fmt: skip
        if key in columns:
            return name
    return None


def renamed(row: Row, made: ChatFormat, columns: Mapping[str, str]) -> Row:
    """Returns a row whose columns have the names of the format."""
    own = {made.columns[key]: row[value] for key, value in columns.items()
           if key in made.columns and value in row}  # fmt: skip
    return {**row, **own} if own else row


def fits(row: Row, made: ChatFormat) -> bool:
    """Returns True if a row has the fields of a format."""
    if made.name.startswith("oasst"):
        return looks_like(row) == "oasst"
    if made.name == "belle":
        return looks_like(row) in ("belle", "alpaca", "sharegpt")
    if made.name == "labelled":
        return {"completion", "label"} <= row.keys()
    return set(made.needs) <= row.keys()
