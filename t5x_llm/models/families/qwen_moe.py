"""Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671), Qwen3-MoE (2505.09388)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.qwen import Qwen2, Qwen3
from t5x_llm.models.moe import expert_entries, experts
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.layer import LayerConfig

_SWITCHES: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": []}


@dataclasses.dataclass(frozen=True)
class Qwen2Moe(Qwen2):
    """Many small experts, and one for all tokens behind a gate.

    Attributes:
      n_experts: E.
      top_k: experts a token goes to.
      d_expert: F of an expert; ``d_ff`` is that of layers without experts and is not used.
      d_shared: F of the expert for all.
      normalise: the chosen weights are made to sum to one.
      balance_weight: of the load-balance loss.
    """

    n_experts: int = 60
    top_k: int = 4
    d_expert: int = 1408
    d_shared: int = 5632
    normalise: bool = False
    balance_weight: float = 0.001

    hf_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    FIELDS = {
        **Qwen2.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 16),
        "n_experts": ("num_experts", 60),
        "top_k": ("num_experts_per_tok", 4),
        "d_expert": ("moe_intermediate_size", 1408),
        "d_shared": ("shared_expert_intermediate_size", 5632),
        "normalise": ("norm_topk_prob", False),
        "balance_weight": ("router_aux_loss_coef", 0.001),
    }
    FIXED = {**_SWITCHES, "qkv_bias": True}

    @staticmethod
    def has_window(layer: int, max_window_layers: int) -> bool:
        """Returns which layers have the window: every other one of the first."""
        return layer % 2 == 0 and layer < max_window_layers

    def feed_forward(self) -> LayerConfig:
        """Experts and the one for all."""
        return experts(
            self.n_experts,
            self.top_k,
            self.d_expert,
            self.balance_weight,
            normalise=1.0 if self.normalise else None,
            shared=self.d_shared,
            shared_gate=True,
        )

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries, with the shared expert and its gate."""
        shared = [
            Entry(f"{hf}shared_expert.{part}_proj.weight", f"{ours}shared.{part}.kernel", *axes)
            for part in ("gate", "up", "down")
            for axes in [("O I", "I O")]
        ]
        gate = f"{hf}shared_expert_gate.weight", f"{ours}shared_gate.kernel"
        return [*expert_entries(hf, ours), *shared, Entry(*gate, "O I", "I O")]


@dataclasses.dataclass(frozen=True)
class Qwen3Moe(Qwen3):
    """Qwen3 with experts alone.

    Attributes:
      n_experts: E.
      top_k: experts a token goes to.
      d_expert: F of an expert; ``d_ff`` is that of layers without experts and is not used.
      normalise: the chosen weights are made to sum to one.
      balance_weight: of the load-balance loss.
    """

    n_kv_heads: int | None = 4
    head_dim: int | None = None
    n_experts: int = 128
    top_k: int = 8
    d_expert: int = 768
    normalise: bool = False
    balance_weight: float = 0.001

    hf_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    FIELDS = {
        **Qwen3.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 4),
        "head_dim": ("head_dim", None),
        "n_experts": ("num_experts", 128),
        "top_k": ("num_experts_per_tok", 8),
        "d_expert": ("moe_intermediate_size", 768),
        "normalise": ("norm_topk_prob", False),
        "balance_weight": ("router_aux_loss_coef", 0.001),
    }
    FIXED = {**_SWITCHES, "use_qk_norm": True, "shared_expert_intermediate_size": 0}
    COPIES = {"num_local_experts": "n_experts"}

    def __post_init__(self) -> None:
        types = set(self.layer_types)
        if len(types) > 1:
            field, expected = f"{type(self).__name__}.layer_types", "layers that are all alike"
            raise ConfigError(field, self.layer_types, expected, "transformers knows no others.")
        super().__post_init__()

    @staticmethod
    def has_window(layer: int, max_window_layers: int) -> bool:
        """Returns which layers have the window: all."""
        return True

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The number of experts has either of two names."""
        if config.get("num_experts") is not None or "num_local_experts" not in config:
            return super().read_hf(config)
        return super().read_hf(config) | {"n_experts": config["num_local_experts"]}

    def feed_forward(self) -> LayerConfig:
        """Experts."""
        norm = 1.0 if self.normalise else None
        sizes = (self.n_experts, self.top_k, self.d_expert, self.balance_weight)
        return experts(*sizes, normalise=norm)

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """The router and its experts."""
        return expert_entries(hf, ours)
