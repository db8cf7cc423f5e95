"""DeepSeek V2 and V3 (arXiv 2405.04434, 2412.19437): latent attention, fine-grained experts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import REQUIRED, dense, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.layer_types import grouped
from t5x_llm.models.moe import expert_entries, experts
from t5x_llm.models.rope import write_rope, yarn_mscale
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.latent_attention import LatentAttentionConfig
from t5x_llm.nn.layer import LayerConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.moe import MoeConfig
from t5x_llm.nn.positions import RotaryConfig
from t5x_llm.nn.rotary_scaling import RotaryScaling
from t5x_llm.nn.router import GroupLimitConfig

_DENSE, _SPARSE = "dense", "sparse"


@dataclasses.dataclass(frozen=True)
class DeepseekV2(LlamaLike):
    """Latent attention; the first layers dense, the others of routed and shared experts.

    Attributes:
      q_rank: width of the compressed queries, or None.
      kv_rank: width of the compressed keys and values.
      nope_dim: channels of a head's query and key without position.
      rope_dim: those with it.
      value_dim: head size of the values.
      yarn_mscale: factor on the attention logits that YaRN brings, its square taken.
      n_dense: layers without experts, at the start.
      n_experts: E.
      top_k: experts a token goes to.
      n_groups: groups of experts; 1 for no limit to groups.
      top_groups: groups a token may use.
      n_shared: experts for all tokens.
      d_expert: F of an expert.
      routed_scale: factor on the experts' weights.
    """

    norm_eps: float = 1e-6
    q_rank: int | None = 1536
    kv_rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    value_dim: int = 128
    yarn_mscale: float = 1.0
    n_dense: int = 1
    n_experts: int = 64
    top_k: int = 6
    n_groups: int = 1
    top_groups: int = 1
    n_shared: int = 2
    d_expert: int = 1407
    routed_scale: float = 1.0

    hf_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    FIELDS = {
        **{k: v for k, v in LlamaLike.FIELDS.items() if k not in ("n_kv_heads", "head_dim")},
        "kv_rank": ("kv_lora_rank", 512),
        "nope_dim": ("qk_nope_head_dim", 128),
        "rope_dim": ("qk_rope_head_dim", 64),
        "value_dim": ("v_head_dim", 128),
        "n_dense": ("first_k_dense_replace", 0),
        "n_experts": ("n_routed_experts", 64),
        "top_k": ("num_experts_per_tok", REQUIRED),
        "n_shared": ("n_shared_experts", 2),
        "d_expert": ("moe_intermediate_size", 1407),
        "routed_scale": ("routed_scaling_factor", 1.0),
    }
    FIXED = {"norm_topk_prob": False, "attention_bias": False, "mlp_bias": False}
    FIXED |= {"moe_layer_freq": 1, "scoring_func": "softmax"}
    IGNORED = frozenset({"head_dim"})
    READ = LlamaLike.READ | {"q_lora_rank", "topk_method", "n_group", "topk_group"}
    COPIES = {"qk_head_dim": "query_dim", "num_key_value_heads": "n_heads"}

    def __post_init__(self) -> None:
        if not 0 <= self.n_dense < self.n_layers:
            field = f"{type(self).__name__}.n_dense"
            raise ConfigError(field, self.n_dense, f"0 to {self.n_layers - 1}, fewer than layers")
        self.check_decoder()

    @property
    def query_dim(self) -> int:
        """Size of a query or key, both parts."""
        return self.nope_dim + self.rope_dim

    def limit(self, score: str) -> GroupLimitConfig | None:
        """The limit to groups, if there is one."""
        if self.n_groups == self.top_groups:
            return None
        return GroupLimitConfig(self.n_groups, self.top_groups, score)

    def latent_attention(self) -> LatentAttentionConfig:
        """The attention of every layer."""
        return LatentAttentionConfig(
            n_heads=self.n_heads,
            q_rank=self.q_rank,
            kv_rank=self.kv_rank,
            nope_dim=self.nope_dim,
            value_dim=self.value_dim,
            rotary=RotaryConfig(self.rope_theta, self.rope_dim, True, self.rope_scaling, False),
            norm=self.inner_norm(),
            bias=False,
            scale=self.query_dim**-0.5 * self.yarn_mscale**2,
        )

    def inner_norm(self) -> Any:
        """The norm of compressed vectors, whose epsilon is fixed."""
        return dataclasses.replace(self.norm(), eps=1e-6)

    def feed_forward(self) -> MoeConfig:
        """Experts chosen by their softmax scores."""
        return experts(
            self.n_experts,
            self.top_k,
            self.d_expert,
            0.0,
            groups=self.limit("max"),
            normalise=None,
            scale=self.routed_scale,
            shared=self.n_shared * self.d_expert,
        )

    def groups(self) -> tuple[GroupConfig, ...]:
        """Dense layers, then sparse ones."""

        def block(kind: str) -> BlockConfig:
            plain = MlpConfig(self.d_ff, "silu", gated=True, bias=False)
            inner: LayerConfig = plain if kind == _DENSE else self.feed_forward()
            return BlockConfig(self.latent_attention(), inner, pre_norm(self.norm()), "no")

        sparse = self.n_layers - self.n_dense
        return grouped((_DENSE,) * self.n_dense + (_SPARSE,) * sparse, block)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Rotary settings, with YaRN's factor on logits, and the limit to groups."""
        theta, scaling, raw = cls.read_rotary(config)
        mscale = 1.0
        if isinstance(scaling, RotaryScaling) and raw.get("mscale_all_dim"):
            mscale = yarn_mscale(scaling.factor, raw["mscale_all_dim"])
        method = given(config, "topk_method", cls.METHODS[0])
        check_choice("config.json topk_method", method, cls.METHODS)
        groups, top = (given(config, name, default) for name, default in cls.GROUPS.items())
        if method == "greedy":
            groups = top = 1
        return {
            "rope_theta": theta,
            "rope_scaling": scaling,
            "yarn_mscale": mscale,
            "q_rank": config.get("q_lora_rank", 1536),
            "n_groups": groups,
            "top_groups": top,
        }

    # Ways of choosing experts, the one where none is named first; transformers' groups.
    METHODS: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")
    GROUPS: ClassVar[Mapping[str, int]] = {"n_group": 1, "topk_group": 1}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        rope = write_rope(self.rope_theta, self.rope_scaling)
        if self.yarn_mscale != 1.0 and isinstance(self.rope_scaling, RotaryScaling):
            all_dim = (self.yarn_mscale - 1.0) / (0.1 * math.log(self.rope_scaling.factor))
            rope["rope_parameters"]["mscale_all_dim"] = all_dim
        limited = self.n_groups > 1
        return rope | {
            "num_key_value_heads": self.n_heads,
            "q_lora_rank": self.q_rank,
            "n_group": self.n_groups,
            "topk_group": self.top_groups,
            "topk_method": "group_limited_greedy" if limited else "greedy",
        }

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """The way down and up of queries, keys and values."""
        heads = "(N H) D"
        if self.q_rank is None:
            entries = dense(f"{hf}q_proj", f"{ours}query", heads, "D N H")
        else:
            entries = [
                *dense(f"{hf}q_a_proj", f"{ours}query_down", "R D", "D R"),
                *norm(f"{hf}q_a_layernorm", f"{ours}query_norm", False),
                *dense(f"{hf}q_b_proj", f"{ours}query_up", heads, "D N H"),
            ]
        both = self.kv_rank + self.rope_dim
        down = f"{hf}kv_a_proj_with_mqa"
        entries += dense(down, f"{ours}kv_down", "P D", "D P", part=(0, both), span=self.kv_rank)
        more: dict[str, Any] = dict(part=(self.kv_rank, both), span=self.rope_dim)
        entries += dense(down, f"{ours}key_rotary", "P D", "D P", **more)
        entries += norm(f"{hf}kv_a_layernorm", f"{ours}kv_norm", False)
        both, up = self.nope_dim + self.value_dim, f"{hf}kv_b_proj"
        for name, first, span in (
            ("key", 0, self.nope_dim),
            ("value", self.nope_dim, self.value_dim),
        ):
            more = dict(part=(first, both), span=span, sizes=(("N", self.n_heads),))
            entries += dense(up, f"{ours}{name}_up", "(N P) R", "R N P", **more)
        return entries + dense(f"{hf}o_proj", f"{ours}out", "D (N H)", "N H D")

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Dense layers, routed experts, shared experts; each where a layer has it."""
        entries = expert_entries(hf, ours)
        for part in ("gate", "up", "down"):
            for theirs, own in (("", ""), ("shared_experts.", "shared.")):
                name = f"{hf}{theirs}{part}_proj.weight"
                entries.append(Entry(name, f"{ours}{own}{part}.kernel", "O I", "I O"))
        return entries


@dataclasses.dataclass(frozen=True)
class DeepseekV3(DeepseekV2):
    """Sigmoid scores, a correction of each expert for the choice, weights made to sum to one.

    Attributes:
      normalise: the chosen weights are made to sum to one.
    """

    normalise: bool = True

    hf_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    METHODS = ("noaux_tc",)
    GROUPS = {"n_group": 8, "topk_group": 4}
    FIELDS = {
        **DeepseekV2.FIELDS,
        "n_dense": ("first_k_dense_replace", 3),
        "n_experts": ("n_routed_experts", 256),
        "top_k": ("num_experts_per_tok", 8),
        "n_shared": ("n_shared_experts", 1),
        "d_expert": ("moe_intermediate_size", 2048),
        "routed_scale": ("routed_scaling_factor", 2.5),
        "normalise": ("norm_topk_prob", True),
        "max_length": ("max_position_embeddings", 4096),
    }
    FIXED = {"attention_bias": False, "rope_interleave": True}
    FIXED |= {"moe_layer_freq": 1, "scoring_func": "sigmoid"}

    def feed_forward(self) -> MoeConfig:
        """Experts chosen by corrected sigmoid scores."""
        return experts(
            self.n_experts,
            self.top_k,
            self.d_expert,
            0.0,
            scoring="sigmoid",
            correction=True,
            groups=self.limit("top2"),
            normalise=1.0 if self.normalise else None,
            scale=self.routed_scale,
            shared=self.n_shared * self.d_expert,
        )

    def write_hf(self) -> dict[str, Any]:
        """V3 has one way of choosing."""
        return super().write_hf() | {"topk_method": "noaux_tc"}

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries, with that of the correction."""
        correction = f"{hf}gate.e_score_correction_bias", f"{ours}router.correction"
        return [*super().feed_forward_entries(hf, ours), Entry(*correction, "E", "E")]
