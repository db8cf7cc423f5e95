"""Trees of messages as Open Assistant publishes them, walked into conversations.

A file holds whole trees (``prompt`` with ``replies`` in ``replies``), or single messages with
``message_id`` and ``parent_id``, which are joined first. Every path from the root to a leaf is a
conversation; an answer that several paths share is trained in the first of them alone. The
``best`` path takes at every turn the reply that people ranked first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from t5x_llm.data.instruct.records import Dialogue, Unreadable
from t5x_llm.data.instruct.turns import ROLES, Row, text
from t5x_llm.text.chat import Conversation, Message

_DEEPEST = 1000


@dataclasses.dataclass
class _Node:
    """A message of a tree with its replies."""

    message: Message
    rank: float
    replies: list[_Node]
    read: bool = False  # its answer is part of a path that was made


def is_message(row: Row) -> bool:
    """Returns True for a row that is one message of a tree, and not the whole tree."""
    return "message_id" in row and "text" in row and "replies" not in row


def tree_dialogues(row: Row, best: bool) -> list[Dialogue]:
    """Returns the conversations of a whole tree; see ``dialogues``.

    Raises:
      Unreadable: it is no tree.
    """
    root = row.get("prompt", row)
    if not isinstance(root, Mapping):
        raise Unreadable("a tree without a prompt")
    name = row.get("message_tree_id", root.get("message_id"))
    return dialogues(_node(root, 0), str(name or ""), best)


def _node(value: Row, depth: int) -> _Node:
    if depth > _DEEPEST:
        raise Unreadable("a tree of too many turns")
    replies = value.get("replies") or []
    if not isinstance(replies, list):
        raise Unreadable("replies that are no list")
    kept = [r for r in replies if isinstance(r, Mapping) and not _rejected(r)]
    return _Node(_message(value), _rank(value), [_node(reply, depth + 1) for reply in kept])


def _message(value: Row) -> Message:
    role = ROLES.get(str(value.get("role")))
    if role not in ("user", "assistant"):
        raise Unreadable(f"unknown role {str(value.get('role'))[:40]!r}")
    return Message(role, text(value, "text"))


def _rank(value: Row) -> float:
    rank = value.get("rank")
    known = isinstance(rank, (int, float)) and not isinstance(rank, bool)
    return float(rank) if known else 1e9  # type: ignore[arg-type]


def _rejected(value: Row) -> bool:
    return bool(value.get("deleted")) or value.get("review_result") is False


def joined(rows: Iterable[tuple[int, Row]], best: bool) -> Iterator[tuple[int, Dialogue | str]]:
    """Yields the conversations of trees whose messages are rows, at the line of the root.

    A message that cannot be read, or whose parent is not there, is yielded as the reason.
    """
    nodes: dict[str, tuple[int, _Node, str | None, str]] = {}
    for line, row in rows:
        if _rejected(row):
            continue
        parent = row.get("parent_id")
        try:
            node = _Node(_message(row), _rank(row), [])
        except Unreadable as e:
            yield line, str(e)
            continue
        name = str(row.get("message_tree_id", row["message_id"]))
        nodes[str(row["message_id"])] = (line, node, str(parent) if parent else None, name)
    roots = []
    for line, node, parent, name in nodes.values():
        if parent is None:
            roots.append((line, node, name))
        elif parent in nodes:
            nodes[parent][1].replies.append(node)
        else:
            yield line, "a message whose parent is not there"
    for line, node, name in roots:
        for dialogue in dialogues(node, name, best):
            yield line, dialogue


def dialogues(root: _Node, name: str, best: bool) -> list[Dialogue]:
    """Returns the conversations from a root to its leaves, each ending in an answer.

    Args:
      root: first message.
      name: of the tree, which is held out as a whole.
      best: only the path of the replies that are ranked first.
    """
    found = []
    for path in _paths(root, best):
        while path and path[-1].message.role != "assistant":
            path = path[:-1]
        answers = [node for node in path if node.message.role == "assistant"]
        if all(node.read for node in answers):
            continue
        turns = [
            dataclasses.replace(n.message, trained=False) if n.read else n.message for n in path
        ]
        for node in answers:
            node.read = True
        found.append(Dialogue(Conversation(tuple(turns)), name))
    return found


def _paths(root: _Node, best: bool) -> Iterator[list[_Node]]:
    """Yields the paths from a root to its leaves, the better ranked replies first."""
    stack = [[root]]
    while stack:
        path = stack.pop()
        replies = sorted(path[-1].replies, key=lambda node: node.rank)
        if not replies:
            yield path
        for reply in reversed(replies[:1] if best else replies):
            stack.append([*path, reply])
