"""Byte patches where segments of any length meet, and in decoding; logits are the zoo's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.sampler import Sampling, generate
from t5x_llm.models.families.bgpt import BGPT
from t5x_llm.models.model import Model
from t5x_llm.nn.block import GroupConfig
from t5x_llm.nn.rwkv import TimeMixConfig
from t5x_llm.text import load_tokenizer

FAMILY = BGPT(32, 1, 1, n_heads=2, patch_size=4, max_patches=32, init_std=0.3)
# Single bytes, whole patches and part of one; padding after them.
LENGTHS = (1, 4, 3, 9, 1, 8, 2)


@pytest.fixture(scope="module")
def made():
    model = Model(FAMILY.decoder(), Policy(compute="float32"))
    return model, model.init(jax.random.key(0))


def test_each_segment_is_as_if_alone(made):
    model, params = made

    @jax.jit
    def forward(row, ids, places):
        return model.apply(params, row, segment_ids=ids, positions=places)[0]

    ids = np.concatenate([np.repeat(np.arange(len(LENGTHS)) + 1, LENGTHS), [0, 0]])
    places = np.concatenate([np.arange(n) for n in (*LENGTHS, 2)])
    row = np.random.default_rng(0).integers(0, 257, len(ids))
    packed = forward(row[None], ids[None], places[None])[0]
    assert np.all(np.isfinite(packed))
    for i, length in enumerate(LENGTHS):
        own = np.flatnonzero(ids == i + 1)
        alone = np.zeros_like(row)  # in a row of the same length, with padding after it
        alone[:length] = row[own]
        mask = (np.arange(len(row)) < length).astype(np.int32)
        found = forward(alone[None], mask[None], (np.arange(len(row)) * mask)[None])[0]
        np.testing.assert_allclose(packed[own], found[:length], atol=1e-5)


def test_prompts_of_unequal_length_do_not_disturb_each_other(made):
    model, params = made
    tokenizer, greedy = load_tokenizer("bytes"), Sampling(max_tokens=20, temperature=0)
    prompts = ["a", "abcdefg", "春天来了"]
    together = generate(model, params, tokenizer, prompts, greedy)
    forward = jax.jit(lambda ids: model.logits(params, model.apply(params, ids)[0])[0])
    for prompt, done in zip(prompts, together, strict=True):
        ids = [*prompt.encode(), *done.tokens]
        row = np.zeros(64, np.int32)
        row[: len(ids)] = ids
        best = np.argmax(forward(row[None]), axis=-1)
        first = len(prompt.encode())
        assert list(best[first - 1 : len(ids) - 1]) == list(done.tokens)


def test_the_patch_level_counts_once_a_patch(made):
    model, _ = made
    level = sum(x.size for x in jax.tree.leaves(model.abstract_params()["patch_level"]))
    assert model.idle_parameters() == round(level * 3 / 4)


def test_recurrences_are_refused():
    config = FAMILY.decoder()
    block = dataclasses.replace(config.groups[0].blocks[0], mixer=TimeMixConfig(8))
    for field in ("patches", "groups"):
        with pytest.raises(ConfigError, match=f"BytePatchesConfig.{field}.*attention"):
            dataclasses.replace(config, **{field: (GroupConfig((block,), 1),)})


def test_gradients_are_finite_where_a_row_has_no_whole_patch(made):
    model, params = made
    ids = jnp.asarray([[1, 2, 3]])
    gradients = jax.grad(lambda p: jnp.sum(model.apply(p, ids)[0] ** 2))(params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradients))
