"""Reading GGUF files: dequantised tensors under Hugging Face names, and the config.

llama.cpp's converter reorders the rows of LLaMA's query and key projections, so that rotary
embedding pairs neighbouring channels (Hugging Face pairs the two halves of a head), adds one to
Gemma's norm scales, and stacks the experts of a layer. Reading undoes all of it.
"""

from __future__ import annotations

import os
import re
from typing import Any

import einops
import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.gguf_architectures import ARCHITECTURES, architecture
from t5x_llm.hf.gguf_config import end_tokens, read_metadata
from t5x_llm.hf.gguf_file import PLAIN
from t5x_llm.hf.gguf_rope import FREQS, LONG, SHORT
from t5x_llm.hf.gguf_split import GgufModel

# Tensors that repeat what the metadata says, or belong to another kind of file.
_UNUSED = re.compile(r"blk\.\d+\.attn_rot_embd\.freqs|blk\.\d+\.rope_freqs\.weight")
_MAX_EXPERTS = 4096
# Keys of the metadata about sampling, in newer files, to fields of generation_config.json.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


class GgufReader:
    """A GGUF file of a known architecture as a Hugging Face config and named tensors.

    Attributes:
      path: the file; of a model in parts, the first.
      config: what config.json of the same model would say.
      fields: the file's metadata.
      architecture: how it is read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = GgufModel(path)
        self.path, self.fields = self._file.path, self._file.fields
        name = self.fields.get("general.architecture")
        kind = self.fields.get("general.type", "model")
        if kind != "model":
            raise ConfigError(f"{self.path.name} general.type", kind, "'model', a whole one")
        prefix = f"{name}."
        meta = {k.removeprefix(prefix): v for k, v in self.fields.items() if k.startswith(prefix)}
        found = architecture(name, meta) if isinstance(name, str) else None
        if found is None:
            raise ConfigError(
                f"{self.path.name} general.architecture",
                name,
                f"one of {', '.join(ARCHITECTURES)}",
                "More families are read from Hugging Face directories; docs/models.md lists them.",
            )
        self.name, self.architecture = str(name), found
        self._names: dict[str, tuple[str, int | None]] = {}
        self._factors = {n for n in (FREQS, LONG, SHORT) if n + ".weight" in self._file.tensors}
        for theirs in self._file.tensors:
            divisors = theirs.removesuffix(".weight") in self._factors
            if not divisors and not _UNUSED.fullmatch(theirs):
                self._place(theirs)
        self.config = self._config(meta)

    def _place(self, theirs: str) -> None:
        """Notes which Hugging Face tensors one of the file's holds."""
        numbers = re.findall(r"(?<=\.)\d{1,6}(?=\.)", theirs)
        key = theirs
        for number, sign in zip(numbers, ("{}", "{e}"), strict=False):
            key = key.replace(f".{number}.", f".{sign}.", 1)
        stem, _, kind = key.rpartition(".")
        if stem not in self.architecture.names or kind not in ("weight", "bias"):
            raise CheckpointError(
                f"{self.path}: tensor {theirs} is not known to this reader of {self.name!r}."
            )
        hf = f"{self.architecture.names[stem]}.{kind}"
        hf = hf.replace("{}", numbers[0]) if "{}" in key else hf
        if "{e}" not in hf:
            self._names[hf] = theirs, None
        elif "{e}" in key:
            self._names[hf.replace("{e}", numbers[1])] = theirs, None
        else:
            shape = self._file.tensors[theirs].shape
            if len(shape) < 2 or not 0 < shape[0] <= _MAX_EXPERTS:
                raise CheckpointError(f"{self.path}: {theirs} of shape {shape} holds no experts.")
            self._names |= {hf.replace("{e}", str(e)): (theirs, e) for e in range(shape[0])}

    def names(self) -> list[str]:
        """Hugging Face names of all tensors."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        theirs, expert = self._names[name]
        shape = self._file.tensors[theirs].shape
        if name.endswith("shared_expert_gate.weight"):
            return (1, *shape[-1:])  # written without its axis of one
        return shape if expert is None else shape[1:]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of what ``read`` returns: as stored, float32 where it is quantised."""
        return PLAIN.get(self._file.tensors[self._names[name][0]].type, PLAIN["F32"])

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised, in Hugging Face's layout."""
        if name not in self._names:
            raise CheckpointError(f"{self.path}: tensor {name} is missing.")
        array = self._file.read(*self._names[name]).reshape(self.shape(name))
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

    def generation(self) -> dict[str, Any]:
        """Returns what generation_config.json of the same model would say."""
        found = {
            field: round(value, 6) if isinstance(value, float) else value
            for key, field in _SAMPLING.items()
            if isinstance(value := self.fields.get(f"general.sampling.{key}"), int | float)
        }
        if "temperature" in found:
            found["do_sample"] = found["temperature"] > 0
        return found | {k: v for k, v in self.config.items() if k.endswith("_token_id")}

    def _config(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Returns the metadata as config.json, with the ids of special tokens."""
        head, table = "lm_head.weight" in self._names, self._names.get("model.embed_tokens.weight")
        rows = self._file.tensors[table[0]].shape[0] if table else 0
        factors = {n: np.asarray(self._file.read(n + ".weight")) for n in self._factors}
        biases = {n for n in self._names if n.endswith("proj.bias")}
        config = read_metadata(
            self.path, self.name, self.architecture, self.fields, meta, factors, rows
        )
        config["tie_word_embeddings"] = not head
        if config["model_type"] == "llama" and biases:
            config["attention_bias"] = any(".self_attn." in n for n in biases)
            config["mlp_bias"] = any(".mlp." in n for n in biases)
        return config | end_tokens(self.fields)
