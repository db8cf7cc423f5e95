"""Adapter methods against logits that peft computed with the same weights (make_adapters.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ADAPTER_BASES, ADAPTER_TOKENS, GOLDEN, prompt

from t5x_llm.core.dtypes import Policy
from t5x_llm.hf.import_ import import_model
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning
from t5x_llm.nn.adapters.scaling import IA3

LAYERS, HEADS, TOKENS = 2, {"llama_untied": (2, 6), "gpt2": (4, 6)}, 5


@pytest.fixture(scope="module")
def theirs():
    return dict(np.load(GOLDEN / "adapters.npz"))


def of(theirs, base, method):
    start = f"{base}/{method}/"
    found = {k.removeprefix(start): v for k, v in theirs.items() if k.startswith(start)}
    return found, found.pop("logits")


def set_in(tree, path, value):
    *nodes, last = path.split(".")
    for name in nodes:
        tree = tree.setdefault(name, {})
    tree[last] = jnp.asarray(value)


def logits(base, adapter, weights):
    family, params, *_ = import_model(GOLDEN / base, check=False)
    model = Model(family.decoder(), Policy(compute="float32"), adapter=adapter)
    shapes = flatten(roots.split(model.abstract_params())["adapter"])
    assert {path: x.shape for path, x in shapes.items()} == {
        path: x.shape for path, x in weights.items()
    }
    for path, value in weights.items():
        set_in(params, path, value)
    hidden, _ = jax.jit(model.apply)(params, prompt()[None, :ADAPTER_TOKENS])
    return model.logits(params, hidden)[0]


def keys_and_values(rows, base):
    """peft's rows [n or hidden, layers * 2 * width] as ours: [layers, n, K, H] each."""
    heads, size = HEADS[base]
    both = rows.reshape(-1, LAYERS, 2, heads, size)
    attention = "group_0.block_0.attention.adapter"
    return {
        f"{attention}.{x}": both[:, :, i].swapaxes(0, 1) for i, x in enumerate(("key", "value"))
    }


@pytest.mark.parametrize("base", ADAPTER_BASES)
def test_prefix(theirs, base):
    found, expected = of(theirs, base, "prefix")
    (rows,) = found.values()
    ours = logits(base, Prefix(TOKENS), keys_and_values(rows, base))
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", ADAPTER_BASES)
def test_prompt(theirs, base):
    found, expected = of(theirs, base, "prompt")
    (rows,) = found.values()
    ours = logits(base, Prompt(TOKENS), {"adapter.embedding": rows})
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", ADAPTER_BASES)
def test_p_tuning_of_every_layer(theirs, base):
    found, expected = of(theirs, base, "prefix_mlp")
    found = {k.removeprefix("prompt_encoder.default."): v for k, v in found.items()}
    heads, size = HEADS[base]
    bias = keys_and_values(found["transform.2.bias"][None], base)
    weights = {
        "adapter.embedding": found["embedding.weight"],
        "adapter.kernel": found["transform.0.weight"].T,
        "adapter.bias": found["transform.0.bias"],
        **keys_and_values(found["transform.2.weight"].T, base),
        **{f"{path}_bias": x[:, 0] for path, x in bias.items()},
    }
    ours = logits(base, PTuning("deep", TOKENS, hidden=7), weights)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    ours = logits(base, Prefix(TOKENS), keys_and_values(found["saved"], base))
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", ADAPTER_BASES)
def test_p_tuning_of_the_input(theirs, base):
    found, expected = of(theirs, base, "encoder")
    found = {k.removeprefix("prompt_encoder.default."): v for k, v in found.items()}
    weights = {"adapter.embedding": found["embedding.weight"]}
    for i in range(3):
        weights[f"adapter.kernel_{i}"] = found[f"mlp_head.{2 * i}.weight"].T
        weights[f"adapter.bias_{i}"] = found[f"mlp_head.{2 * i}.bias"]
    ours = logits(base, PTuning("input", TOKENS, hidden=7), weights)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    ours = logits(base, Prompt(TOKENS), {"adapter.embedding": found["saved"]})
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


# Our layers, by theirs: what each takes of the rows of a fused projection.
LINEAR = {
    "llama_untied": {
        "self_attn.q_proj": ("attention.query",),
        "self_attn.k_proj": ("attention.key",),
        "self_attn.v_proj": ("attention.value",),
        "mlp.down_proj": ("mlp.down",),
    },
    "gpt2": {
        "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
        "mlp.c_proj": ("mlp.down",),
    },
}


def of_layers(found, base):
    """{(our layer, peft's name): array [layers, ...]} of parameters by peft's names."""
    parts = {}
    for name in found:
        layer, _, rest = name.split("layers.")[-1].split("h.")[-1].partition(".")
        module, kind = rest.removesuffix(".default").rsplit(".", 1)
        parts.setdefault((module, kind), {})[int(layer)] = found[name]
    for (module, kind), layers in parts.items():
        whole = np.stack([layers[i] for i in sorted(layers)])
        for i, ours in enumerate(LINEAR[base][module]):
            count = len(LINEAR[base][module])
            rows = np.split(whole, count, axis=1)[i] if kind in ("ia3_l", "lora_B") else whole
            yield ours, kind, rows


def heads_of(layer, base, sizes):
    """Outputs of a layer [.., O] by head."""
    if not layer.startswith("attention"):
        return sizes
    return (*sizes[:-1], -1, HEADS[base][1])


@pytest.mark.parametrize("base", ADAPTER_BASES)
def test_ia3(theirs, base):
    found, expected = of(theirs, base, "ia3")
    weights = {}
    for layer, _, scale in of_layers(found, base):
        scale = scale.reshape(LAYERS, -1)
        place = f"group_0.block_0.{layer}.adapter.scale"
        weights[place] = scale.reshape(heads_of(layer, base, scale.shape))
    assert len(weights) == {"llama_untied": 3, "gpt2": 4}[base]
    outputs = tuple(path.split(".")[3] for path in weights if "attention" in path)
    ours = logits(base, IA3(outputs=outputs), weights)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", ADAPTER_BASES)
def test_adalora(theirs, base):
    found, expected = of(theirs, base, "adalora")
    weights = {}
    for layer, kind, x in of_layers(found, base):
        name = {"lora_A": "a", "lora_B": "b", "lora_E": "e"}[kind]
        x = x[..., 0] if name == "e" else x.swapaxes(1, 2)
        x = x.reshape(heads_of(layer, base, x.shape)) if name == "b" else x
        weights[f"group_0.block_0.{layer}.adapter.{name}"] = x
    targets = tuple({path.split(".adapter")[0].split("block_0.")[1] for path in weights})
    adapter = AdaLoRA(rank=3, target_rank=2, alpha=6.0, targets=targets)
    ours = logits(base, adapter, weights)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
