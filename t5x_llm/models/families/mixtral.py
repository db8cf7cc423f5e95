"""Mixtral (arXiv 2401.04088): Mistral with eight experts."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.families.mistral import Mistral
from t5x_llm.models.moe import expert_entries, experts
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.layer import LayerConfig


@dataclasses.dataclass(frozen=True)
class Mixtral(Mistral):
    """Mistral whose tokens go to ``top_k`` of ``n_experts`` feed-forward layers.

    Attributes:
      n_experts: E.
      top_k: experts a token goes to.
      balance_weight: of the load-balance loss.
    """

    rope_theta: float = 1e6
    n_experts: int = 8
    top_k: int = 2
    balance_weight: float = 0.001

    hf_type = "mixtral"
    architecture = "MixtralForCausalLM"
    FIELDS = {
        **Mistral.FIELDS,
        "norm_eps": ("rms_norm_eps", 1e-5),
        "window": ("sliding_window", None),
        "n_experts": ("num_local_experts", 8),
        "top_k": ("num_experts_per_tok", 2),
        "balance_weight": ("router_aux_loss_coef", 0.001),
    }

    def feed_forward(self) -> LayerConfig:
        """Experts, their weights made to sum to one."""
        return experts(self.n_experts, self.top_k, self.d_ff, self.balance_weight)

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Experts under their first names."""
        return expert_entries(hf.replace("mlp.", "block_sparse_moe."), ours, ("w1", "w3", "w2"))
