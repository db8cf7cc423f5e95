"""The four proofs of a template, each with the mistake that it finds."""

import json
import pickle
import re
from pathlib import Path

import pytest
from chat_cases import (
    WITH_TOOLS,
    byte_level,
    merging,
    prefixing,
    talk,
    with_specials,
    without_marks,
)  # fmt: skip

from t5x_llm.text.bytes import byte_tokenizer
from t5x_llm.text.chat import (
    BUILTIN,
    ChatTemplate,
    TemplateError,
    builtin,
    encode_prompt,
    prove,
    template_for,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "chat.json").read_text("utf-8"))
CHATML = builtin("chatml").source
BOS = "{{- bos_token }}\n"


def fails(proof, source, tokenizer=None, stop=None, **options):
    with pytest.raises(TemplateError) as caught:
        prove(ChatTemplate("own", source, stop), tokenizer or byte_level(), **options)
    assert caught.value.proof == proof, str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("make", [byte_level, merging, prefixing])
@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_templates_are_proved(name, make):
    proofs = prove(template_for(name, make()), make())
    assert proofs.bos and proofs.system and proofs.tools == (name in WITH_TOOLS)
    assert make().piece(proofs.stop_id) == proofs.stop
    bare = without_marks(template_for(name, make()))
    assert prove(bare, make()).stop_id == proofs.stop_id


def test_two_bos():
    """Report B11, OpenRLHF#393: both the template and the tokenizer began with BOS."""
    says = fails("bos", BOS + BOS + CHATML)
    assert "'<s>' again at token 1" in says


def test_bos_is_added_once_though_the_tokenizer_adds_it_too():
    """Report B11: [128000, 128000, ...] is [128000, ...]."""
    tokenizer = byte_level()
    assert tokenizer.add_bos
    ids = encode_prompt(template_for("llama3", tokenizer), tokenizer, talk("Hi"))
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_no_bos_where_the_tokenizer_begins_with_it():
    assert "{{ bos_token }}" in fails("bos", CHATML)


def test_bos_and_system_again_at_every_turn():
    """Report B24, MaxText: the second turn got a second BOS."""
    source = BOS + CHATML.replace("{{- message.content + ", "{{- bos_token + message.content + ")
    assert "again at token" in fails("bos", source)


def test_bos_that_begins_every_turn_is_allowed():
    """SmolLM2's BOS is <|im_start|> itself."""
    tokenizer = with_specials(byte_tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert prove(builtin("chatml"), tokenizer).stop == "<|im_end|>"


def test_bos_that_is_eos():
    """GPT-2's BOS and EOS are one token."""
    tokenizer = byte_tokenizer()
    assert not prove(template_for("alpaca", tokenizer), tokenizer).bos


def test_template_without_a_stop_token():
    source = BOS + CHATML.replace("{{- '<|im_end|>' }}", "").replace(
        "{%- endgeneration %}\n        {{- '\\n' }}", "{%- endgeneration %}"
    )
    assert "never stops" in fails("stop", source)


def test_stop_token_that_the_tokenizer_lacks():
    says = fails("stop", CHATML, byte_tokenizer())
    assert "'<|im_end|>', which is 10 tokens" in says and "tokenizer grow" in says


def test_tokenizer_without_eos():
    tokenizer = byte_tokenizer().with_companions(
        {"special_tokens_map.json": json.dumps({"eos_token": None, "bos_token": None}).encode()}
    )
    assert tokenizer.eos_id is None
    assert "tokenizer has none" in fails("stop", builtin("vicuna").source, tokenizer)


def test_stop_token_outside_the_marks():
    """Reports trl#3091, axolotl#3754: the model never stopped."""
    source = BOS + CHATML.replace(
        "{{- '<|im_end|>' }}\n        {%- endgeneration %}",
        "{%- endgeneration %}\n        {{- '<|im_end|>' }}",
    )
    assert "does not train '<|im_end|>' at the end of message 2" in fails("stop", source)


def test_stop_token_that_is_said_to_be_another():
    assert "does not train '</s>'" in fails("stop", BOS + CHATML, stop="</s>")


QWEN3 = GOLDEN["models"]["qwen3"]["source"]


def no_bos():
    return with_specials(byte_tokenizer(), bos_token=None)


def test_prefixes_that_change():
    """Report B22, Automodel#3024: Qwen3 writes earlier answers otherwise than the last."""
    says = fails("prefix", QWEN3, no_bos())
    assert "message 2 of (user, assistant, user" in says and "last_turn" in says
    assert prove(ChatTemplate("q", QWEN3), no_bos(), last_only=True).stop == "<|im_end|>"
    # TRL's variant of it keeps every turn.
    kept = GOLDEN["models"]["qwen3_training"]["source"]
    assert prove(ChatTemplate("q", kept), no_bos()).tools


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_training"])
def test_templates_of_models_are_proved(name):
    proofs = prove(ChatTemplate(name, GOLDEN["models"][name]["source"]), no_bos())
    assert (proofs.stop, proofs.tools, proofs.bos) == ("<|im_end|>", True, False)


def test_marks_that_begin_after_the_prompt_ends():
    """OpenRLHF#973: the first token of an answer was not trained."""
    source = BOS + CHATML.replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant' }}"
    )
    assert source != BOS + CHATML
    says = fails("serving", source)
    assert "1 of" in says and "after the prompt are not trained" in says


def test_the_prompt_differs_from_what_is_trained():
    source = BOS + CHATML.replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    )
    assert fails("prefix", source)


def test_a_template_that_leaves_out_the_answer():
    """Templates with pictures want contents as lists of parts, and write nothing of a text."""
    source = BOS + re.sub(r"\{\{- message.content \}\}", "", CHATML)
    assert "does not write the answer" in fails("render", source)


def test_an_error_is_pickled_whole():
    error = pickle.loads(pickle.dumps(TemplateError("no", "stop", 3)))
    assert (str(error), error.proof, error.turn) == ("no", "stop", 3)
