"""Long conversations cut at turns: every answer's token trained once, or counted as dropped."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.data.instruct.splitting import grouped, pieces, rounds, windows
from t5x_llm.text.chat import Conversation, Encoded, Message


def encode(conversation, head=0, unstable=()):
    """A toy template: every turn a token for its role, then a number a character."""
    turns = conversation.messages
    last = max(i for i, m in enumerate(turns) if m.role == "assistant")
    ids, codes, index = [0] * head, [1] * head, [-1] * head
    for i, m in enumerate(turns):
        body = [int(x) for x in m.content.split()]
        code = 1 if m.role != "assistant" else 3 if i == last else 2
        ids += [1, *body]
        codes += [1] + [code] * len(body)
        index += [i] * (1 + len(body))
    return Encoded(
        np.array(ids, np.int32), np.array(codes, np.uint8), np.array(index, np.int32),
        types.SimpleNamespace(unstable=unstable), np.zeros((0, 2), np.int32),
    )  # fmt: skip


def talk(sizes, system=0):
    """Turns of user and assistant of so many tokens, the role's included, of different ids."""
    messages, number = [], 100
    if system:
        messages.append(Message("system", " ".join(["50"] * (system - 1))))
    for i, size in enumerate(sizes):
        content = " ".join(str(number + k) for k in range(size - 1))
        messages.append(Message("assistant" if i % 2 else "user", content))
        number += size
    return Conversation(tuple(messages))


def test_the_last_round_is_not_lost():
    """FastChat's splitter keeps the first round of these turns alone (lm-sys/FastChat)."""
    assert grouped([200, 2200], 2048) == [(0, 1), (1, 2)]
    conversation = talk([100, 100, 300, 1900])
    whole = encode(conversation)
    answers = whole.ids[whole.codes >= 2].tolist()
    assert len(answers) == 99 + 1899
    found = list(pieces(conversation, encode, 2048))
    assert [len(p.ids) for p in found] == [200, 2048, 2048]
    # The second round has 2,200 tokens: its last 152 are trained with the context before them.
    assert np.concatenate([p.ids[p.codes >= 2] for p in found]).tolist() == answers
    assert [int((p.codes >= 2).sum()) for p in found] == [99, 1747, 152]
    (whole_piece,) = pieces(conversation, encode, 4096)
    assert whole_piece.codes.tolist() == whole.codes.tolist()


def test_a_limit_that_fits_and_the_overflowing_last_round():
    assert grouped([5, 5, 5], 15) == [(0, 3)] and grouped([5, 5, 5], 14) == [(0, 2), (2, 3)]
    assert grouped([5, 5, 5], 14, head=5) == [(0, 1), (1, 2), (2, 3)]
    assert grouped([30], 14) == [(0, 1)] and grouped([], 14) == []


def test_rounds_keep_tools_and_answers_in_a_row_together():
    roles = ["system", "user", "assistant", "tool", "assistant", "assistant", "user", "user"]
    found = rounds([Message(role, "x") for role in [*roles, "assistant"]])
    assert found == [(1, 6), (6, 9)]
    assert rounds([Message("assistant", "x"), Message("user", "x")]) == [(0, 1), (1, 2)]
    assert rounds([]) == []


def test_pieces_repeat_the_system_message_and_know_the_last_answer():
    found = list(pieces(talk([4, 4, 4, 4, 4, 4], system=3), encode, 11))
    assert [p.ids[:3].tolist() for p in found] == [[1, 50, 50]] * 3
    assert [sorted(set(p.codes.tolist())) for p in found] == [[1, 2], [1, 2], [1, 3]]


def test_answers_that_a_template_rewrites_are_learned_as_last_turns():
    """As Qwen3, which leaves out the reasoning of earlier answers."""
    conversation = talk([3, 4, 3, 4])

    def made(each):
        found = encode(each, unstable=(1,) if len(each.messages) > 2 else ())
        if found.unstable:
            found.codes[found.turns == 1] = 0
        return found

    first, again = pieces(conversation, made, 64)
    assert set(first.codes[4:7]) == {0} and set(first.codes[-3:]) == {3}
    assert again.ids.tolist() == first.ids[:7].tolist()
    assert again.codes.tolist() == [0] * 4 + [2] * 3


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=2, max_size=14),
    st.integers(0, 8),
    st.integers(0, 3),
    st.integers(16, 64),
)
def test_every_answer_s_token_is_trained_exactly_once(sizes, system, head, limit):
    conversation = talk(sizes[: len(sizes) // 2 * 2], max(system, 0))
    whole = encode(conversation, head)
    found = list(pieces(conversation, lambda c: encode(c, head), limit))
    assert all(len(p.ids) <= limit for p in found)
    for codes in ((2, 3), (3,)):
        trained = np.concatenate([p.ids[np.isin(p.codes, codes)] for p in found])
        assert trained.tolist() == whole.ids[np.isin(whole.codes, codes)].tolist()


@pytest.mark.parametrize("count", [7, 8, 9, 13, 100])
def test_windows_train_every_token_once_with_half_of_context(count):
    ids, codes = np.arange(count), np.ones(count, np.uint8)
    found = list(windows(ids, codes, 8))
    assert np.concatenate([w.ids[w.codes == 1] for w in found]).tolist() == ids.tolist()
    assert all(len(w.ids) == min(count, 8) for w in found)
    assert all((w.codes[:4] == 0).all() for w in found[1:])
