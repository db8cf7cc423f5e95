"""Generation: against a loop without cache, row independence, stops, ends, and broken bytes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.infer import warp
from t5x_llm.infer.detokenize import Detokenizer, held_back
from t5x_llm.infer.sampler import Sampling, generate
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model


class Bytes:
    """Token i is byte i; 256 begins, 257 ends."""

    vocab_size, bos_id, eos_id, pad_id, unk_id = 258, 256, 257, None, None
    add_bos = True

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


LLAMA = Llama(vocab_size=258, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48)
GPT = GPT2(vocab_size=258, d_model=32, n_layers=2, n_heads=4, max_length=48)
PROMPTS = ["a", "Once upon a time, there was", "你好", ""]


def make(family):
    model = Model(family.decoder(), Policy(compute="float32"))
    params = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, model.init(jax.random.key(0)))
    return model, params


@pytest.fixture(scope="module", params=[LLAMA, GPT], ids=["llama", "gpt2"])
def model(request):
    return make(request.param)


def full_logits(model, params, tokens, width=64):
    """Logits [T, V] of one row by a pass without cache."""
    width = width if model.max_length is None else model.max_length
    row = jnp.asarray([tokens + [0] * (width - len(tokens))])
    return np.asarray(_full(model, params, row))[0, : len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _full(model, params, row):
    return model.logits(params, model.apply(params, row)[0])


def assert_greedy(model, params, completion, penalty=1.0):
    """Every token is the argmax of a full pass over what came before it."""
    start = [256, *completion.prompt.encode()]
    tokens = [*start, *completion.tokens, *([257] if completion.finish_reason == "eos" else [])]
    logits = full_logits(model, params, tokens)
    for i in range(len(start), len(tokens)):
        seen = np.zeros((1, 258), bool)
        seen[0, tokens[:i]] = True
        row = warp.repetition_penalty(logits[None, i - 1], seen, np.float32(penalty))
        assert int(np.argmax(row)) == tokens[i], i - len(start)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_batch_equals_full_passes(model, penalty):
    sampling = Sampling(max_tokens=20, temperature=0, repetition_penalty=penalty)
    found = generate(*model, Bytes(), PROMPTS, sampling)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert completion.prompt == prompt
        assert completion.prompt_tokens == 1 + len(prompt.encode())
        assert len(completion.tokens) == 20 or completion.finish_reason == "eos"
        assert_greedy(*model, completion, penalty)


def test_a_sample_depends_on_seed_and_prompt_alone(model):
    sampling = Sampling(max_tokens=20, temperature=0.9, top_k=40, top_p=0.95, seed=5)
    together = generate(*model, Bytes(), PROMPTS, sampling)
    assert generate(*model, Bytes(), PROMPTS, sampling) == together
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert generate(*model, Bytes(), [prompt], sampling) == [completion]
    reordered = generate(*model, Bytes(), PROMPTS[::-1], sampling)
    assert reordered[::-1] == together
    other = Sampling(max_tokens=20, temperature=0.9, top_k=40, top_p=0.95, seed=6)
    assert generate(*model, Bytes(), PROMPTS, other) != together
    twice = generate(*model, Bytes(), ["a", "a"], sampling)
    assert twice[0] == together[0] and twice[1].tokens != twice[0].tokens


def test_samples_follow_the_distribution(model):
    """256 samples of one token against the probabilities, by a chi-squared bound."""
    net, params = model
    drawn = generate(
        net, params, Bytes(), ["q"] * 256, Sampling(max_tokens=1, temperature=0.8, top_k=4)
    )
    logits = full_logits(net, params, [256, ord("q")])[-1] / 0.8
    best = np.argsort(logits)[-4:]
    expected = np.asarray(jax.nn.softmax(logits[best])) * 256
    tokens = [c.tokens[0] if c.tokens else 257 for c in drawn]
    found = np.asarray([tokens.count(b) for b in best])
    assert found.sum() == 256
    assert np.sum((found - expected) ** 2 / expected) < 16.3  # 3 degrees of freedom, p = 0.001


def test_learned_positions_bound_the_length():
    net, params = make(GPT)
    free = dict(temperature=0.0, max_tokens=200)
    found = generate(net, params, Bytes(), ["abc", "x" * 40], Sampling(**free))
    for prompt, completion in zip(("abc", "x" * 40), found, strict=True):
        assert len(completion.tokens) == 47 - len(prompt) or completion.finish_reason == "eos"
        assert_greedy(net, params, completion)
    with pytest.raises(ConfigError, match="learned positions"):
        generate(net, params, Bytes(), ["x" * 47], Sampling(**free))


WIDTH = 128


def scripted(text, eos=True):
    """A model that says ``text`` whatever it is given: the next token follows from the position."""
    ids = [*text.encode(), *([257] if eos else [])]
    params = jax.tree.map(jnp.zeros_like, SCRIPTED.init(jax.random.key(0)))
    head = np.zeros((WIDTH, 258), np.float32)
    head[np.arange(len(ids)), ids] = 1
    params["position_embed"]["table"] = jnp.eye(WIDTH)
    params["head"]["kernel"] = jnp.asarray(head)
    params["final_norm"]["scale"] = jnp.ones(WIDTH)
    return SCRIPTED, params


SCRIPTED = Model(
    GPT2(
        vocab_size=258, d_model=WIDTH, n_layers=1, n_heads=1, max_length=WIDTH, tied=False
    ).decoder(),
    Policy(compute="float32"),
)


def run(text, eos=True, **options):
    sampling = Sampling(temperature=0, **({"max_tokens": 60} | options))
    pieces = []
    net, params = scripted(text, eos)
    (found,) = generate(
        net, params, Bytes(), [""], sampling, on_text=lambda row, piece: pieces.append(piece)
    )
    assert "".join(pieces) == found.text
    return found, pieces


def test_end_token():
    found, _ = run("Hello there, how are you today?")
    assert (found.text, found.finish_reason) == ("Hello there, how are you today?", "eos")
    assert found.tokens == tuple(b"Hello there, how are you today?")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("\n\n",), "One line\nand two"),
        (("two", "line"), "One "),
        (("never", "and two\n\n"), "One line\n"),
        (("O",), ""),
    ],
)
def test_text_is_cut_exactly_at_the_stop(stop, text):
    found, pieces = run("One line\nand two\n\nNot this part of it.", stop=stop)
    assert (found.text, found.finish_reason) == (text, "stop")
    decoded = bytes(found.tokens).decode()
    assert any(decoded.endswith(s) for s in stop) and decoded.startswith(text)


def test_a_stop_that_never_completes_is_shown_in_the_end():
    found, _ = run("abc##", stop=("###",))
    assert (found.text, found.finish_reason) == ("abc##", "eos")


def test_streamed_text_has_whole_characters_only():
    text = "日本語 und 你好，世界！ 🎉🎉 fin"
    found, pieces = run(text)
    assert found.text == text
    assert not any("\ufffd" in piece for piece in pieces) and len(pieces) > 1


def test_length_may_cut_a_character_which_is_left_out():
    found, _ = run("ab你好", max_tokens=4)
    assert (found.text, found.finish_reason, len(found.tokens)) == ("ab", "length", 4)


def test_further_end_tokens():
    net, params = scripted("abc|def")
    (found,) = generate(net, params, Bytes(), [""], Sampling(temperature=0), end_ids=[ord("|")])
    assert (found.text, found.finish_reason) == ("abc", "eos")


def test_detokenizer_keeps_a_leading_space_that_decoding_alone_would_drop():
    class Pieces:
        """Like SentencePiece with a dummy prefix: the first space of a text is not shown."""

        words = ["▁The", "▁cat", "s", "▁sat"]

        def decode(self, ids):
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    detokenizer = Detokenizer(Pieces(), [0])
    assert [detokenizer.push(i) for i in (1, 2, 3)] == [" cat", "s", " sat"]


def test_held_back():
    assert held_back("abc#", ("##", "c#d")) == 2
    assert held_back("abc", ("x",)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"stop": "\n"},
        {"seed": -1},
    ],
)
def test_wrong_settings_name_the_field(wrong):
    with pytest.raises(ConfigError, match=f"Sampling.{next(iter(wrong))}"):
        Sampling(**wrong)


def test_nothing_to_begin_with():
    class NoStart(Bytes):
        bos_id = None

    net, params = make(LLAMA)
    with pytest.raises(ConfigError, match=r"prompts\[1\]"):
        generate(net, params, NoStart(), ["a", ""])
    assert generate(net, params, Bytes(), []) == []
