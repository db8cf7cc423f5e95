"""Yuan 2.0 (arXiv 2311.15786), as IEITYuan's released models and their code have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.lfa import LocalFilterConfig
from t5x_llm.nn.norm import NormConfig

_NOT_WRITTEN = ("n_kv_heads", "head_dim")


@dataclasses.dataclass(frozen=True)
class Yuan(LlamaLike):
    """LLaMA whose queries and keys read a filtered input; tied; the rotary base is 10,000."""

    norm_eps: float = 1e-6
    tied: bool = True
    max_length: int = 8192

    hf_type = "yuan"
    architecture = "YuanForCausalLM"
    FIELDS = {
        **{ours: hf for ours, hf in LlamaLike.FIELDS.items() if ours not in _NOT_WRITTEN},
        "tied": ("tie_word_embeddings", True),
        "max_length": ("max_position_embeddings", 8192),
    }
    WRITTEN = {"hidden_act": "silu", "causal_mask": True}
    FIXED = {"use_shareqk": False}
    # Where documents end within a row is told by segment ids here.
    IGNORED = frozenset(
        {"reset_attention_mask", "reset_position_ids", "use_loss_mask"}
        | {"eod_token", "sep_token", "eod_token_id"}
    )
    READ = frozenset()

    def __post_init__(self) -> None:
        fixed = {"n_kv_heads": None, "head_dim": None, "rope_scaling": None, "rope_theta": 1e4}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ConfigError(f"Yuan.{name}", getattr(self, name), f"{value}, as in the code")
        if self.n_heads % 2:
            raise ConfigError("Yuan.n_heads", self.n_heads, "an even number")
        super().__post_init__()

    def attention(self) -> AttentionConfig:
        """Returns the attention with the filter, whose norm has an epsilon of its own."""
        qk_filter = LocalFilterConfig(NormConfig("rms", 1e-6, bias=False, scale="ones"))
        return changed(super().attention(), qk_filter=qk_filter)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def write_hf(self) -> dict[str, Any]:
        """Returns what the released code reads besides; tokens do not tell documents apart."""
        return {
            "initializer_range": self.init_std or 0.02,
            **dict.fromkeys(("reset_attention_mask", "reset_position_ids"), False),
            **dict.fromkeys(("use_loss_mask", "use_flash_attention"), False),
            **dict.fromkeys(("eod_token", "sep_token"), None),
        }

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """Half of the heads has its queries and keys in q_proj, the other half in k_proj."""
        entries = [e for e in super().attention_entries(hf, ours) if "query" not in e.ours]
        entries = [e for e in entries if "key" not in e.ours]
        for half, name in enumerate("qk"):
            for i, part in enumerate(("query", "key")):
                more: dict[str, Any] = dict(part=(i, 2), run=("N", half, 2))
                entries += dense(f"{hf}{name}_proj", ours + part, "(N P H) D", "D N H", **more)
        gate, own = f"{hf}lf_gate.", f"{ours}qk_filter."
        for conv in ("conv1", "conv2"):
            entries += dense(gate + conv, own + conv, "O I S 1", "S I O", "O")
        return entries + norm(f"{gate}output_layernorm", f"{own}norm", False)

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """The activation is on what the released code calls up."""
        pairs = (("up", "gate"), ("gate", "up"), ("down", "down"))
        return [
            entry
            for theirs, own in pairs
            for entry in dense(f"{hf}{theirs}_proj", ours + own, "O I", "I O")
        ]
