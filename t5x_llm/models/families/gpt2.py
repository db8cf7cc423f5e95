"""GPT-2 (Radford et al. 2019): pre-norm, learned positions, GELU, biases, tied head."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.hf_config import check_hf_config
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig


@dataclasses.dataclass(frozen=True)
class GPT2:
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

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ConfigError(
                "GPT2.n_heads", self.n_heads, f"a divisor of GPT2.d_model = {self.d_model}"
            )
        self.decoder()

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        norm = NormConfig("layer", self.norm_eps, bias=True)
        attention = AttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            rotary=None,
            qkv_bias=True,
            out_bias=True,
        )
        d_ff = self.d_ff if self.d_ff is not None else 4 * self.d_model
        mlp = MlpConfig(d_ff, "gelu_tanh", gated=False, bias=True)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((BlockConfig(attention, mlp, norm),), self.n_layers),),
            final_norm=norm,
            learned_positions=self.max_length,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std, 1 / math.sqrt(2 * self.n_layers)),
        )

    def to_hf_config(self) -> dict[str, Any]:
        """config.json of transformers' GPT2LMHeadModel."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.hf_type,
            "vocab_size": self.vocab_size,
            "n_positions": self.max_length,
            "n_embd": self.d_model,
            "n_layer": self.n_layers,
            "n_head": self.n_heads,
            "n_inner": self.d_ff,
            "activation_function": "gelu_new",
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "layer_norm_epsilon": self.norm_eps,
            "initializer_range": self.init_std,
            "scale_attn_weights": True,
            "tie_word_embeddings": self.tied,
        }

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> GPT2:
        """The preset of a transformers config.json. Dropout rates are training settings: ignored.

        Raises:
          ConfigError: naming a field this family does not know or a value it cannot express.
        """
        check_hf_config(
            config,
            known={"vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "n_ctx"}
            | {"layer_norm_epsilon", "initializer_range", "tie_word_embeddings"}
            | {"resid_pdrop", "embd_pdrop", "attn_pdrop"},
            fixed={"model_type": "gpt2", "activation_function": "gelu_new"}
            | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
            | {"add_cross_attention": False, "reorder_and_upcast_attn": False},
        )
        return cls(
            vocab_size=config["vocab_size"],
            d_model=config["n_embd"],
            n_layers=config["n_layer"],
            n_heads=config["n_head"],
            d_ff=config.get("n_inner"),
            max_length=config.get("n_positions", 1024),
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            tied=config.get("tie_word_embeddings", True),
            init_std=config.get("initializer_range", 0.02),
        )

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours; GPT-2 keeps kernels as [in, out]."""
        layer, ours = "transformer.h.{layer}.", "group_0.block_0."
        entries = [
            Entry("transformer.wte.weight", "embed.table", "V D", "V D"),
            Entry("transformer.wpe.weight", "position_embed.table", "T D", "T D"),
        ]
        norms = {
            "transformer.ln_f.": "final_norm.",
            f"{layer}ln_1.": f"{ours}attention_norm.",
            f"{layer}ln_2.": f"{ours}mlp_norm.",
        }
        for hf, path in norms.items():
            entries.append(Entry(hf + "weight", path + "scale", "D", "D"))
            entries.append(Entry(hf + "bias", path + "bias", "D", "D"))
        for i, part in enumerate(("query", "key", "value")):
            hf, path = f"{layer}attn.c_attn.", f"{ours}attention.{part}."
            entries.append(Entry(hf + "weight", path + "kernel", "D (P N H)", "D N H", part=(i, 3)))
            entries.append(Entry(hf + "bias", path + "bias", "(P N H)", "N H", part=(i, 3)))
        for hf, path, axes in (
            ("attn.c_proj.", "attention.out.", ("(N H) D", "N H D")),
            ("mlp.c_fc.", "mlp.up.", ("I O", "I O")),
            ("mlp.c_proj.", "mlp.down.", ("I O", "I O")),
        ):
            entries.append(Entry(layer + hf + "weight", ours + path + "kernel", *axes))
            entries.append(Entry(layer + hf + "bias", ours + path + "bias", "O", "O"))
        if not self.tied:
            entries.append(Entry("lm_head.weight", "head.kernel", "V D", "D V"))
        return entries
