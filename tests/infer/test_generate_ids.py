"""Generation of token ids: log-probabilities, samples of one prompt, meshes, and refusals."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pytest
from conditioned import assert_near, conditioned
from test_sampler import GPT, LLAMA, Bytes, make

from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.decode import generate_ids
from t5x_llm.infer.sampler import generate
from t5x_llm.infer.sampling import Sampling
from t5x_llm.infer.score import Request, score
from t5x_llm.models.families.bert import Bert
from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.families.t5 import T5
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings

PROMPTS = [[256, 97], [256, *b"Once upon a time, there was a king who"], [256], [256, *b"king"]]
DRAWN = Sampling(max_tokens=10, temperature=0.9, top_k=40, top_p=0.9, seed=5, n=3)
T5_TINY = T5(vocab_size=258, d_model=32, n_layers=2, n_heads=4, head_dim=8, d_ff=48, start_id=7)


@pytest.fixture(scope="module")
def llama():
    return conditioned(LLAMA)


def test_log_probabilities_are_the_models_own(llama):
    """Raw ones are those that ``score`` gives, whatever the warps; drawn ones follow the warps."""
    warps = dataclasses.replace(DRAWN, top_k=5, top_p=1.0, repetition_penalty=1.2)
    for sampling in (warps, Sampling(max_tokens=10, temperature=0, n=2)):
        found = generate_ids(*llama, PROMPTS, sampling)
        pairs = [(p, s) for p, samples in zip(PROMPTS, found, strict=True) for s in samples]
        assert len(pairs) == len(PROMPTS) * sampling.n
        scores = score(*llama, [Request(p, s.tokens) for p, s in pairs])
        for (_, sample), scored in zip(pairs, scores, strict=True):
            raw, drawn = sample.log_probs, sample.sampled_log_probs
            assert len(sample.tokens) == len(raw) == len(drawn) == 10
            assert_near(raw, scored.log_probs)
            assert np.all(drawn <= 1e-6) and np.all(drawn == 0) == (sampling.temperature == 0)
    found = generate_ids(*llama, PROMPTS, Sampling(max_tokens=10, seed=1))
    for (sample,) in found:  # no warp: they are one
        assert_near(sample.sampled_log_probs, sample.log_probs)


def test_drawn_log_probabilities_are_those_of_what_is_left(llama):
    """With two tokens left their probabilities are a softmax of two raw ones."""
    (samples,) = generate_ids(
        *llama, [PROMPTS[0]], Sampling(max_tokens=1, temperature=0.7, top_k=2, n=64)
    )
    seen = {s.tokens: s for s in samples}
    a, b = seen.values()
    ratio = float(a.log_probs[0] - b.log_probs[0]) / 0.7
    assert float(a.sampled_log_probs[0] - b.sampled_log_probs[0]) == pytest.approx(ratio, rel=1e-4)
    total = sum(np.exp(float(s.sampled_log_probs[0])) for s in seen.values())
    assert total == pytest.approx(1, rel=1e-5)


def test_samples_of_a_prompt_differ_and_depend_on_nothing_else(llama):
    found = generate_ids(*llama, PROMPTS, DRAWN)
    assert [len(samples) for samples in found] == [3] * len(PROMPTS)
    for samples in found:
        assert len({s.tokens for s in samples}) == 3
    same = [[s.tokens for s in samples] for samples in generate_ids(*llama, PROMPTS[::-1], DRAWN)]
    assert same[::-1] == [[s.tokens for s in samples] for samples in found]
    fewer = generate_ids(*llama, PROMPTS[1:2], dataclasses.replace(DRAWN, n=2))[0]
    assert [s.tokens for s in fewer] == [s.tokens for s in found[1][:2]]
    # The next seed is no later sample of this one.
    other = generate_ids(*llama, PROMPTS[1:2], dataclasses.replace(DRAWN, seed=6))[0]
    assert not {s.tokens for s in other} & {s.tokens for s in found[1]}


def test_text_stands_on_ids(llama):
    texts = [bytes(p[1:]).decode() for p in PROMPTS]
    sampling = dataclasses.replace(DRAWN, n=2)
    shown = collections.defaultdict(str)

    def show(row, text):
        shown[row] += text

    done = generate(*llama, Bytes(), texts, sampling, on_text=show)
    ids = generate_ids(*llama, PROMPTS, sampling, end_ids=[257])
    flat = [sample for samples in ids for sample in samples]
    assert [c.prompt for c in done] == [text for text in texts for _ in range(2)]
    for i, (completion, sample) in enumerate(zip(done, flat, strict=True)):
        ended = (257,) if completion.finish_reason == "eos" else ()
        assert completion.tokens + ended == sample.tokens
        assert completion.finish_reason == sample.finish_reason
        assert shown[i] == completion.text


def test_an_end_token_is_the_last_and_has_its_log_probability(llama):
    (free,) = generate_ids(*llama, [PROMPTS[1]], Sampling(max_tokens=12, temperature=0))[0]
    end = free.tokens[5]
    first = free.tokens.index(end)
    both = generate_ids(*llama, PROMPTS[:2], Sampling(max_tokens=12, temperature=0), end_ids=[end])
    (cut,) = both[1]
    assert cut.tokens == free.tokens[: first + 1] and cut.finish_reason == "eos"
    assert_near(cut.log_probs, free.log_probs[: first + 1])


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(LLAMA, id="llama"),
        pytest.param(
            Mamba(vocab_size=258, d_model=32, n_layers=2, d_state=4),
            id="mamba",
            marks=pytest.mark.extended,
        ),
        pytest.param(T5_TINY, id="t5", marks=pytest.mark.extended),
    ],
)
def test_eight_devices_equal_one(family):
    """Three prompts of two samples are padded to rows that the mesh divides."""
    model, params = conditioned(family)
    config = MeshConfig(data=4, tensor=2)
    mesh, rules = make_mesh(config, jax.devices()[:8]), config.rules()
    shardings = param_shardings(model.logical_axes(), model.abstract_params(), mesh, rules)
    placed = jax.device_put(params, shardings)
    for sampling in (Sampling(max_tokens=18, temperature=0), dataclasses.replace(DRAWN, n=2)):
        one = generate_ids(model, params, PROMPTS[:3], sampling)
        eight = generate_ids(model, placed, PROMPTS[:3], sampling, mesh=mesh, rules=rules)
        for a, b in zip(sum(one, []), sum(eight, []), strict=True):
            assert a.tokens == b.tokens
            for name in ("log_probs", "sampled_log_probs"):
                assert_near(getattr(b, name), getattr(a, name))


def test_learned_positions_bound_each_row():
    model, params = make(GPT)
    prompts = [[256], [1] * 40, [2] * 47]
    found = generate_ids(model, params, prompts, Sampling(max_tokens=200, temperature=0))
    assert [len(sample.tokens) for (sample,) in found] == [47, 8, 1]
    scores = score(
        model, params, [Request(p, s.tokens) for p, (s,) in zip(prompts, found, strict=True)]
    )
    for (sample,), scored in zip(found, scores, strict=True):
        assert scored.greedy.all() and np.all(np.isfinite(sample.log_probs))


def test_what_cannot_be_continued_is_named():
    model, params = make(GPT)
    assert generate_ids(model, params, []) == []
    with pytest.raises(ConfigError, match=r"prompts\[1\] = '48 tokens'.*fewer than 48"):
        generate_ids(model, params, [[1], [1] * 48])
    with pytest.raises(ConfigError, match=r"prompts\[1\].*at least one token"):
        generate_ids(model, params, [[1], []])
    with pytest.raises(ConfigError, match=r"prompts\[0\] = 258.*from 0 to 257"):
        generate_ids(model, params, [[1, 258]])
    with pytest.raises(ConfigError, match=r"Sampling.stop.*end_ids"):
        generate_ids(model, params, [[1]], Sampling(stop=("x",)))
    with pytest.raises(ConfigError, match="cannot continue a text"):
        generate_ids(*make(Bert(vocab_size=258, d_model=32, n_layers=1, n_heads=4)), [[1]])
    with pytest.raises(ConfigError, match="rules"):
        generate_ids(model, params, [[1]], mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
