"""LLaMA 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and every model of that shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import REQUIRED, Family, changed, dense, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.rope import ROPE_FIELDS, check_rope, read_rope, write_rope
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.layer import LayerConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig
from t5x_llm.nn.rotary_scaling import AnyRotaryScaling


@dataclasses.dataclass(frozen=True)
class LlamaLike(Family):
    """Pre-norm decoder: RMSNorm, rotary grouped-query attention, SwiGLU, no biases.

    Families that differ in a few places override those.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N.
      n_kv_heads: K; None means N.
      d_ff: F.
      head_dim: H; None means D / N.
      rope_theta: rotary base.
      rope_scaling: stretch of the rotary frequencies, or None.
      norm_eps: RMSNorm epsilon.
      tied: the head is the embedding table.
      init_std: standard deviation of fresh kernels and embeddings; None draws kernels from
        1/sqrt(fan in) and embeddings from N(0, 0.02^2).
      residual_scale: factor on fresh kernels that write to the residual stream.
      max_length: longest sequence the model is meant for; recorded in exports.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: AnyRotaryScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False
    init_std: float | None = 0.02
    residual_scale: float = 1.0
    max_length: int = 2048

    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("intermediate_size", REQUIRED),
        "n_kv_heads": ("num_key_value_heads", None),
        "head_dim": ("head_dim", None),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tied": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "max_length": ("max_position_embeddings", 2048),
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {"hidden_act": "silu", "attention_dropout": 0.0}
    READ = ROPE_FIELDS

    def __post_init__(self) -> None:
        if self.head_dim is None and self.d_model % self.n_heads:
            family = type(self).__name__
            raise ConfigError(
                f"{family}.n_heads",
                self.n_heads,
                f"a divisor of {family}.d_model = {self.d_model}",
                f"Change either, or give {family}.head_dim.",
            )
        check_rope(self, self.rope_scaling)
        self.check_decoder()

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.n_kv_heads if self.n_kv_heads is not None else self.n_heads

    @property
    def head_size(self) -> int:
        """H."""
        return self.head_dim if self.head_dim is not None else self.d_model // self.n_heads

    def norm(self) -> NormConfig:
        """The norm of every place."""
        return NormConfig("rms", self.norm_eps, bias=False, scale="ones")

    def rotary(self) -> RotaryConfig | None:
        """The rotation of queries and keys."""
        return RotaryConfig(self.rope_theta, self.head_size, False, self.rope_scaling, two_d=False)

    def attention(self) -> AttentionConfig:
        """The attention of every layer."""
        return AttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.head_size,
            rotary=self.rotary(),
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

    def feed_forward(self) -> LayerConfig:
        """The feed-forward layer of every layer."""
        return MlpConfig(self.d_ff, "silu", gated=True, bias=False)

    def groups(self) -> tuple[GroupConfig, ...]:
        """The stack."""
        residual = pre_norm(self.norm())
        block = BlockConfig(self.attention(), self.feed_forward(), residual, parallel="no")
        return (GroupConfig((block,), self.n_layers),)

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=self.groups(),
            final_norm=self.norm(),
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std or 0.02, self.residual_scale, 1.0),
        )

    def write_hf(self) -> dict[str, Any]:
        """Sizes as numbers, and the rotary settings."""
        rope = write_rope(self.rope_theta, self.rope_scaling)
        sizes = {"num_key_value_heads": self.kv_heads}
        sizes |= {"head_dim": self.head_size} if "head_dim" in self.FIELDS else {}
        return sizes | rope | {"initializer_range": self.init_std or 0.02}

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The rotary settings."""
        theta, scaling, _ = cls.read_rotary(config)
        return {"rope_theta": theta, "rope_scaling": scaling}

    @classmethod
    def read_rotary(
        cls, config: Mapping[str, Any], **more: Any
    ) -> tuple[float, AnyRotaryScaling | None, dict[str, Any]]:
        """Reads the rotary settings as ``read_rope``, with the family's own defaults."""
        default = cls.FIELDS["max_length"][1] if "max_length" in cls.FIELDS else None
        length = given(config, "max_position_embeddings", default)
        return read_rope(config, cls.rope_theta, length, **more)

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "model.layers.{layer}.", "group_{group}.block_{block}."
        return [
            Entry("model.embed_tokens.weight", "embed.table", "V D", "V D"),
            *norm("model.norm", "final_norm", self.norm().bias),
            *self.norm_entries(layer, ours),
            *self.attention_entries(f"{layer}self_attn.", f"{ours}attention."),
            *self.feed_forward_entries(f"{layer}mlp.", f"{ours}mlp."),
            *([] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]),
        ]

    def norm_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries of one layer's norms."""
        bias = self.norm().bias
        return [
            *norm(f"{hf}input_layernorm", f"{ours}attention_norm", bias),
            *norm(f"{hf}post_attention_layernorm", f"{ours}mlp_norm", bias),
        ]

    def attention_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries of one layer's attention."""
        config, entries = self.attention(), []
        for name, part, heads in (("q", "query", "N"), ("k", "key", "K"), ("v", "value", "K")):
            bias = f"({heads} H)" if config.qkv_bias else None
            axes = (f"({heads} H) D", f"D {heads} H")
            entries += dense(f"{hf}{name}_proj", f"{ours}{part}", *axes, bias)
        bias = "D" if config.out_bias else None
        return entries + dense(f"{hf}o_proj", f"{ours}out", "D (N H)", "N H D", bias)

    def feed_forward_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries of one layer's feed-forward layer."""
        entries = []
        for part in ("gate", "up", "down"):
            bias = "O" if getattr(self.feed_forward(), "bias", False) else None
            entries += dense(f"{hf}{part}_proj", ours + part, "O I", "I O", bias)
        return entries


