"""Tiny models in Hugging Face directories."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = dict(
    model_type="llama",
    vocab_size=90,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    max_position_embeddings=64,
)


def shapes(config):
    d, h = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    f, k = config["intermediate_size"], config["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        found |= {f"{layer}{n}_layernorm.weight": (d,) for n in ("input", "post_attention")}
        found |= {f"{layer}self_attn.{n}_proj.weight": (k * h, d) for n in "kv"}
        found |= {f"{layer}self_attn.{n}_proj.weight": (d, d) for n in "qo"}
        found |= {f"{layer}mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")}
        found[f"{layer}mlp.down_proj.weight"] = (d, f)
    return found | {"lm_head.weight": (config["vocab_size"], d)}


def tensors(config=CONFIG, seed=0, dtype=np.float32, scale=0.2):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * scale + ("norm" in name)).astype(dtype)
        for name, shape in shapes(config).items()
    }


def write(directory, weights, config=CONFIG):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors")
    return directory
