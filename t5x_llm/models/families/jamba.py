"""Jamba (arXiv 2403.19887): Mamba layers, attention without positions in between, experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.mamba import selective_entries
from t5x_llm.models.family import REQUIRED, Family, changed, dense, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.layer_types import grouped
from t5x_llm.models.moe import expert_entries, experts
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, pre_norm
from t5x_llm.nn.layer import LayerConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.ssm import SelectiveConfig

_ATTENTION, _MAMBA, _DENSE, _SPARSE = "attention", "mamba", "dense", "sparse"


@dataclasses.dataclass(frozen=True)
class Jamba(Family):
    """A mixer and a feed-forward layer, each of one of two kinds, by the layer's number.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N.
      d_ff: F, of experts too.
      n_kv_heads: K.
      attention_period: layers from one with attention to the next; others have Mamba.
      attention_offset: the first layer with attention.
      expert_period: layers from one with experts to the next.
      expert_offset: the first layer with experts.
      n_experts: E; with 1 no layer has experts.
      top_k: experts a token goes to.
      balance_weight: of the load-balance loss.
      expand: inner width of Mamba over D.
      d_state: size of a channel's state.
      dt_rank: width that steps are made from; None means D / 16, rounded up.
      conv_width: taps of the convolution.
      conv_bias: a bias in the convolution.
      mamba_bias: biases on Mamba's projections in and out.
      norm_eps: RMSNorm epsilon.
      tied: the head is the embedding table.
      init_std: standard deviation of fresh kernels and embeddings.
      max_length: longest sequence the model is meant for; recorded in exports.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_kv_heads: int = 8
    attention_period: int = 8
    attention_offset: int = 4
    expert_period: int = 2
    expert_offset: int = 1
    n_experts: int = 16
    top_k: int = 2
    balance_weight: float = 0.001
    expand: int = 2
    d_state: int = 16
    dt_rank: int | None = None
    conv_width: int = 4
    conv_bias: bool = True
    mamba_bias: bool = False
    norm_eps: float = 1e-6
    tied: bool = False
    init_std: float = 0.02
    max_length: int = 262144

    hf_type = "jamba"
    architecture = "JambaForCausalLM"
    FIELDS = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("intermediate_size", REQUIRED),
        "n_kv_heads": ("num_key_value_heads", 8),
        "attention_period": ("attn_layer_period", 8),
        "attention_offset": ("attn_layer_offset", 4),
        "expert_period": ("expert_layer_period", 2),
        "expert_offset": ("expert_layer_offset", 1),
        "n_experts": ("num_experts", 16),
        "top_k": ("num_experts_per_tok", 2),
        "balance_weight": ("router_aux_loss_coef", 0.001),
        "expand": ("mamba_expand", 2),
        "d_state": ("mamba_d_state", 16),
        "conv_width": ("mamba_d_conv", 4),
        "conv_bias": ("mamba_conv_bias", True),
        "mamba_bias": ("mamba_proj_bias", False),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tied": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "max_length": ("max_position_embeddings", 262144),
    }
    WRITTEN = {"hidden_act": "silu", "attention_dropout": 0.0}
    FIXED = {"mamba_inner_layernorms": True, "sliding_window": None}
    IGNORED = frozenset(
        {"use_mamba_kernels", "use_mambapy", "use_associative_scan"}
        | {"calc_logits_for_entire_prompt"}
    )
    READ = frozenset({"mamba_dt_rank"})

    def __post_init__(self) -> None:
        self.check_divides("d_model", "n_heads")
        for name in ("attention", "expert"):
            period = getattr(self, f"{name}_period")
            check_number(f"Jamba.{name}_period", period, low=1, integer=True)
            field, offset = f"Jamba.{name}_offset", getattr(self, f"{name}_offset")
            check_number(field, offset, low=0, high=period - 1, integer=True)
        if self.expand < 1:
            raise ConfigError("Jamba.expand", self.expand, "an integer at least 1")
        self.check_decoder()

    def norm(self) -> NormConfig:
        """The norm of every place."""
        return NormConfig("rms", self.norm_eps, bias=False, scale="ones")

    def attention(self) -> AttentionConfig:
        """Attention that knows no positions: Mamba does."""
        return AttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.d_model // self.n_heads,
            rotary=None,
            qkv_bias=False,
            out_bias=False,
            causal=True,
            window=None,
            scale=None,
            softcap=None,
            alibi=None,
            qk_norm=None,
            qkv_clip=None,
            qk_filter=None,
        )

    def mamba(self) -> SelectiveConfig:
        """Mamba with norms on steps, b and c."""
        return SelectiveConfig(
            d_inner=self.expand * self.d_model,
            d_state=self.d_state,
            dt_rank=self.dt_rank or -(-self.d_model // 16),
            conv_width=self.conv_width,
            conv_bias=self.conv_bias,
            bias=self.mamba_bias,
            activation="silu",
            norm=self.norm(),
        )

    def kinds(self) -> list[str]:
        """Returns for each layer its mixer and its feed-forward layer."""
        found = []
        for i in range(self.n_layers):
            attends = i % self.attention_period == self.attention_offset
            sparse = i % self.expert_period == self.expert_offset and self.n_experts > 1
            mixer, feed_forward = _ATTENTION if attends else _MAMBA, _SPARSE if sparse else _DENSE
            found.append(f"{mixer} {feed_forward}")
        return found

    def block(self, kind: str) -> BlockConfig:
        """A layer of a kind."""
        mixer, feed_forward = kind.split()
        layer: LayerConfig = MlpConfig(self.d_ff, "silu", gated=True, bias=False)
        if feed_forward == _SPARSE:
            sizes = (self.n_experts, self.top_k, self.d_ff, self.balance_weight)
            layer = experts(*sizes, normalise=None)
        first = self.attention() if mixer == _ATTENTION else self.mamba()
        return BlockConfig(first, layer, pre_norm(self.norm()), parallel="no")

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=grouped(self.kinds(), self.block),
            final_norm=self.norm(),
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std, 1.0, 1.0),
        )

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The rank of steps."""
        rank = given(config, "mamba_dt_rank", "auto")
        return {"dt_rank": None if rank == "auto" else rank}

    def write_hf(self) -> dict[str, Any]:
        """The rank as a number."""
        return {"mamba_dt_rank": self.mamba().dt_rank}

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "model.layers.{layer}.", "group_{group}.block_{block}."
        entries = [
            Entry("model.embed_tokens.weight", "embed.table", "V D", "V D"),
            *norm("model.final_layernorm", "final_norm", bias=False),
            *norm(f"{layer}input_layernorm", f"{ours}attention_norm", bias=False),
            *norm(f"{layer}input_layernorm", f"{ours}ssm_norm", bias=False),
            *norm(f"{layer}pre_ff_layernorm", f"{ours}mlp_norm", bias=False),
            *selective_entries(f"{layer}mamba.", f"{ours}ssm.", self.mamba()),
            *([] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]),
        ]
        for part in ("dt", "b", "c"):
            entries += norm(f"{layer}mamba.{part}_layernorm", f"{ours}ssm.{part}_norm", bias=False)
        for name, part, heads in (("q", "query", "N"), ("k", "key", "K"), ("v", "value", "K")):
            axes = f"({heads} H) D", f"D {heads} H"
            entries += dense(f"{layer}self_attn.{name}_proj", f"{ours}attention.{part}", *axes)
        entries += dense(f"{layer}self_attn.o_proj", f"{ours}attention.out", "D (N H)", "N H D")
        for part in ("gate", "up", "down"):
            entries += dense(f"{layer}feed_forward.{part}_proj", f"{ours}mlp.{part}", "O I", "I O")
        router, *others = expert_entries(f"{layer}feed_forward.", f"{ours}mlp.")
        return [*entries, changed(router, hf=f"{layer}feed_forward.router.weight"), *others]
