"""Virtual tokens: packing, decoding with a cache, remat and what is refused."""

from __future__ import annotations

import adapter_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_models import (
    DECODERS,
    FAMILIES,
    adapter_leaves,
    gradients,
    hidden,
    shaken,
    some,
    tokens,
    without,
)

from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.decode import generate_ids
from t5x_llm.infer.sampling import Sampling
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning

METHODS = {
    "prefix": Prefix(4, std=1.0),
    "prompt": Prompt(4, std=1.0),
    "deep": PTuning("deep", 4, hidden=6, std=1.0),
    "input": PTuning("input", 4, hidden=6, std=1.0),
}


def made(family, method, **options):
    """A model with a method, all its parameters random and large enough to matter."""
    model, params = adapter_models.made(family, METHODS[method], **options)
    return model, shaken(params)


@pytest.mark.parametrize("method", METHODS)
def test_each_segment_of_a_row_is_what_it_is_alone(method):
    model, params = made("llama", method)
    run = jax.jit(model.apply)
    row = tokens(1, 16)
    segments = jnp.array([[1] * 7 + [2] * 6 + [0] * 3])
    positions = jnp.array([[*range(7), *range(6), 0, 0, 0]])
    packed, _ = run(params, row, positions=positions, segment_ids=segments)
    first, _ = run(params, row[:, :7])
    second, _ = run(params, row[:, 7:13])
    np.testing.assert_allclose(packed[:, :7], first, atol=2e-5)
    np.testing.assert_allclose(packed[:, 7:13], second, atol=2e-5)
    base = hidden("llama", without(params), row[:, :7])
    assert np.abs(base - first).max() > 1e-2


@pytest.mark.parametrize("method", ["prefix", "prompt"])
@pytest.mark.parametrize("family", some(DECODERS, ("llama", "bloom")))
def test_decoding_with_a_cache_equals_the_full_pass(family, method):
    model, params = made(family, method)
    ids = tokens(2, 9)
    full, _ = jax.jit(model.apply)(params, ids)
    step = jax.jit(lambda p, t, c: model.apply(p, t, cache=c))
    cache, parts = model.start_cache(params, 2, 9), []
    for first, last in [(0, 5), (5, 6), (6, 9)]:
        hidden, cache = step(params, ids[:, first:last], cache)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=2e-5)
    np.testing.assert_array_equal(model.held(cache), [9, 9])


@pytest.mark.parametrize("method", METHODS)
def test_generated_tokens_are_those_of_full_passes(method):
    model, params = made("gpt2", method)
    prompts = [[1, 2, 3], [5] * 9]
    found = generate_ids(model, params, prompts, Sampling(max_tokens=5, temperature=0))
    run = jax.jit(lambda p, t: model.logits(p, model.apply(p, t)[0]))
    for ids, (sample,) in zip(prompts, found, strict=True):
        assert len(sample.tokens) == 5
        whole = [*ids, *sample.tokens]
        padded = np.array([whole + [0] * (16 - len(whole))])
        best = np.argmax(run(params, padded)[0], -1)
        assert list(sample.tokens) == [int(x) for x in best[len(ids) - 1 : len(whole) - 1]]


def test_learned_positions_leave_room_for_virtual_tokens():
    model, params = made("gpt2", "prefix")
    assert model.max_length == 36
    hidden, _ = model.apply(params, tokens(1, 36))
    assert np.isfinite(hidden).all()
    with pytest.raises(ConfigError, match="fewer than 36 tokens"):
        generate_ids(model, params, [[1] * 36], Sampling(max_tokens=1))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_without_remat_and_reach_every_parameter(method):
    found = []
    for remat in ("none", "full"):
        model, params = made("llama", method, remat=remat)
        found.append(adapter_leaves(gradients(model, params, "llama")))
    for path, x in found[0].items():
        np.testing.assert_allclose(x, found[1][path], atol=2e-4)
        assert np.abs(x).max() > 1e-6, path
    assert len(found[0]) == {"prefix": 2, "prompt": 1, "deep": 7, "input": 7}[method]


def test_prompt_of_a_recurrence():
    model, params = made("mamba", "prompt")
    ids = tokens(2, 9)
    full, _ = jax.jit(model.apply)(params, ids)
    cache = model.start_cache(params, 2, 9)
    first, cache = model.apply(params, ids[:, :4], cache=cache)
    second, _ = model.apply(params, ids[:, 4:], cache=cache)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), full, atol=5e-5)
    rows = params["adapter"]["embedding"]
    changed = params | {"adapter": {"embedding": rows + 1.0}}
    assert np.abs(jax.jit(model.apply)(changed, ids)[0] - full).max() > 1e-2


def test_rows_of_several_texts_share_rows_before_the_input_under_causal_attention_alone():
    for method in ("prompt", "input"):
        METHODS[method].check(FAMILIES["llama"].decoder(), 10)
        for family in ("mamba", "t5"):
            with pytest.raises(ConfigError, match="Several texts share a row"):
                METHODS[method].check(FAMILIES[family].decoder(), 10)
    for method in ("prefix", "deep"):
        METHODS[method].check(FAMILIES["t5"].decoder(), 10)


def test_a_model_without_attention_has_no_prefix():
    with pytest.raises(ConfigError, match="keys and values by head"):
        made("mamba", "prefix")


@pytest.mark.parametrize("method", some(METHODS, ("prefix", "prompt")))
def test_encoder_decoder(method):
    model, params = made("t5", method)
    ids, read = tokens(2, 6), dict(encoder_tokens=tokens(2, 8, seed=2))
    full, _ = jax.jit(model.apply)(params, ids, **read)
    cache = model.start_cache(params, 2, 6)
    first, cache = model.apply(params, ids[:, :2], cache=cache, **read)
    second, _ = model.apply(params, ids[:, 2:], cache=cache)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), full, atol=5e-5)
    shifted = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1.0 if "adapter" in jax.tree_util.keystr(path) else x, params
    )
    assert np.abs(jax.jit(model.apply)(shifted, ids, **read)[0] - full).max() > 1e-2
