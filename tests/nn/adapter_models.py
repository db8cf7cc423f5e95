"""Tiny models with adapters, for the tests of their methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.families.bloom import Bloom
from t5x_llm.models.families.falcon import Falcon
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.families.qwen import Qwen2
from t5x_llm.models.families.t5 import T5
from t5x_llm.models.model import Model
from t5x_llm.nn.adapters import roots

F32 = Policy(compute="float32")
_SMALL = dict(vocab_size=64, d_model=32, n_layers=2, n_heads=4)
DECODERS = {
    "llama": Llama(**_SMALL, n_kv_heads=2, d_ff=48),
    "qwen2": Qwen2(**_SMALL, n_kv_heads=2, d_ff=48),
    "gpt2": GPT2(**_SMALL, max_length=40),
    "mixtral": Mixtral(**_SMALL, n_kv_heads=2, d_ff=48, n_experts=4, top_k=2),
    "falcon": Falcon(**_SMALL),
    "bloom": Bloom(**_SMALL),
}
FAMILIES = DECODERS | {
    "mamba": Mamba(vocab_size=64, d_model=32, n_layers=2),
    "t5": T5(vocab_size=64, d_model=32, n_layers=2, n_heads=4, head_dim=8, d_ff=48, start_id=7),
}


def some(names, first):
    """Names as parameters of a test; all but the ``first`` ones are extended cases."""
    return [
        name if name in first else pytest.param(name, marks=pytest.mark.extended) for name in names
    ]


def made(family, adapter, **options):
    """A model with an adapter, and its fresh parameters."""
    model = Model(FAMILIES[family].decoder(), F32, adapter=adapter, **options)
    return model, jax.jit(model.init)(jax.random.key(0))


def shaken(params, size=0.2):
    """The parameters with noise that is large enough for all of them to matter."""
    noise = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + size * jax.random.normal(next(noise), x.shape), params)


def adapter_leaves(tree):
    """{dotted path: array} of what the adapters of a tree hold."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    named = ((".".join(key.key for key in path), x) for path, x in flat)
    return {path: x for path, x in named if roots.root_of(tuple(path.split("."))) == "adapter"}


def without(tree):
    """The tree without its adapters."""
    return roots.split(tree)["base"]


def tokens(*shape, seed=1):
    """Random ids."""
    return jax.random.randint(jax.random.key(seed), shape, 0, 64)


def hidden(family, params, ids, model=None):
    """Hidden states of ids; T5's encoder reads others."""
    if model is None:
        model = Model(FAMILIES[family].decoder(), F32)
    read = dict(encoder_tokens=tokens(*ids.shape, seed=2)) if family == "t5" else {}
    return jax.jit(model.apply)(params, ids, **read)[0]


def gradients(model, params, family):
    """Gradients of a scalar of the hidden states."""
    ids = tokens(2, 8)
    read = dict(encoder_tokens=tokens(2, 8, seed=2)) if family == "t5" else {}

    def loss(params):
        return jnp.sum(jnp.sin(model.apply(params, ids, **read)[0]))

    return jax.jit(jax.grad(loss))(params)