@dataclasses.dataclass(frozen=True)
class BiasedLlama(LlamaLike):
    """LLaMA with the option of biases in attention.

    Attributes:
      attention_bias: biases on the four attention projections.
    """

    attention_bias: bool = False

    FIELDS = {**LlamaLike.FIELDS, "attention_bias": ("attention_bias", False)}

    def attention(self) -> AttentionConfig:
        """Returns the attention with its biases."""
        bias = self.attention_bias
        return changed(super().attention(), qkv_bias=bias, out_bias=bias)


@dataclasses.dataclass(frozen=True)
class PartialLlama(LlamaLike):
    """LLaMA with a rotation of the first channels of each head only.

    Attributes:
      rotary_fraction: share of each head that is rotated; the default of a family is what its
        config.json means where it does not say.
    """

    rotary_fraction: float = 1.0

    FIELDS = {ours: hf for ours, hf in LlamaLike.FIELDS.items() if ours != "head_dim"}
    READ = LlamaLike.READ | {"partial_rotary_factor"}

    def __post_init__(self) -> None:
        family = type(self).__name__
        if self.head_dim is not None:
            raise ConfigError(
                f"{family}.head_dim", self.head_dim, "None: config.json has no such field"
            )
        check_number(f"{family}.rotary_fraction", self.rotary_fraction, above=0, high=1)
        super().__post_init__()

    def rotary(self) -> RotaryConfig:
        """The rotation of the first channels."""
        dim = int(self.head_size * self.rotary_fraction)
        return RotaryConfig(self.rope_theta, dim, False, self.rope_scaling, two_d=False)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The share of each head that is rotated, besides the rotary settings."""
        default = given(config, "partial_rotary_factor", cls.rotary_fraction)
        fraction = cls.read_rotary(config)[2].get("partial_rotary_factor", default)
        return super().read_hf(config) | {"rotary_fraction": fraction}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        fraction = self.rotary_fraction
        rope = write_rope(self.rope_theta, self.rope_scaling, partial_rotary_factor=fraction)
        return super().write_hf() | rope | {"partial_rotary_factor": fraction}


@dataclasses.dataclass(frozen=True)
class Llama(BiasedLlama):
    """LLaMA 1, 2 and 3.

    Attributes:
      mlp_bias: biases in the feed-forward layer.
    """

    mlp_bias: bool = False

    hf_type = "llama"
    architecture = "LlamaForCausalLM"
    FIELDS = {**BiasedLlama.FIELDS, "mlp_bias": ("mlp_bias", False)}
    FIXED = {"activation": "swiglu"}  # another name of hidden_act in Falcon 3

    def feed_forward(self) -> LayerConfig:
        """Returns the layer with its biases."""
        return changed(super().feed_forward(), bias=self.mlp_bias)
