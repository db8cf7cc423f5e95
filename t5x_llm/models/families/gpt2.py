"""GPT-2 (Radford et al. 2019): pre-norm, learned positions, GELU, biases, tied head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.gpt_like import GptLike
from t5x_llm.models.family import REQUIRED, changed, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.param import InitConfig

# Other names that transformers takes for fields of GPT-2 and GPT-J.
ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


@dataclasses.dataclass(frozen=True)
class GPT2(GptLike):
    """GPT-2: fresh kernels that write to the residual stream are scaled by 1/sqrt(2 L)."""

    max_length: int = 1024

    hf_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    ALIASES = ALIASES
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
    WRITTEN: ClassVar[Mapping[str, Any]] = {"scale_attn_weights": True}
    FIXED: ClassVar[Mapping[str, Any]] = {
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
    }

    def write_hf(self) -> dict[str, Any]:
        """No dropout."""
        return super().write_hf() | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with learned positions."""
        scale = 1 / math.sqrt(2 * self.n_layers)
        init = InitConfig(self.init_std, self.init_std, scale, 1.0)
        return changed(super().decoder(), learned_positions=self.max_length, init=init)

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
