"""Computes the logits of a Hugging Face model by code that shares nothing with ours.

Where torch and transformers import, they are asked. Elsewhere, and for models that transformers
does not know, a NumPy forward pass in float32 stands in, written from the papers and from
transformers' semantics: LLaMA (arXiv 2302.13971) and GPT-2 (Radford et al. 2019) here, others in
``references``. It reads one tensor at a time, so that the model need not fit into memory.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import ParityError
from t5x_llm.hf.gguf_architectures import ARCHITECTURES
from t5x_llm.hf.references import MODULES

Read = Callable[[str], np.ndarray]
Logits = Callable[[np.ndarray], np.ndarray]
_SHARE = 0.7  # of the machine's memory that transformers may fill


class NoReference(ParityError):
    """Nothing at hand can compute this model."""


def torch_available() -> bool:
    """Returns True where torch and transformers can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def reference(
    path: str | os.PathLike[str], config: Mapping[str, Any], read: Read, parameters: int = 0
) -> tuple[str, Logits]:
    """The best reference at hand: (its name and version, tokens [T] -> logits [T, V] float32).

    transformers where it can be imported, knows the model and has room for it; else NumPy.

    Args:
      path: a Hugging Face directory, or a GGUF file.
      config: its config.json.
      read: HF tensor name to array.
      parameters: how many the model has; transformers holds all of them, in float32.

    Raises:
      NoReference: if nothing here can compute this model.
    """
    model_type = str(config.get("model_type"))
    reason = why_not_transformers(path, model_type, parameters) or _why_not_gguf(path, config)
    if reason is None:
        try:
            return torch_reference(path, attention_code(config), auto_class(config))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as e:
            said = next(iter(str(e).strip().splitlines()), type(e).__name__)
            reason = f"transformers cannot load it ({said[:300]})"
    found = numpy_reference(model_type)
    if found is None:
        raise NoReference(f"No reference for model_type {model_type!r} here. {reason}.")

    def wide(name: str) -> np.ndarray:
        return np.asarray(read(name), np.float32)

    return f"numpy {np.__version__}", functools.partial(found, dict(config), wide)


def numpy_reference(model_type: str) -> Callable[[dict[str, Any], Read, np.ndarray], Any] | None:
    """(config, read, tokens [T]) -> logits [T, V] of a model type, or None."""
    if model_type in NUMPY:
        return NUMPY[model_type]
    # A model type comes from a file: it may not name just any module.
    name = MODULES.get(model_type)
    if name is None:
        return None
    return getattr(importlib.import_module(f"t5x_llm.hf.references.{name}"), name)


def why_not_transformers(
    path: str | os.PathLike[str], model_type: str, parameters: int
) -> str | None:
    """Returns why transformers cannot compute a model here; None where it can."""
    if not torch_available():
        return "Install torch and transformers to check this conversion"
    if pathlib.Path(path).suffix == ".gguf" and not importlib.util.find_spec("accelerate"):
        return "transformers reads GGUF files where accelerate is installed"
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        return "transformers does not know it without running code that comes with the model"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * parameters > _SHARE * memory:
        return (
            f"transformers would need {4 * parameters / 1e9:.0f} GB in float32 and this machine "
            f"has {memory / 1e9:.0f} GB; check it on a larger one"
        )
    return None


