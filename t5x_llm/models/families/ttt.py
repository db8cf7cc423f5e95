"""TTT-Linear (arXiv 2407.04620), as in the released test-time-training/ttt-lm-pytorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import REQUIRED, Family, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.conv_layer import ConvBlockConfig, ConvConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig
from t5x_llm.nn.ttt import TTTConfig

_INNER_EPS = 1e-6  # of the norms inside the layer, whatever rms_norm_eps is


@dataclasses.dataclass(frozen=True)
class TTTLinear(Family):
    """RMSNorm, TTT-Linear, SwiGLU; ``gated``, ``shared_qk`` and ``pre_conv`` make Mamba's backbone.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N, a divisor of D.
      d_ff: F.
      mini_batch: tokens of a mini-batch.
      base_rate: of the inner learning rate.
      gated: outputs are multiplied by GELU of a projection of the input.
      shared_qk: queries and keys are two convolutions of one projection.
      pre_conv: a convolution comes before each TTT layer.
      taps: of the convolutions.
      rope_theta: rotary base within a mini-batch.
      norm_eps: RMSNorm epsilon.
      tied: the head is the embedding table.
      init_std: standard deviation of fresh kernels and embeddings.
      max_length: longest sequence the model was trained on; recorded in exports.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    mini_batch: int = 16
    base_rate: float = 1.0
    gated: bool = False
    shared_qk: bool = False
    pre_conv: bool = False
    taps: int = 4
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tied: bool = True
    init_std: float = 0.02
    max_length: int = 2048

    hf_type = "ttt"
    architecture = "TTTForCausalLM"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("intermediate_size", REQUIRED),
        "mini_batch": ("mini_batch_size", 16),
        "base_rate": ("ttt_base_lr", 1.0),
        "gated": ("use_gate", False),
        "shared_qk": ("share_qk", False),
        "pre_conv": ("pre_conv", False),
        "taps": ("conv_kernel", 4),
        "rope_theta": ("rope_theta", 10000.0),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tied": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "max_length": ("max_position_embeddings", 2048),
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {"hidden_act": "silu", "ttt_layer_type": "linear"}
    IGNORED = frozenset({"scan_checkpoint_group_size"})

    def __post_init__(self) -> None:
        self.check_divides("d_model", "n_heads")
        self.check_decoder()

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        rms = NormConfig("rms", self.norm_eps, bias=False, scale="ones")
        head_dim = self.d_model // self.n_heads
        mixer = TTTConfig(
            n_heads=self.n_heads,
            head_dim=head_dim,
            mini_batch=self.mini_batch,
            base_rate=self.base_rate,
            inner_rotary=RotaryConfig(self.rope_theta, head_dim, True, None, two_d=False),
            norm_eps=_INNER_EPS,
            gated=self.gated,
            shared_taps=self.taps if self.shared_qk else None,
        )
        mlp = MlpConfig(self.d_ff, "silu", gated=True, bias=False)
        parts = mixer, mlp, pre_norm(rms), "no"
        block = (
            ConvBlockConfig(*parts, ConvConfig(self.taps)) if self.pre_conv else BlockConfig(*parts)
        )
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((block,), self.n_layers),),
            final_norm=rms,
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std, 1.0, 1.0),
        )

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "model.layers.{layer}.", "group_0.block_0."
        hf, ttt = f"{layer}seq_modeling_block.", f"{ours}ttt."
        entries = [
            Entry("model.embed_tokens.weight", "embed.table", "V D", "V D"),
            *norm("model.norm", "final_norm", bias=False),
            *norm(f"{layer}seq_norm", f"{ours}ttt_norm", bias=False),
            *norm(f"{layer}ffn_norm", f"{ours}mlp_norm", bias=False),
            *norm(f"{hf}post_norm", f"{ttt}out_norm", bias=True),
            Entry(f"{hf}ttt_norm_weight", f"{ttt}inner_norm.scale", "N H", "N H"),
            Entry(f"{hf}ttt_norm_bias", f"{ttt}inner_norm.bias", "N H", "N H"),
            Entry(f"{hf}learnable_token_idx", f"{ttt}steps", "K", "K"),
            Entry(f"{hf}learnable_ttt_lr_weight", f"{ttt}rate.kernel", "N 1 D", "D N"),
            Entry(f"{hf}learnable_ttt_lr_bias", f"{ttt}rate.bias", "N 1", "N"),
            Entry(f"{hf}W1", f"{ttt}inner_kernel", "N I H", "N I H"),
            Entry(f"{hf}b1", f"{ttt}inner_bias", "N 1 H", "N H"),
            *dense(f"{hf}o_proj", f"{ttt}out", "D (N H)", "N H D"),
        ]
        for theirs, part in (("q", "query"), ("k", "key"), ("v", "value"), ("g", "gate")):
            if (part != "gate" or self.gated) and (part != "key" or not self.shared_qk):
                entries += dense(f"{hf}{theirs}_proj", ttt + part, "(N H) D", "D N H")
        convs = [(f"{layer}conv.conv", f"{ours}conv.filter")] if self.pre_conv else []
        if self.pre_conv:
            entries += norm(f"{layer}conv.norm", f"{ours}conv_norm", bias=False)
        if self.shared_qk:
            convs += [(f"{hf}conv_{part[0]}", f"{ttt}{part}_conv") for part in ("query", "key")]
        for theirs, path in convs:
            entries += dense(theirs, path, "C 1 K", "K C", "C")
        for part in ("gate", "up", "down"):
            entries += dense(f"{layer}mlp.{part}_proj", f"{ours}mlp.{part}", "O I", "I O")
        if not self.tied:
            entries.append(Entry("lm_head.weight", "head.kernel", "V D", "D V"))
        return entries
