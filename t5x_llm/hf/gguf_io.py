"""Reading GGUF files: dequantised tensors under Hugging Face names, config, and tokenizer.

The container is read by the ``gguf`` package. llama.cpp's converter reorders the rows of LLaMA's
query and key projections, so that rotary embedding pairs neighbouring channels; Hugging Face pairs
the two halves of a head. Reading undoes that.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import einops
import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError

# Per architecture: GGUF tensor name to Hugging Face's, with {} for the layer.
_NAMES = {
    "llama": {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
        "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
        "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
    }
}
# Metadata that says nothing about the arithmetic.
_HARMLESS = re.compile(r"^(general|tokenizer|GGUF|quantize)\.")

_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[dict[str, Any]]:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [{**regex, "invert": False}, {**_BYTES, "use_regex": False}]


# How tokenizer.ggml.pre cuts text before the merges, as llama.cpp's llama-vocab.cpp does it.
_PRETOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "default": [_BYTES],
    "gpt-2": [_BYTES],
    "smollm": [_DIGITS, _BYTES],
    "starcoder": [_DIGITS, _BYTES],
    "refact": [_DIGITS, _BYTES],
    "command-r": [_DIGITS, _BYTES],
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}


class GgufReader:
    """A GGUF file of a known architecture as a Hugging Face config and named float32 tensors.

    Attributes:
      config: what config.json of the same model would say.
      fields: the file's metadata.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            import gguf
        except ImportError as e:
            raise ConfigError(
                "path", str(path), "a Hugging Face directory", "To read GGUF: pip install gguf."
            ) from e
        self.path = pathlib.Path(path)
        self._gguf = gguf
        try:
            reader = gguf.GGUFReader(self.path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as e:  # the package raises whatever a malformed byte leads to
            raise CheckpointError(f"{path}: not a readable GGUF file ({e}).") from e
        self.architecture = self.fields.get("general.architecture")
        if self.architecture not in _NAMES:
            raise ConfigError(
                f"{self.path.name} general.architecture", self.architecture, choices=_NAMES
            )
        table = _NAMES[self.architecture]
        self._tensors = {}
        for name, tensor in tensors.items():
            layer = re.match(r"blk\.(\d+)\.", name)
            key = name if layer is None else name.replace(layer[1], "{}", 1)
            if key not in table:
                raise CheckpointError(f"{path}: tensor {name} is not known to this reader.")
            self._tensors[table[key].format(*layer.groups() if layer else ())] = tensor
        self.config = self._config()

    def names(self) -> list[str]:
        """Hugging Face names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32, in Hugging Face's layout."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing.")
        tensor = self._tensors[name]
        array = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        array = np.asarray(array, np.float32).reshape(tuple(int(n) for n in tensor.shape[::-1]))
        for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            if name.endswith(f".self_attn.{part}_proj.weight"):
                array = einops.rearrange(
                    array, "(n h two) d -> (n two h) d", n=self.config[heads], two=2
                )
        return array

    def _config(self) -> dict[str, Any]:
        """LLaMA metadata as config.json; every key is used, harmless, or refused."""
        prefix = f"{self.architecture}."
        meta = {k.removeprefix(prefix): v for k, v in self.fields.items() if k.startswith(prefix)}
        for name in self.fields:
            if not name.startswith(prefix) and not _HARMLESS.match(name):
                raise ConfigError(f"{self.path.name} {name}", self.fields[name], "a known key")
        get = meta.pop
        try:
            heads, width = get("attention.head_count"), get("embedding_length")
            head_dim = get("attention.key_length", width // heads)
            config = {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": get("vocab_size", len(self.fields["tokenizer.ggml.tokens"])),
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
                "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            }
        except KeyError as e:
            raise CheckpointError(f"{self.path}: metadata lacks {e.args[0]}.") from e
        for name in ("rope.dimension_count", "attention.value_length"):
            if get(name, head_dim) != head_dim:
                raise ConfigError(f"{self.path.name} {prefix}{name}", meta, f"{head_dim}")
        if get("rope.scaling.type", "none") != "none":
            raise ConfigError(f"{self.path.name} {prefix}rope.scaling.type", meta, "none")
        if meta:
            name, value = next(iter(meta.items()))
            raise ConfigError(
                f"{self.path.name} {prefix}{name}",
                value,
                "a key this reader knows",
                "Importing it would compute something else than the original, so it is refused.",
            )
        return config

    def write_tokenizer(self, directory: pathlib.Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json from the metadata.

        Raises:
          ConfigError: for a kind of tokenizer this reader does not know.
        """
        meta = {k.removeprefix("tokenizer.ggml."): v for k, v in self.fields.items()}
        where = f"{self.path.name} tokenizer.ggml."
        if meta.get("model") != "gpt2":
            raise ConfigError(where + "model", meta.get("model"), choices=["gpt2"])
        pre = meta.get("pre", "default")
        if pre not in _PRETOKENIZERS:
            raise ConfigError(where + "pre", pre, choices=_PRETOKENIZERS)
        tokens, kinds = meta["tokens"], meta.get("token_type", [1] * len(meta["tokens"]))
        control, user = 3, 4
        added = [
            {
                **{"id": i, "content": token, "single_word": False, "lstrip": False},
                **{"rstrip": False, "normalized": False, "special": kind == control},
            }
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (control, user)
        ]
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRETOKENIZERS[pre]},
            "post_processor": None,
            "decoder": _BYTES,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": pre == "llama-bpe",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in meta["merges"]],
            },
        }
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": bool(meta.get("add_bos_token", False)),
            "model_max_length": self.config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        }
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            index = meta.get(f"{key}_token_id")
            if index is not None:
                settings[f"{name}_token"] = tokens[index]
        if template := self.fields.get("tokenizer.chat_template"):
            settings["chat_template"] = template
        for name, value in (("tokenizer", tokenizer), ("tokenizer_config", settings)):
            text = json.dumps(value, ensure_ascii=False)
            (directory / f"{name}.json").write_text(text, encoding="utf-8")


def _shortest(value: float) -> float:
    """The decimal that a float32 was written from: 9.999999747378752e-06 gives 1e-05."""
    return float(str(np.float32(value)))