def _why_not_gguf(path: str | os.PathLike[str], config: Mapping[str, Any]) -> str | None:
    """Returns why transformers would compute something else of a GGUF file than llama.cpp; or None.

    It takes the config of such files from fewer keys than there are, and defaults for the rest.
    """
    name, model_type = pathlib.Path(path).name, config.get("model_type")
    if not name.endswith(".gguf"):
        return None
    kinds = {k.hf_type: k.as_transformers for k in ARCHITECTURES.values()}
    fixed = kinds.get(str(model_type))
    whole = {"head_dim": config.get("hidden_size", 0) // config.get("num_attention_heads", 1)}
    if re.search(r"-of-\d{5}\.gguf$", name):
        return "transformers reads no GGUF file in parts"
    if fixed is None:
        return f"transformers does not read all that GGUF files of {model_type} say"
    if config["rope_parameters"]["rope_type"] != "default":
        return "transformers ignores scaled rotary frequencies in GGUF files"
    for field, value in fixed.items():
        value = whole[field] if value is None else value
        if config.get(field, value) != value:
            return f"transformers takes {field} = {value} in GGUF files, whatever they say"
    return None


def attention_code(config: Mapping[str, Any]) -> str:
    """Returns the implementation of attention in transformers that is right for a config.json."""
    # Its eager Falcon adds ALiBi to the logits and, as part of the mask, once more (5.23).
    return "sdpa" if config.get("model_type") == "falcon" and config.get("alibi") else "eager"


def auto_class(config: Mapping[str, Any]) -> str:
    """transformers' class that loads the models of a config.json."""
    from t5x_llm.models.families import FAMILIES

    architecture = FAMILIES[config["model_type"]].architecture
    if architecture.endswith("ForMaskedLM"):
        return "AutoModelForMaskedLM"
    seq2seq = architecture.endswith("ForConditionalGeneration")
    return "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM"


def torch_reference(
    path: str | os.PathLike[str], attention: str = "eager", auto: str = "AutoModelForCausalLM"
) -> tuple[str, Logits]:
    """transformers' own model in float32 on the CPU; no remote code.

    Pickles, where a directory has nothing else, go through torch's weights-only loader. Of an
    encoder-decoder, the encoder reads the tokens and the decoder reads them backwards.
    """
    import torch
    import transformers

    path = pathlib.Path(path)
    safe = any(path.glob("*.safetensors"))
    where = {"pretrained_model_name_or_path": path, "use_safetensors": safe, "weights_only": True}
    if path.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = getattr(transformers, auto)
    model = model.from_pretrained(
        **where, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    ).eval()
    model.config.use_cache = False  # one pass needs none, and RWKV's is of one width only

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
            more = {}
            if auto == "AutoModelForSeq2SeqLM":
                more["decoder_input_ids"] = ids.flip(1)
            elif auto == "AutoModelForMaskedLM":  # RoBERTa's would skip tokens that look like pads
                first = getattr(model.base_model.embeddings, "padding_idx", -1) + 1
                more["position_ids"] = first + torch.arange(ids.shape[1])[None]
            return np.asarray(model(ids, **more).logits[0].float())

    return f"transformers {transformers.__version__}, torch {torch.__version__}", logits


def _wide(x: np.ndarray) -> np.ndarray:
    """Returns float64 as it is, anything else in float32: what is read says how it is computed."""
    return np.asarray(x, np.result_type(x.dtype, np.float32))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [T, N, H], k and v [T, K, H] to [T, N * H]; query head n reads key head n // (N / K)."""
    t, n, h = q.shape
    k, v = (np.repeat(x, n // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(h).astype(q.dtype)
    scores = np.where(np.tril(np.ones((t, t), bool)), scores, q.dtype.type(-1e30))
    return np.einsum("nts,snh->tnh", _softmax(scores), v).reshape(t, n * h)


def llama(config: dict[str, Any], read: Read, tokens: np.ndarray) -> np.ndarray:
    """LlamaForCausalLM: logits [T, V] of tokens [T]."""
    n = config["num_attention_heads"]
    k = config.get("num_key_value_heads") or n
    h = config.get("head_dim") or config["hidden_size"] // n
    if config.get("hidden_act", "silu") != "silu":
        raise NoReference("The NumPy reference of LLaMA knows no other activation than silu.")
    eps = config.get("rms_norm_eps", 1e-6)

    def get(name: str) -> np.ndarray:
        return _wide(read(name))

    def project(x: np.ndarray, name: str, bias: bool) -> np.ndarray:
        y = x @ get(name + ".weight").T
        return y + get(name + ".bias") if bias else y

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * get(name)

    # Angles and their tables are float32 in released code, however wide the rest is.
    inverse = _frequencies(config, h).astype(np.float32)
    angle = np.tile(np.arange(len(tokens), dtype=np.float32)[:, None] * inverse, 2)[:, None]
    x = get("model.embed_tokens.weight")[tokens]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)

    def rotate(x: np.ndarray) -> np.ndarray:
        half = np.concatenate([-x[..., h // 2 :], x[..., : h // 2]], -1)
        return x * cos + half * sin

    bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
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


def _frequencies(config: Mapping[str, Any], h: int) -> np.ndarray:
    """Rotary frequencies [H / 2]: plain, linearly scaled, or as LLaMA 3.1 scales them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    inverse = 1.0 / np.float64(theta) ** (np.arange(0, h, 2) / h)
    if kind == "default":
        return inverse
    if kind == "linear":
        return inverse / rope["factor"]
    if kind != "llama3":
        raise NoReference(f"The NumPy reference of LLaMA does not know rope_type {kind!r}.")
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] * inverse / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return inverse * (kept + (1 - kept) / factor)


def gpt2(config: dict[str, Any], read: Read, tokens: np.ndarray) -> np.ndarray:
    """GPT2LMHeadModel: logits [T, V] of tokens [T]."""
    if config.get("activation_function", "gelu_new") != "gelu_new":
        raise NoReference("The NumPy reference of GPT-2 knows only the activation gelu_new.")
    heads = config.get("n_head") or config["num_attention_heads"]
    layers = config.get("n_layer") or config["num_hidden_layers"]
    eps = config.get("layer_norm_epsilon", 1e-5)

    def get(name: str) -> np.ndarray:
        return _wide(read("transformer." + name))

    def project(x: np.ndarray, name: str) -> np.ndarray:
        return x @ get(name + ".weight") + get(name + ".bias")

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
        return x * get(name + ".weight") + get(name + ".bias")

    x = get("wte.weight")[tokens] + get("wpe.weight")[: len(tokens)]
    for i in range(layers):
        qkv = project(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(len(tokens), heads, -1) for part in np.split(qkv, 3, -1))
        x = x + project(_causal_attention(q, k, v), f"h.{i}.attn.c_proj")
        y = project(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi).astype(y.dtype) * (y + 0.044715 * y**3)))
        x = x + project(y, f"h.{i}.mlp.c_proj")
    x = norm(x, "ln_f")
    if config.get("tie_word_embeddings", True):
        return x @ get("wte.weight").T
    return x @ _wide(read("lm_head.weight")).T


NUMPY: dict[str, Callable[[dict[str, Any], Read, np.ndarray], np.ndarray]] = {
    "llama": llama,
    "gpt2": gpt2,
}
