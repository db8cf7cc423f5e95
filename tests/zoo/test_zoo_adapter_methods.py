"""Adapters other than LoRA on every family: where they go, or why they cannot."""

import itertools

import encoders
import jax
import numpy as np
import pytest
import zoo
from encoders import CASES as TWO_SIDED
from zoo import CASES

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning
from t5x_llm.nn.adapters.residual import Bottleneck
from t5x_llm.nn.adapters.scaling import IA3

METHODS = {
    "AdaLoRA": AdaLoRA(rank=1, target_rank=1),
    "IA3": IA3(),
    "houlsby": Bottleneck(size=2),
    "pfeiffer": Bottleneck("pfeiffer", size=2),
    "Prefix": Prefix(3),
    "Prompt": Prompt(3),
    "deep": PTuning("deep", 3, hidden=4),
    "input": PTuning("input", 3, hidden=4),
}
NAMES = [*CASES, *TWO_SIDED]


def made(name):
    return (zoo if name in CASES else encoders).model(name)[1:]


def refused(plain, method):
    """Whether a model has no place for a method, by its layers."""
    blocks = [b for group in getattr(plain.config, "groups", ()) for b in group.blocks]
    attention = [b for b in blocks if hasattr(b.mixer, "n_kv_heads")]
    flat = flatten(plain.abstract_params())
    names = {part for path in flat for part in path.split(".")}
    tokens = isinstance(plain.config, DecoderConfig)
    return {
        "AdaLoRA": False,
        "IA3": not {"key", "value", "down"} <= names,
        "houlsby": False,
        "pfeiffer": not any(b.feed_forward for b in blocks) and bool(blocks),
        "Prefix": not attention or not tokens,
        "deep": not attention or not tokens,
        "Prompt": not tokens,
        "input": not tokens,
    }[method]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_takes_them_or_says_why(name, method):
    plain, _ = made(name)
    adapted = Model(plain.config, plain.policy, adapter=METHODS[method])
    if refused(plain, method):
        with pytest.raises(ConfigError):
            adapted.abstract_params()
        return
    shapes, axes = flatten(adapted.abstract_params()), flatten(adapted.logical_axes())
    own = flatten(roots.split(adapted.abstract_params())[roots.BASE])
    assert own.keys() == flatten(plain.abstract_params()).keys()
    added = shapes.keys() - own.keys()
    assert added and all(len(axes[path]) == len(shapes[path].shape) for path in added)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *itertools.product(("qwen2", "falcon_7b", "mixtral"), ("AdaLoRA", "IA3", "houlsby")),
        *itertools.product(("deepseek_v3", "rwkv"), ("AdaLoRA", "houlsby", "pfeiffer")),
    ],
)
def test_fresh_ones_change_no_bit(name, method):
    plain, params = made(name)
    adapted = Model(plain.config, plain.policy, adapter=METHODS[method])
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
