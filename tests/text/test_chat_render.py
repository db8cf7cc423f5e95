"""Renderings and masks equal those of transformers' ``apply_chat_template``."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from chat_cases import CONVERSATIONS, WITH_TOOLS, byte_level, talk, without_marks

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.text.chat import (
    BUILTIN,
    ChatTemplate,
    Conversation,
    Message,
    TemplateError,
    builtin,
    encode_conversation,
    encode_prompt,
    render,
    special_texts,
    template_for,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "chat.json").read_text("utf-8"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CASES = [(t, c) for t in BUILTIN for c in CONVERSATIONS]


@pytest.mark.parametrize("name, case", CASES)
def test_builtin_equals_transformers(name, case):
    golden, conversation = GOLDEN["builtin"][name][case], CONVERSATIONS[case]
    if "refused" in golden:
        with pytest.raises(TemplateError) as caught:
            render(builtin(name), conversation, SPECIAL)
        assert golden["refused"] in str(caught.value)
        assert "At message" in str(caught.value) and caught.value.turn is not None
        return
    encoded = encode_conversation(builtin(name), byte_level(), conversation)
    assert encoded.rendered.text == golden["text"]
    assert hashlib.sha256(encoded.ids.tobytes()).hexdigest() == golden["ids"]
    edges = np.flatnonzero(np.diff([0, *(encoded.codes >= 2), 0])).reshape(-1, 2)
    assert edges.tolist() == golden["assistant"]
    assert encoded.unstable == ()


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_templates_of_models_equal_transformers(name):
    template = ChatTemplate(name, GOLDEN["models"][name]["source"])
    for case, golden in GOLDEN["models"][name]["rendered"].items():
        if "refused" in golden:
            with pytest.raises(TemplateError):
                render(template, CONVERSATIONS[case], SPECIAL)
        elif case == "tools" and name in ("llama3", "gemma", "phi3"):
            with pytest.raises(TemplateError, match="leaves out the call of 'add' at message 2"):
                render(template, CONVERSATIONS[case], SPECIAL)
        else:
            assert render(template, CONVERSATIONS[case], SPECIAL).text == golden["text"]


@pytest.mark.parametrize(
    "ours, theirs, cases",
    [
        ("llama3", "llama3", ("plain", "system", "in a row", "input")),
        ("gemma", "gemma", ("plain", "input")),
        ("qwen", "qwen2_5", ("plain", "system", "in a row", "input")),
    ],
)
def test_builtin_writes_what_the_models_template_writes(ours, theirs, cases):
    for case in cases:
        golden = GOLDEN["models"][theirs]["rendered"][case]["text"]
        assert render(builtin(ours), CONVERSATIONS[case], SPECIAL).text == golden


@pytest.mark.parametrize(
    "name, case", [(n, c) for n, c in CASES if "refused" not in GOLDEN["builtin"][n][c]]
)
def test_spans_derived_without_marks_are_those_of_the_marks(name, case):
    marked = render(builtin(name), CONVERSATIONS[case], SPECIAL)
    derived = render(without_marks(builtin(name)), CONVERSATIONS[case], SPECIAL)
    assert derived.text == marked.text
    assert derived.spans == marked.spans
    assert derived.unstable == ()


def test_spans_of_models_templates_without_marks():
    def answers(name, case):
        template = ChatTemplate(name, GOLDEN["models"][name]["source"])
        rendered = render(template, CONVERSATIONS[case], SPECIAL)
        return [rendered.text[a:b] for a, b, _ in rendered.spans], rendered.unstable

    # Phi-3 ends the whole text with more than an answer's stop token.
    assert answers("phi3", "plain") == (["Hello!<|end|>", " It's 4 <|end|>"], ())
    assert answers("qwen2_5", "plain") == (["Hello!<|im_end|>", " It's 4 <|im_end|>"], ())
    assert answers("gemma", "plain") == (["Hello!<end_of_turn>", "It's 4<end_of_turn>"], ())
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call><|im_end|>'
    assert answers("qwen2_5", "tools")[0][0] == call


def test_earlier_reasoning_that_a_template_drops_is_never_trained():
    """Report B22: Qwen3's prefix of the first answer is longer than in the whole text."""
    template = ChatTemplate("qwen3", GOLDEN["models"]["qwen3"]["source"])
    conversation = CONVERSATIONS["reasoning"]
    encoded = encode_conversation(template, byte_level(), conversation)
    text = encoded.rendered.text
    assert "hm" not in text and encoded.unstable == (1,)
    ((start, stop, index),) = encoded.rendered.spans
    assert (text[start:stop], index) == ("<think>\ntwo\n</think>\n\n4<|im_end|>", 3)
    first = text.index("Hello!")
    at = np.flatnonzero((encoded.spans[:, 0] >= first) & (encoded.spans[:, 1] <= first + 6))
    assert len(at) == 6 and not encoded.codes[at].any()
    # As a last turn it is trained with its reasoning.
    alone = encode_conversation(template, byte_level(), conversation.before(2))
    assert alone.unstable == () and "hm" in alone.rendered.text


