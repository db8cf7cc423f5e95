"""Adapters on every family: where they go, and that they are nothing before training."""

import encoders
import jax
import numpy as np
import pytest
import zoo
from encoders import CASES as TWO_SIDED
from zoo import CASES

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.lora import LoRA

NUMERIC = ("qwen2", "gpt2", "falcon_7b", "mamba", "mixtral", "deepseek_v3", "rwkv")
NAMES = [*CASES, *TWO_SIDED]


def made(name):
    return (zoo if name in CASES else encoders).model(name)[1:]


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_linear_layers_of_both_kinds(name):
    """Each target is found, and its factors have the layout of its kernel."""
    plain, _ = made(name)
    found = {}
    for target in ("all_linear", "attention", "feed_forward"):
        adapted = Model(plain.config, plain.policy, adapter=LoRA(rank=1, targets=target))
        try:
            shapes = flatten(adapted.abstract_params())
        except ConfigError as e:
            assert target == "feed_forward" and "mamba" in name, e  # they have none
            continue
        own = flatten(roots.split(adapted.abstract_params())[roots.BASE])
        assert own.keys() == flatten(plain.abstract_params()).keys()
        axes = flatten(adapted.logical_axes())
        found[target] = {path for path in shapes if path not in own}
        for path in found[target]:
            assert len(axes[path]) == len(shapes[path].shape)
    assert found["attention"] | found.get("feed_forward", set()) <= found["all_linear"]
    assert len(found["all_linear"]) >= 6


@pytest.mark.parametrize("name", NUMERIC)
def test_fresh_adapters_change_no_bit(name):
    plain, params = made(name)
    adapted = Model(plain.config, plain.policy, adapter=LoRA(rank=2))
    fresh = adapted.adapted(params, jax.random.key(0))
    ids = zoo.tokens(1, 24)[None]
    first, second = (
        np.asarray(jax.jit(lambda p, m=m: m.logits(p, m.apply(p, ids)[0]))(tree))
        for m, tree in (
            (plain, params),
            (adapted, roots.merge({roots.BASE: params} | fresh)),
        )
    )
    np.testing.assert_array_equal(first, second)
