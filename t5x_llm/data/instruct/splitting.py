"""Long conversations cut between turns, so that every answer is trained exactly once.

A piece is a conversation of its own: the system message and the tools, then whole rounds. A round
begins at a turn of the user that follows one of the assistant and ends before the next. A single
round that is longer than the limit is read in windows of that many tokens: what an earlier window
has trained is read again by the next for context, with code 0, and is not trained again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from t5x_llm.text.chat import Conversation, Encoded, Message
from t5x_llm.text.chat.encoding import EARLIER, LAST, NEVER


def grouped(sizes: Sequence[int], limit: int, head: int = 0) -> list[tuple[int, int]]:
    """Returns [start, stop) of the rounds of each piece, as many as fit, in order.

    Args:
      sizes: tokens of the rounds.
      limit: tokens of a piece; a round that is longer is a piece of its own.
      head: tokens that every piece begins with.
    """
    pieces: list[tuple[int, int]] = []
    start, held = 0, head
    for i, size in enumerate(sizes):
        if i > start and held + size > limit:
            pieces.append((start, i))
            start, held = i, head
        held += size
    return [*pieces, (start, len(sizes))] if sizes else []


def rounds(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Returns [start, stop) of the rounds of messages, those of the system at the front left out.

    A round ends before a turn of the user that follows one of the assistant.
    """
    first = 0
    while first < len(messages) and messages[first].role == "system":
        first += 1
    if first == len(messages):
        return []
    starts = [first]
    for i in range(first + 1, len(messages)):
        if messages[i].role == "user" and messages[i - 1].role in ("assistant", "tool"):
            starts.append(i)
    return list(zip(starts, [*starts[1:], len(messages)], strict=True))


@dataclasses.dataclass(frozen=True)
class ConversationPiece:
    """Tokens of one piece of a conversation.

    Attributes:
      ids: [n] int32.
      codes: [n] uint8, see ``chat_config``.
    """

    ids: np.ndarray
    codes: np.ndarray


def pieces(
    conversation: Conversation,
    encode: Callable[[Conversation], Encoded],
    limit: int | None,
) -> Iterator[ConversationPiece]:
    """Yields the pieces of a conversation, in order, each of at most ``limit`` tokens.

    Args:
      conversation: at least one answer in it.
      encode: a conversation to its tokens.
      limit: None for one piece, whatever its length.
    """
    whole = encode(conversation)
    if limit is None or len(whole.ids) <= limit:
        yield ConversationPiece(whole.ids, whole.codes)
        yield from _unstable(conversation, whole, encode, limit)
        return
    parts = rounds(conversation.messages)
    front = conversation.messages[: parts[0][0]]
    head, *sizes = _sizes(whole, parts)
    todo = grouped(sizes, limit, head)
    while todo:
        start, stop = todo.pop(0)
        turns = conversation.messages[parts[start][0] : parts[stop - 1][1]]
        piece = Conversation((*front, *turns), conversation.tools)
        made = encode(piece)
        if len(made.ids) > limit and stop - start > 1:
            # Rendered alone the piece is longer than its share of the whole.
            todo[:0] = [(start, stop - 1), (stop - 1, stop)]
            continue
        codes = made.codes
        if stop < len(parts):  # the last answer of a piece is not that of the conversation
            codes = np.where(codes == LAST, EARLIER, codes).astype(np.uint8)
        yield from windows(made.ids, codes, limit)
        yield from _unstable(piece, made, encode, limit)


def _sizes(whole: Encoded, parts: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the tokens before the first round and those of each round."""
    starts: list[int] = []
    for a, b in parts:
        own = np.flatnonzero((whole.turns >= a) & (whole.turns < b))
        starts.append(int(own[0]) if len(own) else (starts[-1] if starts else 0))
    return np.diff([0, *starts, len(whole.ids)]).tolist()


def _unstable(
    conversation: Conversation,
    made: Encoded,
    encode: Callable[[Conversation], Encoded],
    limit: int | None,
) -> Iterator[ConversationPiece]:
    """Yields a piece for each answer that the template writes otherwise once others follow.

    Such an answer, one with its reasoning, is learned where it is the last turn.
    """
    for index in made.unstable:
        if not conversation.messages[index].trained:
            continue
        turns = conversation.before(index + 1).messages
        before = [
            dataclasses.replace(m, trained=False) if m.role == "assistant" else m
            for m in turns[:-1]
        ]
        own = encode(Conversation((*before, turns[-1]), conversation.tools))
        codes = np.where(own.codes == LAST, EARLIER, NEVER).astype(np.uint8)
        yield from windows(own.ids, codes, limit or len(own.ids))


def windows(ids: np.ndarray, codes: np.ndarray, limit: int) -> Iterator[ConversationPiece]:
    """Yields windows of ``limit`` tokens, half of each new, until every token was read.

    The last window ends where the tokens end, so it has more context.
    """
    start, read = 0, 0
    while True:
        stop = min(start + limit, len(ids))
        own = codes[start:stop].copy()
        own[: read - start] = NEVER
        yield ConversationPiece(ids[start:stop], own)
        if stop == len(ids):
            return
        read = stop
        start = min(start + limit - limit // 2, len(ids) - limit)
