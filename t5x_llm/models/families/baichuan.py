"""Baichuan 1 (7B, 13B) and 2 (arXiv 2309.10305), as their released repositories have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, dense
from t5x_llm.models.hf_config import given
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.positions import AlibiConfig, RotaryConfig

_BAICHUAN2_VOCAB = 125696


@dataclasses.dataclass(frozen=True)
class Baichuan(LlamaLike):
    """LLaMA with one tensor for queries, keys and values; the 13B models have ALiBi.

    Attributes:
      alibi: linear biases instead of rotation. config.json tells it by ``model_max_length``, which
        only the 13B models have.
      normalized_head: rows of the head are scaled to unit length: Baichuan 2, told by its
        vocabulary where config.json has no such field.
    """

    norm_eps: float = 1e-6
    alibi: bool = False
    normalized_head: bool = False
    max_length: int = 4096

    hf_type = "baichuan"
    architecture = "BaichuanForCausalLM"
    FIELDS = {
        ours: hf
        for ours, hf in LlamaLike.FIELDS.items()
        if ours not in ("n_kv_heads", "head_dim", "max_length")
    }
    WRITTEN = {"hidden_act": "silu"}
    READ = LlamaLike.READ | {"model_max_length", "max_position_embeddings", "normalized_head"}

    def rotary(self) -> RotaryConfig | None:
        """The rotation, where there is no ALiBi."""
        return None if self.alibi else super().rotary()

    def attention(self) -> AttentionConfig:
        """Returns the attention with ALiBi or rotation."""
        alibi = AlibiConfig(1.0, 8.0, rounded=False) if self.alibi else None
        return changed(super().attention(), alibi=alibi)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder, the head's rows normalised or not."""
        return changed(super().decoder(), normalized_head=self.normalized_head)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns which of the four models it is."""
        rotated = config.get("max_position_embeddings") is not None
        alibi = not rotated and config.get("model_max_length") is not None
        length = config.get("model_max_length" if alibi else "max_position_embeddings")
        second = config["vocab_size"] == _BAICHUAN2_VOCAB
        return super().read_hf(config) | {
            "alibi": alibi,
            "normalized_head": given(config, "normalized_head", second),
            "max_length": 4096 if length is None else length,
        }

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        fields = super().write_hf()
        for name in ("num_key_value_heads", "head_dim"):
            fields.pop(name, None)
        length = "model_max_length" if self.alibi else "max_position_embeddings"
        return fields | {length: self.max_length, "normalized_head": self.normalized_head}

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """W_pack holds queries, keys and values one after another."""
        entries = [e for e in super().attention_entries(hf, ours) if "o_proj" in e.hf]
        for i, part in enumerate(("query", "key", "value")):
            axes = ("(P N H) D", "D N H")
            entries += dense(f"{hf}W_pack", f"{ours}{part}", *axes, part=(i, 3))
        return entries