def test_marks_within_a_header_and_in_several_blocks():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}A: {{ m.content }}"
        "{% endgeneration %}-{% generation %}!</s>\n{% endgeneration %}{% else %}U: {{ m.content }}"
        "\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    rendered = render(ChatTemplate("x", source), talk("a", "b", "c", "d"), SPECIAL)
    pieces = [(rendered.text[a:b], i) for a, b, i in rendered.spans]
    assert pieces == [("b", 1), ("!</s>", 1), ("d", 3), ("!</s>", 3)]
    assert [(rendered.text[a:b], i) for a, b, i in rendered.contents] == [("a", 0), ("c", 2)]


def test_no_assistant_turn():
    with pytest.raises(DataError, match=r"no assistant turn \(its roles: system, user\)"):
        encode_conversation(
            builtin("chatml"), byte_level(), talk(("system", "Be good."), ("user", "Hi"))
        )


@pytest.mark.parametrize(
    "fields, says",
    [
        (("human", "Hi"), "roles are system, user, assistant, tool"),
        (("user", ["Hi"]), "content of a message of role 'user' is list"),
        (("user", "Hi", "hm"), "role 'user' reasons"),
        (("assistant", "", "", ({"arguments": {}},)), "no name"),
        (("assistant", "", "", ("add",)), "no name"),
    ],
)
def test_messages_are_checked(fields, says):
    with pytest.raises(DataError, match=says):
        Message(*fields)
    with pytest.raises(DataError, match="no message"):
        Conversation(())


def test_a_tool_that_is_not_json_is_refused():
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "Yes")), ({"a": {1}},))
    with pytest.raises(DataError, match="set, which is not JSON"):
        render(builtin("qwen"), conversation, SPECIAL)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_prompt_after_a_tools_answer(name):
    conversation = CONVERSATIONS["tools"]
    whole = encode_conversation(builtin(name), byte_level(), conversation).ids.tolist()
    for index in conversation.assistants:
        prompt = encode_prompt(builtin(name), byte_level(), conversation.before(index))
        assert whole[: len(prompt)] == prompt


def _beside(files):
    return byte_level().with_companions(dict(byte_level().companions) | files)


def test_template_of_the_tokenizer():
    config = json.loads(byte_level().companions["tokenizer_config.json"])
    named = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
    one = _beside({"tokenizer_config.json": json.dumps(config | {"chat_template": "x"}).encode()})
    assert template_for("auto", one).source == "x"
    many = _beside({"tokenizer_config.json": json.dumps({"chat_template": named}).encode()})
    assert template_for("auto", many).source == "one"
    assert template_for("auto:rag", many).source == "two"
    with pytest.raises(ConfigError, match="auto:rag"):
        template_for("auto:rug", many)
    # A file of its own goes before the config, as in transformers.
    file = _beside({**many.companions, "chat_template.jinja": "三".encode()})
    assert template_for("auto", file).source == "三"
    with pytest.raises(ConfigError, match="Base models bring none"):
        template_for("auto", byte_level())
    with pytest.raises(DataError, match="without name and template"):
        template_for(
            "auto", _beside({"tokenizer_config.json": b'{"chat_template": [{"name": 1}]}'})
        )


def test_template_by_name_and_by_file(tmp_path):
    assert template_for("llama3", byte_level()) == builtin("llama3")
    # The tokenizer begins texts with BOS, and Vicuna's template writes none of its own.
    vicuna = template_for("vicuna", byte_level())
    assert render(vicuna, talk("a", "b"), special_texts(byte_level())).text.startswith("<s>A chat")
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}")
    assert template_for(str(file), byte_level()).name == "own.jinja"
    with pytest.raises(ConfigError, match="no such file"):
        template_for(str(tmp_path / "other.jinja"), byte_level())
    with pytest.raises(ConfigError, match="Did you mean 'vicuna'"):
        template_for("vicunna", byte_level())
    assert builtin("qwen").fingerprint != builtin("chatml").fingerprint
