"""PaLM (arXiv 2204.02311, section 2). No weights were released: the tensors' names are ours."""

from __future__ import annotations

import dataclasses
import math

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig


@dataclasses.dataclass(frozen=True)
class PaLM(LlamaLike):
    """Parallel layers, one key/value head, SwiGLU, no biases, logits times 1/sqrt(D), tied.

    Fresh kernels are N(0, 1/sqrt(fan in)), the embedding table N(0, 1) (section 5).
    """

    n_kv_heads: int | None = 1
    head_dim: int | None = 256
    tied: bool = True
    init_std: float | None = None

    hf_type = "palm"
    architecture = "PaLMForCausalLM"
    FIELDS = {
        **LlamaLike.FIELDS,
        "tied": ("tie_word_embeddings", True),
        "init_std": ("kernel_std", None),
    }
    IGNORED = frozenset({"initializer_range"})

    def norm(self) -> NormConfig:
        """LayerNorm without bias."""
        return NormConfig("layer", self.norm_eps, bias=False, scale="ones")

    def groups(self) -> tuple[GroupConfig, ...]:
        """x + mlp(norm(x)) + attention(norm(x))."""
        residual = pre_norm(self.norm())
        block = BlockConfig(self.attention(), self.feed_forward(), residual, "one_norm")
        return (GroupConfig((block,), self.n_layers),)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with scaled logits, and embeddings drawn wide."""
        return changed(
            super().decoder(),
            logit_scale=1 / math.sqrt(self.d_model),
            init=InitConfig(self.init_std, 1.0, self.residual_scale, 1.0),
        )

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """One a layer."""
        return norm(f"{hf}input_layernorm", f"{ours}attention_norm", False)
