"""Reading GGUF files: dequantised tensors under Hugging Face names, and the config.

llama.cpp's converter reorders the rows of LLaMA's query and key projections, so that rotary
embedding pairs neighbouring channels (Hugging Face pairs the two halves of a head), and adds one to
Gemma's norm scales. Reading undoes both. Architectures are those that transformers reads from GGUF
too, as its reading is what ours is checked against.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import einops
import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.gguf_file import PLAIN, GgufFile

_LAYER = "model.layers.{}."
_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": _LAYER + "input_layernorm",
    "blk.{}.ffn_norm": _LAYER + "post_attention_layernorm",
    "blk.{}.attn_q": _LAYER + "self_attn.q_proj",
    "blk.{}.attn_k": _LAYER + "self_attn.k_proj",
    "blk.{}.attn_v": _LAYER + "self_attn.v_proj",
    "blk.{}.attn_output": _LAYER + "self_attn.o_proj",
    "blk.{}.ffn_gate": _LAYER + "mlp.gate_proj",
    "blk.{}.ffn_up": _LAYER + "mlp.up_proj",
    "blk.{}.ffn_down": _LAYER + "mlp.down_proj",
}
_SOFT = {"attn_logit_softcapping", "final_logit_softcapping"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Translation of one ``general.architecture`` of GGUF to a Hugging Face model.

    Attributes:
      hf_type: model_type of config.json.
      hf_class: its class in transformers.
      names: ggml's names to Hugging Face's, without ``.weight``; {} for the layer.
      permuted: query and key rows are reordered.
      norm_offset: what is added to norm scales.
      fields: further keys of the metadata to fields of config.json.
      fixed: fields of config.json that GGUF does not say.
    """

    hf_type: str
    hf_class: str
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _LLAMA)
    permuted: bool = False
    norm_offset: float = 0.0
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {
            **_LLAMA,
            "blk.{}.attn_q_norm": _LAYER + "self_attn.q_norm",
            "blk.{}.attn_k_norm": _LAYER + "self_attn.k_norm",
        },
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            **_LLAMA,
            "blk.{}.post_attention_norm": _LAYER + "post_attention_layernorm",
            "blk.{}.ffn_norm": _LAYER + "pre_feedforward_layernorm",
            "blk.{}.post_ffw_norm": _LAYER + "post_feedforward_layernorm",
        },
        norm_offset=1.0,
        fields={key: key for key in _SOFT} | {"attention.sliding_window": "sliding_window"},
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
    ),
}
# Metadata that says nothing about the arithmetic.
_HARMLESS = re.compile(r"^(general|tokenizer|GGUF|quantize)\.")


class GgufReader:
    """A GGUF file of a known architecture as a Hugging Face config and named tensors.

    Attributes:
      config: what config.json of the same model would say.
      fields: the file's metadata.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = GgufFile(path)
        self.path, self.fields = self._file.path, self._file.fields
        name = self.fields.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise ConfigError(f"{self.path.name} general.architecture", name, choices=ARCHITECTURES)
        self.name, self.architecture = name, ARCHITECTURES[name]
        self._names: dict[str, str] = {}
        for theirs in self._file.tensors:
            layer = re.match(r"blk\.(\d{1,6})\.", theirs)
            key = theirs if layer is None else theirs.replace(layer[1], "{}", 1)
            stem, _, kind = key.rpartition(".")
            if stem not in self.architecture.names or kind not in ("weight", "bias"):
                raise CheckpointError(
                    f"{path}: tensor {theirs} is not known to this reader of {name!r}."
                )
            hf = f"{self.architecture.names[stem]}.{kind}"
            self._names[hf.format(layer and layer[1])] = theirs
        self.config = self._config()

    def names(self) -> list[str]:
        """Hugging Face names of all tensors."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._file.tensors[self._names[name]].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of what ``read`` returns: as stored, float32 where it is quantised."""
        return PLAIN.get(self._file.tensors[self._names[name]].type, PLAIN["F32"])

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised, in Hugging Face's layout."""
        if name not in self._names:
            raise CheckpointError(f"{self.path}: tensor {name} is missing.")
        array = self._file.read(self._names[name])
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            array = (array - np.float32(self.architecture.norm_offset)).astype(array.dtype)
        for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            if self.architecture.permuted and f".self_attn.{part}_proj." in name:
                count = self.config[heads]
                if array.shape[0] % (2 * count):
                    raise CheckpointError(
                        f"{self.path}: {name} of shape {array.shape} does not make {count} heads."
                    )
                array = einops.rearrange(array, "(n h two) ... -> (n two h) ...", n=count, two=2)
        return array

    def _config(self) -> dict[str, Any]:
        """The metadata as config.json; every key is used, harmless, or refused."""
        prefix = f"{self.name}."
        meta = {k.removeprefix(prefix): v for k, v in self.fields.items() if k.startswith(prefix)}
        for name in self.fields:
            if not name.startswith(prefix) and not _HARMLESS.match(name):
                raise ConfigError(f"{self.path.name} {name}", self.fields[name], "a known key")
        for name, value in meta.items():
            if isinstance(value, (np.ndarray, list)):
                raise ConfigError(
                    f"{self.path.name} {prefix}{name}", f"{len(value)} values", "one for all layers"
                )
        get = meta.pop
        try:
            heads, width = get("attention.head_count"), get("embedding_length")
            head_dim = get("attention.key_length", None) or width // heads
            tokens = self.fields.get("tokenizer.ggml.tokens", ())
            config = {
                "model_type": self.architecture.hf_type,
                "architectures": [self.architecture.hf_class],
                "vocab_size": get("vocab_size", len(tokens)),
                "hidden_size": width,
                "intermediate_size": get("feed_forward_length"),
                "num_hidden_layers": get("block_count"),
                "num_attention_heads": heads,
                "num_key_value_heads": get("attention.head_count_kv", heads),
                "head_dim": head_dim,
                "max_position_embeddings": get("context_length"),
                "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": _shortest(get("rope.freq_base", 10000.0)),
                },
                "tie_word_embeddings": "lm_head.weight" not in self._names,
                **self.architecture.fixed,
            }
            for key, field in self.architecture.fields.items():
                value = get(key)
                config[field] = _shortest(value) if isinstance(value, float) else value
            if self.name == "gemma2":
                # As llama.cpp does: the 27B, of 46 layers, divides by its own number.
                wide = config["num_hidden_layers"] == 46
                config["query_pre_attn_scalar"] = width // heads if wide else head_dim
        except KeyError as e:
            raise CheckpointError(f"{self.path}: metadata lacks {e.args[0]}.") from e
        except (TypeError, ValueError, ArithmeticError) as e:
            raise CheckpointError(f"{self.path}: metadata of wrong types ({e}).") from e
        for name in ("rope.dimension_count", "attention.value_length"):
            if (value := get(name, head_dim)) != head_dim:
                raise ConfigError(f"{self.path.name} {prefix}{name}", value, f"{head_dim}")
        if (value := get("rope.scaling.type", "none")) != "none":
            raise ConfigError(f"{self.path.name} {prefix}rope.scaling.type", value, "none")
        if meta:
            name, value = next(iter(meta.items()))
            raise ConfigError(
                f"{self.path.name} {prefix}{name}",
                value,
                "a key this reader knows",
                "Importing it would compute something else than the original, so it is refused.",
            )
        return config


def _shortest(value: float) -> float:
    """The decimal that a float32 was written from: 9.999999747378752e-06 gives 1e-05."""
    return float(str(np.float32(value)))
