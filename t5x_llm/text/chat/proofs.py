"""Four proofs of a chat template with a tokenizer, made before the first step.

A model that was trained with two BOS tokens, without its stop token, or on other ids than the
server sends, answers badly and gives no error. Each of these is found here, on conversations made
for the purpose.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t5x_llm.text.chat.encoding import LAST, Encoded, encode_conversation, encode_prompt
from t5x_llm.text.chat.errors import TemplateError
from t5x_llm.text.chat.messages import Conversation, Message
from t5x_llm.text.chat.rendering import stop_text
from t5x_llm.text.chat.template import ChatTemplate, special_texts
from t5x_llm.text.tokenizer import Tokenizer

_ANSWERS = ("The first answer.", "Second one:\nwith two lines", "3")
_ASKED = ("What is first?", "And then?", "最后呢?")


@dataclasses.dataclass(frozen=True)
class Proofs:
    """Properties of a template with a tokenizer, proved.

    Attributes:
      template: its name.
      fingerprint: of the template.
      stop: text of the token that ends a turn.
      stop_id: id of that token, with which a server ends an answer.
      bos: whether texts begin with BOS.
      system: whether it has a place for a system message.
      tools: whether it has a place for calls of tools and their answers.
    """

    template: str
    fingerprint: str
    stop: str
    stop_id: int
    bos: bool
    system: bool
    tools: bool


def prove(template: ChatTemplate, tokenizer: Tokenizer, last_only: bool = False) -> Proofs:
    """Proves a template: one BOS, the stop token is trained, prefixes are stable, and the ids of
    training are those of serving.

    Args:
      template: the template.
      tokenizer: whose ids are trained.
      last_only: whether only the last turn of a conversation is trained, so that earlier turns may
        be written otherwise once others follow.

    Raises:
      TemplateError: one of them fails; ``proof`` names it.
    """
    _check_eos(template, tokenizer)
    plain = _dialogue()
    encoded = encode_conversation(template, tokenizer, plain)
    _check_contents(template, encoded, plain)
    stop, stop_id = _stop(template, tokenizer)
    bos = _check_bos(template, tokenizer, encoded, stop_id)
    supported = {}
    for name, conversation in _variants().items():
        try:
            encoded = encode_conversation(template, tokenizer, conversation)
        except TemplateError as e:
            if name == "plain":
                raise
            supported[name] = False
            if e.proof != "render":
                raise
            continue
        supported[name] = True
        _check_prefixes(template, encoded, conversation, last_only)
        _check_stop(template, encoded, conversation, stop, stop_id)
        _check_serving(template, tokenizer, encoded, conversation)
    return Proofs(
        template.name,
        template.fingerprint,
        stop,
        stop_id,
        bos,
        supported["system"],
        supported["tools"],
    )


def _dialogue(*before: Message) -> Conversation:
    turns = [
        message
        for asked, answer in zip(_ASKED, _ANSWERS, strict=True)
        for message in (Message("user", asked), Message("assistant", answer))
    ]
    return Conversation((*before, *turns))


def _variants() -> dict[str, Conversation]:
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    schema = {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
        },
    }
    called = (
        Message("user", "Add one and two."),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "3", name="add"),
        Message("assistant", "It is three."),
    )
    return {
        "plain": _dialogue(),
        "system": _dialogue(Message("system", "Answer well.")),
        "tools": Conversation(called, (schema,)),
    }


def _check_eos(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    if "eos_token" in template.source and tokenizer.eos_id is None:
        raise TemplateError(
            f"Chat template {template.name} ends an answer with the tokenizer's eos_token, and the "
            "tokenizer has none. Name one in special_tokens_map.json, or use a template with a "
            "stop token that the tokenizer has.",
            "stop",
        )


def _stop(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[str, int]:
    """Returns text and id of the stop token."""
    stop = stop_text(template, special_texts(tokenizer))
    if not stop:
        raise TemplateError(
            f"Chat template {template.name} writes nothing after an answer: a model trained so "
            "never stops. Add the stop token to the template (after the answer, within "
            "{% generation %}), or use a built-in template.",
            "stop",
        )
    ids, _ = tokenizer.encode_spans(stop, True, False)
    if len(ids) != 1:
        raise TemplateError(
            f"Chat template {template.name} ends an answer with {stop!r}, which is {len(ids)} "
            "tokens of this tokenizer; a server stops at one. Add it to the tokenizer as a special "
            "token (t5x-llm tokenizer grow), or use a template whose stop token it has.",
            "stop",
        )
    return stop, ids[0]


def _check_contents(template: ChatTemplate, encoded: Encoded, conversation: Conversation) -> None:
    text, spans = encoded.rendered.text, encoded.rendered.spans
    for index in conversation.assistants:
        content = conversation.messages[index].content
        own = "".join(text[a:b] for a, b, i in spans if i == index)
        if content not in (text if index in encoded.unstable else own):
            raise TemplateError(
                f"Chat template {template.name} does not write the answer {content!r} among what "
                f"the assistant generates ({own!r}). It may want contents as lists of parts, as "
                "templates with pictures do; use another.",
                turn=index,
            )


def _check_bos(
    template: ChatTemplate, tokenizer: Tokenizer, encoded: Encoded, stop_id: int
) -> bool:
    """Proves one BOS at the start of a text, or of each round where rounds are texts (Llama-2)."""
    bos = tokenizer.bos_id
    if bos is None:
        return False
    ids = encoded.ids.tolist()
    name = f"Chat template {template.name}"
    if tokenizer.add_bos and ids[0] != bos:
        raise TemplateError(
            f"{name} does not begin with {tokenizer.piece(bos)!r}, with which the tokenizer begins "
            "every text. Put {{ bos_token }} in front of it.",
            "bos",
        )
    if bos != stop_id:
        text = encoded.rendered.text
        for at in np.flatnonzero(encoded.ids == bos)[ids[0] == bos :].tolist():
            before = at - 1
            while before > 0 and not text[slice(*encoded.spans[before])].strip():
                before -= 1
            if ids[before] != stop_id:
                raise TemplateError(
                    f"{name} writes {tokenizer.piece(bos)!r} again at token {at}, after "
                    f"{text[: encoded.spans[at][0]][-30:]!r}: one BOS begins a text. Take one "
                    "away; the tokenizer adds none of its own to a conversation.",
                    "bos",
                )
    elif ids[:2] == [bos, bos]:
        raise TemplateError(f"{name} begins with {tokenizer.piece(bos)!r} twice.", "bos")
    return ids[0] == bos


def _check_prefixes(
    template: ChatTemplate, encoded: Encoded, conversation: Conversation, last_only: bool
) -> None:
    allowed = conversation.assistants[:-1] if last_only else ()
    changed = [i for i in encoded.unstable if i not in allowed]
    if changed:
        roles = ", ".join(m.role for m in conversation.messages)
        raise TemplateError(
            f"Chat template {template.name} writes the answer at message {changed[0] + 1} of "
            f"({roles}), or what is before it, otherwise than when it was asked for: prefixes are "
            "not stable. Templates that drop earlier reasoning do so; train the last turn alone "
            "(Chat.loss = 'last_turn'), or use a template that keeps every turn, such as 'qwen'.",
            "prefix",
            changed[0],
        )


def _check_stop(
    template: ChatTemplate, encoded: Encoded, conversation: Conversation, stop: str, stop_id: int
) -> None:
    text = encoded.rendered.text
    for index in conversation.assistants:
        # A call of a tool may end with a token of its own.
        if index in encoded.unstable or conversation.messages[index].tool_calls:
            continue
        end = max(b for _, b, i in encoded.rendered.spans if i == index)
        at = np.flatnonzero(encoded.spans[:, 1] == end)
        at = at[encoded.ids[at] == stop_id]
        if not len(at) or encoded.codes[at[-1]] < 2:
            raise TemplateError(
                f"Chat template {template.name} does not train {stop!r} at the end of message "
                f"{index + 1}, which ends with {text[:end][-30:]!r}: the model would not stop. Put "
                "the stop token within {% generation %}.",
                "stop",
                index,
            )


def _check_serving(
    template: ChatTemplate, tokenizer: Tokenizer, encoded: Encoded, conversation: Conversation
) -> None:
    """Proves that a server sends what stands before each answer, and that all after it until its
    end is trained.
    """
    ids = encoded.ids.tolist()
    for index in conversation.assistants:
        if index in encoded.unstable:
            continue
        prompt = encode_prompt(template, tokenizer, conversation.before(index)) if index else []
        size = len(prompt)
        end = max(b for _, b, i in encoded.rendered.spans if i == index)
        answer = encoded.codes[size : np.searchsorted(encoded.spans[:, 0], end)]
        wanted = LAST if index == conversation.assistants[-1] else LAST - 1
        if ids[:size] != prompt:
            at = next((k for k in range(size) if k >= len(ids) or ids[k] != prompt[k]), size)
            raise TemplateError(
                f"Chat template {template.name}: the prompt for message {index + 1} has other "
                f"tokens when it is served, from token {at} of {size} on.",
                "serving",
                index,
            )
        if not len(answer) or (answer != wanted).any():
            raise TemplateError(
                f"Chat template {template.name} does not mark all of what the assistant generates "
                f"at message {index + 1}: {int((answer != wanted).sum())} of {len(answer)} tokens "
                "after the prompt are not trained. Begin {% generation %} where the generation "
                "prompt ends.",
                "serving",
                index,
            )
