"""T5 1.0 (arXiv 1910.10683), T5 1.1 and Flan-T5 (2210.11416), mT5 (2010.11934)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.models.encoder_decoder import EncoderDecoderConfig
from t5x_llm.models.family import REQUIRED, Family, changed, dense, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.cross_attention import CrossAttentionConfig, CrossBlockConfig
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.relative import RelativeAttentionConfig, RelativeBiasConfig

# config.json's names of feed-forward layers: (activation, gated).
FEED_FORWARDS = {
    "relu": ("relu", False),
    "gated-relu": ("relu", True),
    "gelu": ("gelu", False),
    "gated-gelu": ("gelu_tanh", True),
    "silu": ("silu", False),
    "gated-silu": ("silu", True),
}


@dataclasses.dataclass(frozen=True)
class T5(Family):
    """Encoder-decoder: pre-norm, RMSNorm, biases by relative position, no other biases.

    Attributes:
      vocab_size: V.
      d_model: D.
      d_ff: F.
      n_layers: of the encoder.
      n_heads: N.
      head_dim: H.
      n_decoder_layers: of the decoder; None means as many.
      feed_forward: 'relu' (T5 1.0), 'gated-gelu' (T5 1.1 and later), or another of FEED_FORWARDS.
      tied: the head is the embedding table (T5 1.0).
      scale_logits: logits are multiplied by 1/sqrt(D); None means where ``tied``.
      n_buckets: of relative positions.
      max_distance: tokens beyond which relative positions are alike.
      norm_eps: RMSNorm epsilon.
      start_id: token that the decoder reads first, the pad token by custom.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    head_dim: int = 64
    n_decoder_layers: int | None = None
    feed_forward: str = "relu"
    tied: bool = True
    scale_logits: bool | None = None
    n_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    start_id: int = 0

    hf_type = "t5"
    architecture = "T5ForConditionalGeneration"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("d_model", REQUIRED),
        "d_ff": ("d_ff", REQUIRED),
        "n_layers": ("num_layers", REQUIRED),
        "n_heads": ("num_heads", REQUIRED),
        "head_dim": ("d_kv", 64),
        "n_decoder_layers": ("num_decoder_layers", None),
        "feed_forward": ("feed_forward_proj", "relu"),
        "n_buckets": ("relative_attention_num_buckets", 32),
        "max_distance": ("relative_attention_max_distance", 128),
        "norm_eps": ("layer_norm_epsilon", 1e-6),
        "start_id": ("decoder_start_token_id", 0),
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": True}
    FIXED: ClassVar[Mapping[str, Any]] = {"is_decoder": False, "tie_encoder_decoder": False}
    READ = frozenset({"tie_word_embeddings", "scale_decoder_outputs", "dense_act_fn"})
    READ |= {"is_gated_act"}
    # Released files have it; its values are never used.
    UNUSED = r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_choice(f"{name}.feed_forward", self.feed_forward, FEED_FORWARDS)
        if self.scaled and not self.tied:
            raise ConfigError(f"{name}.scale_logits", True, "False where the head is not tied")
        self.check_decoder()

    @property
    def scaled(self) -> bool:
        """True if logits are multiplied by 1/sqrt(D)."""
        return self.tied if self.scale_logits is None else self.scale_logits

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.n_layers if self.n_decoder_layers is None else self.n_decoder_layers

    def attention(self, encoder: bool) -> RelativeAttentionConfig:
        """The self-attention of either side."""
        relative = (self.n_heads, self.n_buckets, self.max_distance)
        return RelativeAttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            head_dim=self.head_dim,
            rotary=None,
            qkv_bias=False,
            out_bias=False,
            causal=not encoder,
            window=None,
            scale=1.0,
            softcap=None,
            alibi=None,
            qk_norm=None,
            qkv_clip=None,
            qk_filter=None,
            relative=RelativeBiasConfig(*relative, bidirectional=encoder),
        )

    def decoder(self) -> EncoderDecoderConfig:
        """The generic encoder-decoder this preset describes."""
        rms = NormConfig("rms", self.norm_eps, bias=False, scale="ones")
        activation, gated = FEED_FORWARDS[self.feed_forward]
        rest = (MlpConfig(self.d_ff, activation, gated=gated, bias=False), pre_norm(rms), "no")
        cross = CrossAttentionConfig(
            self.n_heads, self.head_dim, qkv_bias=False, out_bias=False, scale=1.0
        )
        block = CrossBlockConfig(self.attention(encoder=False), *rest, cross=cross)
        seeing = BlockConfig(self.attention(encoder=True), *rest)
        return EncoderDecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((block,), self.decoder_layers),),
            encoder=(GroupConfig((seeing,), self.n_layers),),
            final_norm=rms,
            learned_positions=None,
            tied=self.tied,
            logit_scale=self.d_model**-0.5 if self.scaled else None,
            init=InitConfig(None, 1.0, 1.0, 1.0, query_scale=self.head_dim**-0.5),
            start=self.start_id,
        )

    def special_ids(self) -> dict[str, int]:
        """The decoder's first token."""
        return {"start_id": self.start_id}

    def copies(self) -> dict[str, str]:
        """Tensors that files may repeat, to the names of what they repeat."""
        sides = dict.fromkeys(
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"
        )
        return super().copies() | sides

    def fitted(self, names: Collection[str]) -> Self:
        """Tied if there is no head: config.json tells only whether logits are scaled.

        T5 1.1 as released has a head and says that it is not tied; as transformers 5 writes it, it
        says that it is.
        """
        return self if self.tied or "lm_head.weight" in names else changed(self, tied=True)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Reads whether logits are scaled; where not, a head is expected until ``fitted``."""
        kind = given(config, "feed_forward_proj", "relu")
        activation, gated = FEED_FORWARDS.get(kind, ("", False))
        said = {"dense_act_fn": activation.replace("_tanh", "_new"), "is_gated_act": gated}
        for name, value in said.items():
            if given(config, name, value) != value:
                raise ConfigError(
                    f"config.json {name}", config[name], f"{value!r}, as feed_forward_proj says"
                )
        tied = config.get("tie_word_embeddings") is not False
        scaled = given(config, "scale_decoder_outputs", tied)
        return {"tied": tied and scaled, "scale_logits": scaled}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        return {
            "num_decoder_layers": self.decoder_layers,
            "tie_word_embeddings": self.tied,
            "scale_decoder_outputs": self.scaled,
            "dropout_rate": 0.0,
        }

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        entries = [Entry("shared.weight", "embed.table", "V D", "V D")]
        for side, prefix in (("encoder", "encoder."), ("decoder", "")):
            hf, ours = side + ".block.{layer}.layer.", prefix + "group_{group}.block_{block}."
            table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            entries.append(Entry(table, f"{prefix}relative_0.bias", "R N", "R N"))
            entries += norm(f"{side}.final_layer_norm", f"{prefix}final_norm", bias=False)
            parts = [("SelfAttention", "attention")]
            parts += [("EncDecAttention", "cross_attention")] if side == "decoder" else []
            for i, (theirs, part) in enumerate(parts):
                entries += norm(f"{hf}{i}.layer_norm", f"{ours}{part}_norm", bias=False)
                for q, name in (("q", "query"), ("k", "key"), ("v", "value")):
                    path = f"{ours}{part}.{name}"
                    entries += dense(f"{hf}{i}.{theirs}.{q}", path, "(N H) D", "D N H")
                entries += dense(f"{hf}{i}.{theirs}.o", f"{ours}{part}.out", "D (N H)", "N H D")
            last = f"{hf}{len(parts)}."
            entries += norm(f"{last}layer_norm", f"{ours}mlp_norm", bias=False)
            gated = FEED_FORWARDS[self.feed_forward][1]
            layers = {"wo": "down"} | ({"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"})
            for theirs, part in layers.items():
                entries += dense(
                    f"{last}DenseReluDense.{theirs}", f"{ours}mlp.{part}", "O I", "I O"
                )
        head = [] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]
        return entries + head


@dataclasses.dataclass(frozen=True)
class MT5(T5):
    """T5 1.1 with another vocabulary; its logits are never scaled."""

    head_dim: int = 64
    feed_forward: str = "gated-gelu"
    tied: bool = False
    scale_logits: bool | None = False

    hf_type = "mt5"
    architecture = "MT5ForConditionalGeneration"
    FIELDS = {**T5.FIELDS, "feed_forward": ("feed_forward_proj", "gated-gelu")}

    def __post_init__(self) -> None:
        if self.scaled:
            raise ConfigError("MT5.scale_logits", self.scale_logits, "False")
        super().__post_init__()

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A head is expected until ``fitted``, whatever is said of ties."""
        said = {"feed_forward_proj": "gated-gelu", **config, "scale_decoder_outputs": False}
        return super().read_hf(said)

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields without the switch that it does not have."""
        return {k: v for k, v in super().write_hf().items() if k != "scale_decoder_outputs"}
