"""Conversations to ids and codes: what a token is to the training."""

from __future__ import annotations

import bisect
import dataclasses

import numpy as np

from t5x_llm.text.chat.messages import Conversation
from t5x_llm.text.chat.rendering import Rendered, check_answered, render
from t5x_llm.text.chat.template import ChatTemplate, special_texts
from t5x_llm.text.tokenizer import Tokenizer

NEVER, PROMPT, EARLIER, LAST = 0, 1, 2, 3
CODES = (NEVER, PROMPT, EARLIER, LAST)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A conversation in tokens; n of them.

    Attributes:
      ids: int32 [n].
      codes: uint8 [n]; of the token itself as a target: 0 never trained (a message that is not
        ``trained``, or is unstable), 1 prompt, 2 the assistant's in an earlier turn, 3 the
        assistant's in its last turn.
      turns: int32 [n]; index of the message that a token is the content of (an assistant's stop
        token included), -1 for what the template writes around.
      rendered: the text.
      spans: int32 [n, 2]; start and stop of each token in the text.
    """

    ids: np.ndarray
    codes: np.ndarray
    turns: np.ndarray
    rendered: Rendered
    spans: np.ndarray

    @property
    def unstable(self) -> tuple[int, ...]:
        """Assistant's messages that a template writes otherwise once others follow; code 0.
        ``conversation.before(index + 1)`` trains such a message as a last turn.
        """
        return self.rendered.unstable


def encode_conversation(
    template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation
) -> Encoded:
    """Encodes a conversation for training, by one rendering and one tokenisation.

    Raises:
      DataError: it has no assistant turn, or its text is no UTF-8.
      TemplateError: the template refuses it.
    """
    check_answered(conversation)
    rendered = render(template, conversation, special_texts(tokenizer))
    ids, spans = _tokenised(tokenizer, rendered)
    codes = np.full(len(ids), PROMPT, np.uint8)
    turns = np.full(len(ids), -1, np.int32)
    last = conversation.assistants[-1]
    starts = np.asarray([a for a, _ in spans], np.int64)
    for a, b, index in (*rendered.contents, *rendered.spans):
        turns[np.searchsorted(starts, a) : np.searchsorted(starts, b)] = index
    for a, b, index in rendered.spans:
        trained = conversation.messages[index].trained
        code = (LAST if index == last else EARLIER) if trained else NEVER
        codes[np.searchsorted(starts, a) : np.searchsorted(starts, b)] = code
    for a, b in _withheld(rendered):
        codes[np.searchsorted(starts, a) : np.searchsorted(starts, b)] = NEVER
    return Encoded(
        np.asarray(ids, np.int32),
        codes,
        turns,
        rendered,
        np.asarray(spans, np.int32).reshape(-1, 2),
    )


def encode_prompt(
    template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation
) -> list[int]:
    """Returns the ids that a server sends to the model for the next answer."""
    rendered = render(template, conversation, special_texts(tokenizer), True)
    return _tokenised(tokenizer, rendered)[0]


def _withheld(rendered: Rendered) -> list[tuple[int, int]]:
    """Returns where unstable answers may stand: between the known places around them."""
    known = sorted((i, a, b) for a, b, i in (*rendered.contents, *rendered.spans))
    out = []
    for index in rendered.unstable:
        before = max((b for i, _, b in known if i < index), default=0)
        after = min((a for i, a, _ in known if i > index), default=len(rendered.text))
        out.append((before, after))
    return out


def _tokenised(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
    """Encodes a text so that the tokens before each answer are those of its prompt alone.

    The whole text is encoded once. Where a token would reach from a prompt into the answer (an
    answer that begins with a newline, after a newline), the text is cut there: a server encodes
    the prompt without the answer.
    """
    text = rendered.text
    ids, spans = tokenizer.encode_spans(text, True)
    special = tokenizer.special
    anchors = [(a, b) for i, (a, b) in zip(ids, spans, strict=True) if i in special]
    ends = [b for _, b in anchors]
    cuts: list[int] = []
    done: set[int] = set()
    for start, _, index in rendered.spans:
        if index in done or not 0 < start < len(text):
            continue
        done.add(index)
        at = bisect.bisect_right(ends, start) - 1
        window = anchors[at][0] if at >= 0 else 0
        first = bisect.bisect_left(spans, (window, window))
        prompt, _ = tokenizer.encode_spans(text[window:start], True, window == 0)
        if ids[first : first + len(prompt)] != prompt or (
            first + len(prompt) < len(spans) and spans[first + len(prompt)][0] < start
        ):
            cuts.append(start)
    if not cuts:
        return ids, spans
    ids, spans = [], []
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        some, places = tokenizer.encode_spans(text[a:b], True, a == 0)
        ids += some
        spans += [(a + x, a + y) for x, y in places]
    return ids, spans
