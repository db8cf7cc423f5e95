"""Common parts of families with experts: the config of the layer, entries of its tensors."""

from __future__ import annotations

from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.moe import MoeConfig
from t5x_llm.nn.router import GroupLimitConfig, RouterConfig


def experts(
    n_experts: int,
    top_k: int,
    d_ff: int,
    balance_weight: float,
    *,
    activation: str = "silu",
    scoring: str = "softmax",
    correction: bool = False,
    groups: GroupLimitConfig | None = None,
    normalise: float | None = 1.0,
    scale: float = 1.0,
    shared: int | None = None,
    shared_gate: bool = False,
) -> MoeConfig:
    """Gated experts that drop no token; see ``RouterConfig`` and ``MoeConfig``.

    ``shared`` is the width of the feed-forward layer that all tokens use.
    """
    router = RouterConfig(
        n_experts=n_experts,
        top_k=top_k,
        scoring=scoring,
        correction=correction,
        groups=groups,
        normalise=normalise,
        scale=scale,
        balance_weight=balance_weight,
        z_weight=0.0,
    )
    every = None if shared is None else MlpConfig(shared, activation, gated=True, bias=False)
    return MoeConfig(
        router=router,
        d_ff=d_ff,
        activation=activation,
        gated=True,
        shared=every,
        shared_gate=shared_gate,
        dispatch="dropless",
        capacity_factor=None,
    )


def expert_entries(
    hf: str, ours: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> list[Entry]:
    """Entries of one layer's router and experts, a tensor an expert.

    Args:
      hf: prefix of the layer's tensors.
      ours: path of the layer.
      names: of gate, up and down.
    """
    entries = [Entry(f"{hf}gate.weight", f"{ours}router.kernel", "E D", "D E")]
    for name, part in zip(names, ("gate", "up", "down"), strict=True):
        tensor = f"{hf}experts.{{expert}}.{name}.weight"
        entries.append(Entry(tensor, f"{ours}experts.{part}", "O I", "expert I O"))
    return entries
