"""A layer at a time computes what the whole model does, and holds a layer at a time."""

from __future__ import annotations

import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gemma import Gemma2
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.layerwise import layerwise_logits
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import Assembly, flatten, from_hf, hf_shapes

SIZES = dict(vocab_size=61, d_model=16, n_layers=4, n_heads=2, d_ff=24)
FAMILIES = [
    Llama(**SIZES, n_kv_heads=1),
    GPT2(vocab_size=61, d_model=16, n_layers=3, n_heads=2, max_length=64),
]


def family_cases():
    shared = dict(
        vocab_size=61, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, head_dim=8
    )
    shared |= dict(intermediate_size=24, num_key_value_heads=1)
    # Two kinds of layer in turn; experts.
    gemma = dict(model_type=Gemma2.hf_type, sliding_window=5, query_pre_attn_scalar=8)
    mixtral = dict(model_type=Mixtral.hf_type, num_local_experts=4, num_experts_per_tok=2)
    return [
        *FAMILIES,
        Gemma2.from_hf_config(shared | gemma),
        Mixtral.from_hf_config(shared | mixtral),
    ]


@pytest.mark.parametrize("family", family_cases(), ids=lambda f: f.hf_type)
def test_as_the_whole_model(family):
    config, policy = family.decoder(), Policy(compute="float32")
    assert isinstance(config, DecoderConfig)
    model = Model(config, policy)
    entries, abstract = family.weight_map(), model.abstract_params()
    shapes = hf_shapes(entries, abstract)

    def read(name):
        rng = np.random.default_rng(len(name) + sum(map(ord, name)))
        return (rng.normal(size=shapes[name]) * 0.2 + ("norm" in name)).astype(np.float32)

    params = from_hf(entries, abstract, read)
    assembly, seen = Assembly(entries, abstract, read), set()

    def load(path, repeat):
        seen.add((path, repeat))
        array = assembly.make(path, repeat)
        whole = flatten(params)[path]
        np.testing.assert_array_equal(array, whole if repeat is None else whole[repeat])
        return array

    ids = np.random.default_rng(0).integers(0, 61, 24).astype(np.int32)
    found = layerwise_logits(config, policy, load)(ids)
    whole = np.asarray(model.logits(params, model.apply(params, ids[None])[0])[0])
    np.testing.assert_allclose(found, whole, atol=2e-5 * np.abs(whole).max(), rtol=0)
    assert {path for path, _ in seen} == set(flatten(abstract))
    repeats = max(group.repeat for group in config.groups)
    assert {r for _, r in seen} == {None, *range(repeats)}
