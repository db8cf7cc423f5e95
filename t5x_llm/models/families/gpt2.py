"""GPT-2 (Radford et al. 2019): pre-norm, learned positions, GELU, biases, tied head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import REQUIRED, Family, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig


@dataclasses.dataclass(frozen=True)
class GPT2(Family):
    """The GPT-2 preset.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N, a divisor of D.
      d_ff: F; None means 4 D.
      max_length: rows of the learned position table.
      norm_eps: LayerNorm epsilon.
      tied: the head is the embedding table.
      init_std: standard deviation of fresh weights; kernels that write to the residual stream
        are scaled by 1/sqrt(2 L) as in the paper.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int | None = None
    max_length: int = 1024
    norm_eps: float = 1e-5
    tied: bool = True
    init_std: float = 0.02

    hf_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("n_embd", REQUIRED),
        "n_layers": ("n_layer", REQUIRED),
        "n_heads": ("n_head", REQUIRED),
        "d_ff": ("n_inner", None),
        "max_length": ("n_positions", 1024),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
    }
    FIXED: ClassVar[Mapping[str, Any]] = {
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
    }
    IGNORED = frozenset({"n_ctx", "resid_pdrop", "embd_pdrop", "attn_pdrop"})

    def __post_init__(self) -> None:
        self.check_divides("d_model", "n_heads")
        self.decoder()

    def write_hf(self) -> dict[str, Any]:
        """No dropout."""
        return {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        norm = NormConfig("layer", self.norm_eps, bias=True, scale="ones")
        attention = AttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            rotary=None,
            qkv_bias=True,
            out_bias=True,
            causal=True,
            window=None,
            scale=None,
            softcap=None,
            alibi=None,
            qk_norm=None,
            qkv_clip=None,
            qk_filter=None,
        )
        d_ff = self.d_ff if self.d_ff is not None else 4 * self.d_model
        mlp = MlpConfig(d_ff, "gelu_tanh", gated=False, bias=True)
        block = BlockConfig(attention, mlp, pre_norm(norm), parallel="no")
        scale = 1 / math.sqrt(2 * self.n_layers)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((block,), self.n_layers),),
            final_norm=norm,
            learned_positions=self.max_length,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std, scale, 1.0),
        )

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours; GPT-2 keeps kernels as [in, out]."""
        layer, ours = "transformer.h.{layer}.", "group_0.block_0."
        entries = [
            Entry("transformer.wte.weight", "embed.table", "V D", "V D"),
            Entry("transformer.wpe.weight", "position_embed.table", "T D", "T D"),
            *norm("transformer.ln_f", "final_norm", bias=True),
            *norm(f"{layer}ln_1", f"{ours}attention_norm", bias=True),
            *norm(f"{layer}ln_2", f"{ours}mlp_norm", bias=True),
            *dense(f"{layer}attn.c_proj", f"{ours}attention.out", "(N H) D", "N H D", "D"),
            *dense(f"{layer}mlp.c_fc", f"{ours}mlp.up", "I O", "I O", "O"),
            *dense(f"{layer}mlp.c_proj", f"{ours}mlp.down", "I O", "I O", "O"),
        ]
        for i, part in enumerate(("query", "key", "value")):
            hf, path = f"{layer}attn.c_attn", f"{ours}attention.{part}"
            entries += dense(hf, path, "D (P N H)", "D N H", "(P N H)", part=(i, 3))
        if not self.tied:
            entries.append(Entry("lm_head.weight", "head.kernel", "V D", "D V"))
        return entries
