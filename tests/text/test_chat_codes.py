"""What is trained in a conversation: exactly what the assistant generates."""

import numpy as np
import pytest
from chat_cases import (
    ALTERNATING,
    TRIMMING,
    byte_level,
    merging,
    prefixing,
    talk,
    with_specials,
)  # fmt: skip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import DataError
from t5x_llm.text.bytes import byte_tokenizer
from t5x_llm.text.chat import (
    BUILTIN,
    ChatTemplate,
    Conversation,
    Message,
    encode_conversation,
    encode_prompt,
    prove,
    template_for,
)

_WORDS = st.sampled_from(
    ["\n", "\n\n", " ", "  ", "a", "Hi", "user", "ASSISTANT:", "<|", "[", "</", "é", "中文", "👍",
     "\u200d", "\r\n", "\t", "1", ".", "<think>", "{{ x }}", "{% raw %}", "\ue000", "\U000f0000"]
)  # fmt: skip
CONTENTS = st.one_of(
    st.lists(_WORDS, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)


def assistant(content, reasoning, trained):
    return Message("assistant", content, reasoning, trained=trained)


ASSISTANTS = st.builds(
    assistant,
    CONTENTS,
    st.one_of(st.just(""), st.sampled_from(["hm", "a\nb", " x "])),
    st.sampled_from([True, True, True, False]),
)
USERS = st.builds(Message, st.just("user"), CONTENTS)


@st.composite
def conversations(draw, strict):
    system = draw(st.one_of(st.just([]), CONTENTS.map(lambda c: [Message("system", c)])))
    if strict:
        pairs = draw(st.lists(st.tuples(USERS, ASSISTANTS), min_size=1, max_size=4))
        turns = [message for pair in pairs for message in pair]
        turns += draw(st.lists(USERS, max_size=1))
    else:
        turns = draw(st.lists(st.one_of(USERS, ASSISTANTS), max_size=5))
        turns.insert(draw(st.integers(0, len(turns))), draw(ASSISTANTS))
    return Conversation(tuple(system + turns))


TOKENIZERS = {"bytes": byte_level, "llama3": merging, "llama2": prefixing}


def answer(message, name):
    """What the assistant said, as a template writes it."""
    content = message.content.strip() if name in TRIMMING else message.content
    if message.reasoning:
        content = f"<think>\n{message.reasoning}\n</think>\n\n{content}"
    return content


def spelled(tokenizer, ids):
    """The text of ids, special tokens as they are written."""
    out, run = "", []
    for i in [*ids, None]:
        if i is None or i in tokenizer.special:
            out += tokenizer.decode(run) + ("" if i is None else tokenizer.piece(i))
            run = []
        else:
            run.append(i)
    return out


def check(name, tokenizer, conversation):
    template = template_for(name, tokenizer)
    encoded = encode_conversation(template, tokenizer, conversation)
    ids = encoded.ids.tolist()
    stop = prove(template, tokenizer).stop
    last = conversation.assistants[-1]
    assert encoded.unstable == ()
    assert set(encoded.turns[encoded.codes >= 2].tolist()) == {
        i for i in conversation.assistants if conversation.messages[i].trained
    }
    for index, message in enumerate(conversation.messages):
        own = np.flatnonzero(encoded.turns == index)
        if message.role != "assistant":
            assert (encoded.codes[own] == 1).all()
            continue
        assert (np.diff(own) == 1).all()
        wanted = (3 if index == last else 2) if message.trained else 0
        assert (encoded.codes[own] == wanted).all()
        # Exactly what was said and the stop token, from where a server stops to send.
        (a, b, _) = next(span for span in encoded.rendered.spans if span[2] == index)
        text = encoded.rendered.text[a:b]
        lead = " " if name in ("vicuna", "llama2", "mistral") else "\n" if name == "chatglm" else ""
        end = " " + stop if name == "llama2" else stop
        assert text == lead + answer(message, name) + end
        tokens = encoded.ids[own].tolist()
        assert tokenizer.piece(tokens[-1]) == stop
        said = spelled(tokenizer, tokens)
        # Decoding may lose the space in front of a text, as LLaMA's does.
        assert said.lstrip(" ") == text.lstrip(" ")
        prompt = encode_prompt(template, tokenizer, conversation.before(index)) if index else None
        if prompt is not None:
            assert ids[: len(prompt)] == prompt
            assert own[0] == len(prompt)
    assert (encoded.codes[encoded.turns == -1] == 1).all()


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", BUILTIN)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_exactly_the_assistants_tokens_are_trained(name, kind, data):
    check(name, TOKENIZERS[kind](), data.draw(conversations(name in ALTERNATING)))


@pytest.mark.extended
@pytest.mark.parametrize("name", BUILTIN)
@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_exactly_the_assistants_tokens_are_trained_sentencepiece(trained, name, data):
    tokenizer = with_specials(trained[0])
    check(name, tokenizer, data.draw(conversations(name in ALTERNATING)))


def test_an_answer_that_begins_where_a_token_would_reach_into_the_prompt():
    """'assistant\\n' and '\\nYes' hold a token of two newlines that no server can produce."""
    tokenizer = merging()
    conversation = talk("Hi", "\nYes", "And?", "\n\nNo")
    template = template_for("chatml", tokenizer)
    whole, _ = tokenizer.encode_spans("<|im_start|>assistant\n\nYes", True)
    prompt, _ = tokenizer.encode_spans("<|im_start|>assistant\n", True)
    assert whole[: len(prompt)] != prompt
    encoded = encode_conversation(template, tokenizer, conversation)
    for index in (1, 3):
        served = encode_prompt(template, tokenizer, conversation.before(index))
        assert encoded.ids[: len(served)].tolist() == served
        assert served[-len(prompt) :] == prompt
        assert encoded.codes[len(served)] >= 2
    assert spelled(tokenizer, encoded.ids.tolist()) == encoded.rendered.text


GPT2_LIKE = ChatTemplate(
    "plain",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
)


def test_an_answer_at_the_very_start_masks_nothing_after_it():
    """Report B2, transformers#47325: the index 0 was taken for no index."""
    conversation = talk(("assistant", "A"), ("user", "then yes"[:7]))
    encoded = encode_conversation(GPT2_LIKE, byte_tokenizer(), conversation)
    assert (encoded.codes >= 2).tolist() == [True] + [False] * 7


def test_an_answer_that_ends_in_spaces_that_are_trimmed():
    """Report B2: a span that ends in stripped white space."""
    conversation = talk("a", "Yes  \n", "b", "No \n")
    tokenizer = byte_level()
    encoded = encode_conversation(template_for("llama3", tokenizer), tokenizer, conversation)
    words = [encoded.rendered.text[a:b] for a, b, _ in encoded.rendered.spans]
    assert words == ["Yes<|eot_id|>", "No<|eot_id|>"]
    assert (encoded.codes == 2).sum() == 4 and (encoded.codes == 3).sum() == 3


def test_two_turns_in_a_row_are_two():
    """Report open-instruct#1879: two assistant turns in a row were read as one."""
    tokenizer = byte_level()
    conversation = talk(("user", "a"), ("assistant", "bc"), ("assistant", "d"))
    encoded = encode_conversation(template_for("chatml", tokenizer), tokenizer, conversation)
    assert (encoded.codes == 2).sum() == 3 and (encoded.codes == 3).sum() == 2


@pytest.mark.parametrize("name", BUILTIN)
def test_an_answer_of_three_tokens_has_three_targets(name):
    """Report B3, OpenRLHF#973: the mask began one token late."""
    tokenizer = byte_level()
    encoded = encode_conversation(template_for(name, tokenizer), tokenizer, talk("a", "bc"))
    lead = encoded.rendered.spans[0][1] - encoded.rendered.spans[0][0]
    stop = prove(template_for(name, tokenizer), tokenizer)
    own = encoded.ids[encoded.codes == 3].tolist()
    assert own[-1] == stop.stop_id and len(own) == lead - len(stop.stop) + 1
    assert tokenizer.decode(own).strip() == "bc"


@pytest.mark.parametrize("pad", ["</s>", None, "<s>"])
def test_no_id_is_taken_for_padding(pad):
    """Report B12, transformers#35352: where pad is EOS, the stop tokens are trained too."""
    tokenizer = with_specials(byte_tokenizer(), pad_token=pad)
    for name in ("vicuna", "alpaca", "mistral"):
        template = template_for(name, tokenizer)
        encoded = encode_conversation(template, tokenizer, talk("a", "b", "c", "d"))
        stops = np.flatnonzero(encoded.ids == tokenizer.eos_id)
        assert encoded.codes[stops].tolist() == [2, 3]
        assert len(encoded.ids) == stops[-1] + 1


def test_a_message_that_is_not_trained_and_one_that_is():
    tokenizer = byte_level()
    turns = (Message("user", "a"), Message("assistant", "b", trained=False))
    conversation = Conversation((*turns, Message("user", "c"), Message("assistant", "d")))
    encoded = encode_conversation(template_for("chatml", tokenizer), tokenizer, conversation)
    assert (encoded.codes == 0).sum() == 2 and (encoded.codes == 3).sum() == 2
    assert not (encoded.codes == 2).any()


def test_text_that_is_not_utf8_is_refused():
    tokenizer = byte_level()
    with pytest.raises(DataError, match="unpaired surrogates"):
        encode_conversation(template_for("chatml", tokenizer), tokenizer, talk("a", "\ud800"))
