"""Conversations of a source as records for a token store: token ids with the code of each."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from t5x_llm.core.errors import DataError
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.instruct.reading import records
from t5x_llm.data.instruct.records import TypedRecord, Unreadable
from t5x_llm.data.instruct.splitting import pieces
from t5x_llm.data.record import Record
from t5x_llm.data.sources import Source
from t5x_llm.data.stretch import Stretch
from t5x_llm.text import Tokenizer
from t5x_llm.text.chat import (
    ChatTemplate,
    Conversation,
    Message,
    Proofs,
    encode_conversation,
    prove,
    template_for,
)

_NOT_TAUGHT = "answers or solutions labelled as wrong"


@dataclasses.dataclass
class ChatTally:
    """Counts of what became of the rows of a source.

    Attributes:
      rows: conversations read, unreadable ones included.
      pieces: documents that they became.
      split: conversations of several pieces.
      context: pieces that hold no trained token, and are left out.
      dropped: unreadable rows by reason.
      places: file and line of the first row of each reason.
      left_out: rows by reason that are whole, and not for supervised fine-tuning.
    """

    rows: int = 0
    pieces: int = 0
    split: int = 0
    context: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        """Counts an unreadable row."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.places.setdefault(reason, place)

    def as_json(self) -> dict[str, object]:
        """Returns the counts as JSON."""
        return dataclasses.asdict(self)


def summed(tallies: Iterable[ChatTally]) -> ChatTally:
    """Returns the sum of tallies; the first place of each reason is kept."""
    whole = ChatTally()
    for each in tallies:
        for name in ("rows", "pieces", "split", "context"):
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
        for mine, theirs in ((whole.dropped, each.dropped), (whole.left_out, each.left_out)):
            mine.update(collections.Counter(mine) + collections.Counter(theirs))
        whole.places = each.places | whole.places
    return whole


def check_dropped(name: str, tally: Mapping[str, object], limit: float) -> str:
    """Returns a line on unreadable rows and those left out; "" if there are none.

    Args:
      name: of the source.
      tally: of ``ChatTally.as_json``.
      limit: share of the rows that may be unreadable.

    Raises:
      DataError: there are more.
    """
    told = ChatTally(**tally)  # type: ignore[arg-type]
    count = sum(told.dropped.values())
    reasons = [
        f"{n:,} x {reason} (first: {told.places[reason]})"
        for reason, n in sorted(told.dropped.items(), key=lambda item: -item[1])
    ]
    share = count / max(told.rows, 1)
    if share > limit:
        raise DataError(
            f"Source {name!r}: {count:,} of {told.rows:,} conversations ({share:.2%}) cannot be "
            f"used: {'; '.join(reasons[:8])}. Repair them, or allow so many: Chat.max_dropped = "
            f"{min(-(-share * 1000 // 1) / 1000, 1.0):g} (now {limit:g})."
        )
    parts = [f"{count:,} of {told.rows:,} unreadable: {'; '.join(reasons)}"] if count else []
    parts += [f"{n:,} left out: {reason}" for reason, n in told.left_out.items()]
    return "; ".join(parts)


@functools.lru_cache(maxsize=8)
def _template(choice: str, tokenizer: Tokenizer) -> ChatTemplate:
    return template_for(choice, tokenizer)


def chat_identity(chat: Chat, tokenizer: Tokenizer) -> dict[str, object]:
    """Returns all that decides the content of a store of conversations, besides its input."""
    return {
        "template": _template(chat.template, tokenizer).fingerprint,
        "system": chat.system,
        "max_tokens": chat.max_tokens,
        "trained": list(chat.trained),
        "measured": list(chat.measured),
    }


def token_records(
    source: Source,
    chat: Chat,
    stretches: Sequence[Stretch],
    tokenizer: Tokenizer,
    tally: ChatTally,
    progress: Callable[[int], object] = int,
) -> Iterator[Record]:
    """Yields the pieces of the conversations in these stretches, and counts in ``tally``.

    Raises:
      ConfigError: the template cannot be used with the tokenizer.
      DataError: a file is not of the source's format.
    """
    template = _template(chat.template, tokenizer)
    encode = functools.partial(encode_conversation, template, tokenizer)
    for stretch in stretches:
        for line, record in records(source, stretch, progress):
            tally.rows += 1
            try:
                made = _encoded(record, chat, encode, tally)
            except (Unreadable, DataError) as e:
                tally.drop(" ".join(str(e).split())[:160], f"{stretch.path}:{line}")
                continue
            for ids, codes, key in made:
                own = ids[np.isin(codes, chat.measured)]
                size = len(tokenizer.decode(own.tolist()).encode())
                yield Record(ids.astype(np.int64), stretch.file, line, codes, key=key, size=size)


def _encoded(
    record: TypedRecord | str,
    chat: Chat,
    encode: Callable[[Conversation], object],
    tally: ChatTally,
) -> list[tuple[np.ndarray, np.ndarray, bytes]]:
    """Returns (ids, codes, key) of the pieces of a record that hold trained tokens."""
    if isinstance(record, str):
        raise Unreadable(record)
    taught = record.taught
    if taught is None:
        tally.left_out[_NOT_TAUGHT] = tally.left_out.get(_NOT_TAUGHT, 0) + 1
        return []
    conversation = prepared(taught, chat.system)
    key = _key(record.group, conversation)
    found = list(pieces(conversation, encode, chat.max_tokens))  # type: ignore[arg-type]
    kept = [piece for piece in found if np.isin(piece.codes[1:], chat.trained).any()]
    if not kept:
        raise Unreadable("no trained tokens")
    tally.pieces += len(kept)
    tally.split += len(found) > 1
    tally.context += len(found) - len(kept)
    return [(piece.ids, piece.codes, key) for piece in kept]


def prepared(conversation: Conversation, system: str | None) -> Conversation:
    """Returns a conversation up to its last answer, with a system message if it has none.

    Raises:
      Unreadable: there is no answer, or a text that UTF-8 cannot carry.
    """
    turns = list(conversation.messages)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise Unreadable("no turn of the assistant")
    if all(turn.role == "assistant" for turn in turns):
        raise Unreadable("no turn but the assistant's")
    for turn in turns:
        try:
            turn.content.encode()
        except UnicodeEncodeError:
            raise Unreadable("half of a surrogate pair") from None
    if system is not None and turns[0].role != "system":
        turns.insert(0, Message("system", system))
    return Conversation(tuple(turns), conversation.tools)


def _key(group: str, conversation: Conversation) -> bytes:
    """Returns the SHA-256 by which a conversation, or its group, is held out."""
    turns = [[turn.role, turn.content] for turn in conversation.messages]
    return hashlib.sha256((group or json.dumps(turns)).encode()).digest()


@functools.lru_cache(maxsize=8)
def prove_template(chat: Chat, tokenizer: Tokenizer) -> tuple[ChatTemplate, Proofs]:
    """Returns the template that conversations are rendered by, and what is proved of it.

    Raises:
      TemplateError: naming the proof that failed.
      ConfigError: there is no such template.
    """
    template = template_for(chat.template, tokenizer)
    return template, prove(template, tokenizer, last_only=chat.loss == "last_turn")
