"""StarCoder (arXiv 2305.06161), GPTBigCode in transformers, and StarCoder 2 (arXiv 2402.19173)."""

from __future__ import annotations

import dataclasses
from typing import Any

from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import LlamaLike
from t5x_llm.models.family import changed, dense, fused_qkv
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig


@dataclasses.dataclass(frozen=True)
class StarCoder(GPT2):
    """GPT-2 with one key/value head for all queries, and kernels as [out, in].

    Attributes:
      multi_query: one key/value head; N otherwise.
    """

    multi_query: bool = True

    hf_type = "gpt_bigcode"
    architecture = "GPTBigCodeForCausalLM"
    FIELDS = {**GPT2.FIELDS, "multi_query": ("multi_query", True)}
    ACTIVATION = ("activation_function", "gelu_pytorch_tanh")
    FIXED = {"add_cross_attention": False}
    IGNORED = GPT2.IGNORED | {
        *("inference_runner", "validate_runner_input", "pre_allocate_kv_cache"),
        *("pad_key_length", "num_key_value_heads"),
    }

    def attention(self) -> AttentionConfig:
        """Returns the attention with its key/value heads."""
        heads = 1 if self.multi_query else self.n_heads
        return changed(super().attention(), n_kv_heads=heads)

    def weight_map(self) -> list[Entry]:
        """GPT-2's but for the kernels; queries, keys and values lie as ``multi_query`` says."""
        layer, ours = "transformer.h.{layer}.", "group_0.block_0."
        kernels = ("attn.c_", "mlp.c_")
        entries = [e for e in super().weight_map() if not any(k in e.hf for k in kernels)]
        entries += [
            *dense(f"{layer}attn.c_proj", f"{ours}attention.out", "D (N H)", "N H D", "D"),
            *dense(f"{layer}mlp.c_fc", f"{ours}mlp.up", "O I", "I O", "O"),
            *dense(f"{layer}mlp.c_proj", f"{ours}mlp.down", "O I", "I O", "O"),
        ]
        fused, head_dim = f"{layer}attn.c_attn", self.d_model // self.n_heads
        if self.multi_query:
            return entries + fused_qkv(
                fused, f"{ours}attention", (self.n_heads, 1), head_dim, bias=True
            )
        for i, part in enumerate(("query", "key", "value")):
            path, more = f"{ours}attention.{part}", dict(part=(i, 3))
            entries += dense(fused, path, "(N P H) D", "D N H", "(N P H)", **more)
        return entries


@dataclasses.dataclass(frozen=True)
class StarCoder2(LlamaLike):
    """LLaMA with LayerNorms, GELU, biases, a window, and a tied head.

    Attributes:
      bias: on every linear layer.
      window: tokens see so many of the last ones, or None for all.
    """

    n_kv_heads: int | None = 2
    tied: bool = True
    init_std: float | None = 0.018042
    max_length: int = 4096
    bias: bool = True
    window: int | None = None

    hf_type = "starcoder2"
    architecture = "Starcoder2ForCausalLM"
    FIELDS = {
        **LlamaLike.FIELDS,
        "n_kv_heads": ("num_key_value_heads", 2),
        "norm_eps": ("norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.018042),
        "max_length": ("max_position_embeddings", 4096),
        "bias": ("use_bias", True),
        "window": ("sliding_window", None),
    }
    WRITTEN = {"hidden_act": "gelu_pytorch_tanh"}
    FIXED = {"norm_type": "layer_norm", "mlp_type": "default"}
    # Of StarCoder; norm_epsilon and hidden_act are what counts.
    IGNORED = frozenset({"layer_norm_epsilon", "activation_function"})

    def norm(self) -> NormConfig:
        """LayerNorm."""
        return NormConfig("layer", self.norm_eps, bias=True, scale="ones")

    def attention(self) -> AttentionConfig:
        """Returns the attention with biases and a window."""
        bias = self.bias
        return changed(super().attention(), qkv_bias=bias, out_bias=bias, window=self.window)

    def feed_forward(self) -> MlpConfig:
        """GELU."""
        return MlpConfig(self.d_ff, "gelu_tanh", gated=False, bias=self.bias)

    def write_hf(self) -> dict[str, Any]:
        """No dropout."""
        return super().write_hf() | {"residual_dropout": 0.0, "embedding_dropout": 0.0}

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Two linear layers."""
        bias = "O" if self.bias else None
        return [
            *dense(f"{hf}c_fc", f"{ours}up", "O I", "I O", bias),
            *dense(f"{hf}c_proj", f"{ours}down", "O I", "I O", bias),
        ]
