"""What a Hugging Face model computes, by code that shares nothing with ours.

Where torch and transformers import, they are asked. Elsewhere a NumPy forward pass in float32,
written from the papers and from transformers' semantics, stands in for LLaMA (arXiv 2302.13971)
and GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import ParityError

Read = Callable[[str], np.ndarray]
Logits = Callable[[np.ndarray], np.ndarray]


def torch_available() -> bool:
    """Whether torch and transformers can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def reference(
    path: str | os.PathLike[str], config: Mapping[str, Any], read: Read
) -> tuple[str, Logits]:
    """The best reference at hand: (its name and version, tokens [T] -> logits [T, V] float32).

    Args:
      path: a Hugging Face directory, or a GGUF file.
      config: its config.json.
      read: HF tensor name to array.

    Raises:
      ParityError: if nothing here can compute this model.
    """
    loader = "accelerate" if pathlib.Path(path).suffix == ".gguf" else "transformers"
    if torch_available() and importlib.util.find_spec(loader):
        return torch_reference(path)
    model_type = config.get("model_type")
    if model_type not in NUMPY:
        raise ParityError(
            f"No reference for model_type {model_type!r} here: the built-in ones are "
            f"{', '.join(NUMPY)}. Install torch and transformers to check this conversion."
        )
    return f"numpy {np.__version__}", functools.partial(NUMPY[model_type], dict(config), read)


def torch_reference(path: str | os.PathLike[str]) -> tuple[str, Logits]:
    """transformers' own AutoModelForCausalLM in float32 on the CPU; no remote code, no pickles."""
    import torch
    import transformers

    path = pathlib.Path(path)
    where = {"pretrained_model_name_or_path": path, "use_safetensors": True}
    if path.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
            return np.asarray(model(ids).logits[0].float())

    return f"transformers {transformers.__version__}, torch {torch.__version__}", logits


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [T, N, H], k and v [T, K, H] to [T, N * H]; query head n reads key head n // (N / K)."""
    t, n, h = q.shape
    k, v = (np.repeat(x, n // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("tnh,snh->nts", q, k) / np.float32(np.sqrt(h))
    scores = np.where(np.tril(np.ones((t, t), bool)), scores, np.float32(-1e30))
    return np.einsum("nts,snh->tnh", _softmax(scores), v).reshape(t, n * h)


def llama(config: dict[str, Any], read: Read, tokens: np.ndarray) -> np.ndarray:
    """LlamaForCausalLM: logits [T, V] of tokens [T]."""
    n = config["num_attention_heads"]
    k = config.get("num_key_value_heads") or n
    h = config.get("head_dim") or config["hidden_size"] // n
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = (config.get("rope_scaling") or rope).get("rope_type", "default")
    if kind != "default" or config.get("hidden_act", "silu") != "silu":
        raise ParityError("The NumPy reference knows neither scaled rope nor another activation.")
    eps = np.float32(config.get("rms_norm_eps", 1e-6))

    def get(name: str) -> np.ndarray:
        return np.asarray(read(name), np.float32)

    def project(x: np.ndarray, name: str, bias: bool) -> np.ndarray:
        y = x @ get(name + ".weight").T
        return y + get(name + ".bias") if bias else y

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * get(name)

    inverse = 1.0 / np.float64(theta) ** (np.arange(0, h, 2) / h)
    angle = np.tile(np.arange(len(tokens))[:, None] * inverse, 2)[:, None]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def rotate(x: np.ndarray) -> np.ndarray:
        half = np.concatenate([-x[..., h // 2 :], x[..., : h // 2]], -1)
        return x * cos + half * sin

    bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    x = get("model.embed_tokens.weight")[tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = norm(x, layer + "input_layernorm.weight")
        heads = (
            project(y, f"{layer}self_attn.{name}_proj", bias).reshape(len(tokens), -1, h)
            for name in "qkv"
        )
        q, key, value = heads
        if q.shape[1] != n or key.shape[1] != k:
            raise ParityError(f"{layer}self_attn: the weights do not have {n} and {k} heads.")
        y = _causal_attention(rotate(q), rotate(key), value)
        x = x + project(y, layer + "self_attn.o_proj", bias)
        y = norm(x, layer + "post_attention_layernorm.weight")
        gate = project(y, layer + "mlp.gate_proj", mlp_bias)
        y = gate / (1 + np.exp(-gate)) * project(y, layer + "mlp.up_proj", mlp_bias)
        x = x + project(y, layer + "mlp.down_proj", mlp_bias)
    tied = config.get("tie_word_embeddings", False)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return norm(x, "model.norm.weight") @ get(head).T


def gpt2(config: dict[str, Any], read: Read, tokens: np.ndarray) -> np.ndarray:
    """GPT2LMHeadModel: logits [T, V] of tokens [T]."""
    if config.get("activation_function", "gelu_new") != "gelu_new":
        raise ParityError("The NumPy reference of GPT-2 knows only the activation gelu_new.")
    heads, eps = config["n_head"], np.float32(config.get("layer_norm_epsilon", 1e-5))

    def get(name: str) -> np.ndarray:
        return np.asarray(read("transformer." + name), np.float32)

    def project(x: np.ndarray, name: str) -> np.ndarray:
        return x @ get(name + ".weight") + get(name + ".bias")

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
        return x * get(name + ".weight") + get(name + ".bias")

    x = get("wte.weight")[tokens] + get("wpe.weight")[: len(tokens)]
    for i in range(config["n_layer"]):
        qkv = project(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(len(tokens), heads, -1) for part in np.split(qkv, 3, -1))
        x = x + project(_causal_attention(q, k, v), f"h.{i}.attn.c_proj")
        y = project(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi).astype(y.dtype) * (y + 0.044715 * y**3)))
        x = x + project(y, f"h.{i}.mlp.c_proj")
    x = norm(x, "ln_f")
    if config.get("tie_word_embeddings", True):
        return x @ get("wte.weight").T
    return x @ np.asarray(read("lm_head.weight"), np.float32).T


NUMPY: dict[str, Callable[[dict[str, Any], Read, np.ndarray], np.ndarray]] = {
    "llama": llama,
    "gpt2": gpt2,
}
