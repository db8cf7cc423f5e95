"""GLM-130B (arXiv 2210.02414): DeepNorm, GeGLU; tensors are named as its released code has them."""

from __future__ import annotations

import dataclasses
import math

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.families.glm import ChatGLM1
from t5x_llm.models.family import changed, dense
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig


@dataclasses.dataclass(frozen=True)
class Glm130B(ChatGLM1):
    """DeepNorm over GeGLU layers, tied; training masks show a prefix to all tokens.

    DeepNorm, LN(alpha x + f(x)), is written with its norm at the start of the next layer, as in the
    released code: a norm comes right after the embedding and one before the head.

    Attributes:
      two_d: rotate half of each head by block positions (GLM 10B; the 130B has one dimension).
      embed_gradient: share of the gradient that reaches the embedding table (section 3.3).
    """

    tied: bool = True
    two_d: bool = False
    embed_gradient: float = 0.1

    hf_type = "glm130b"
    architecture = "Glm130BModel"
    FIELDS = {
        **ChatGLM1.FIELDS,
        "tied": ("tie_word_embeddings", True),
        "two_d": ("position_encoding_2d", False),
        "embed_gradient": ("embedding_gradient", 0.1),
    }
    WRITTEN = {}

    def attention(self) -> AttentionConfig:
        """Rotated by one position or two."""
        rotary = RotaryConfig(self.rope_theta, self.head_size, False, None, two_d=self.two_d)
        return changed(super().attention(), rotary=rotary)

    def feed_forward(self) -> MlpConfig:
        """GeGLU."""
        return MlpConfig(self.d_ff, "gelu", gated=True, bias=True)

    def decoder(self) -> DecoderConfig:
        """Returns the decoder with DeepNorm's init, Xavier (2 L)^-1/2, and shrunk gradient."""
        beta = (2 * self.n_layers) ** -0.5
        init = InitConfig(
            None, self.init_std or 1 / math.sqrt(self.d_model), beta * self.residual_scale, beta
        )
        return changed(super().decoder(), init=init, embed_gradient=self.embed_gradient)

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """The first half of the wide layer is multiplied by the activation of the second."""
        entries = dense(f"{hf}dense_4h_to_h", f"{ours}down", "O I", "I O", "O")
        for i, part in enumerate(("up", "gate")):
            axes = ("(P O) I", "I O", "(P O)")
            entries += dense(f"{hf}dense_h_to_4h", ours + part, *axes, part=(i, 2))
        return entries
