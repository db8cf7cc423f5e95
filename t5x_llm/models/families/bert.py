"""BERT (arXiv 1810.04805) as a masked language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.core.errors import check_choice
from t5x_llm.models.encoder import EncoderConfig, TransformConfig
from t5x_llm.models.family import REQUIRED, Family, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, residual
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig

# config.json's names of activations.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}


@dataclasses.dataclass(frozen=True)
class Bert(Family):
    """Encoder: post-norm, LayerNorm, learned positions, biases everywhere, tied head.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N, a divisor of D.
      d_ff: F; None means 4 D.
      max_length: rows of the table of positions.
      token_types: rows of the table of token types; all tokens are of the first.
      activation: one of ACTIVATIONS.
      norm_eps: LayerNorm epsilon.
      init_std: standard deviation of fresh weights.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int | None = None
    max_length: int = 512
    token_types: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    init_std: float = 0.02

    hf_type = "bert"
    architecture = "BertForMaskedLM"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "n_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("intermediate_size", REQUIRED),
        "max_length": ("max_position_embeddings", 512),
        "token_types": ("type_vocab_size", 2),
        "activation": ("hidden_act", "gelu"),
        "norm_eps": ("layer_norm_eps", 1e-12),
        "init_std": ("initializer_range", 0.02),
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {"tie_word_embeddings": True}
    FIXED: ClassVar[Mapping[str, Any]] = {
        "is_decoder": False,
        "add_cross_attention": False,
        "position_embedding_type": "absolute",
        "directionality": "bidi",
    }
    IGNORED = frozenset(
        {"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"}
        | {"pooler_size_per_head", "pooler_type"}
    )
    # They serve other tasks.
    UNUSED = r"(^|\.)(pooler|seq_relationship)\."
    OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    BODY: ClassVar[str] = "bert."
    HEAD: ClassVar[tuple[str, str, str]] = (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions",
    )

    def __post_init__(self) -> None:
        check_choice(f"{type(self).__name__}.activation", self.activation, ACTIVATIONS)
        self.check_divides("d_model", "n_heads")
        self.check_decoder()

    @property
    def position_offset(self) -> int:
        """Rows of the table of positions before that of the first token."""
        return 0

    @property
    def head_activation(self) -> str:
        """The activation of the transform before the head."""
        return ACTIVATIONS[self.activation]

    def decoder(self) -> EncoderConfig:
        """The generic encoder this preset describes."""
        layer_norm = NormConfig("layer", self.norm_eps, bias=True, scale="ones")
        attention = AttentionConfig(
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            rotary=None,
            qkv_bias=True,
            out_bias=True,
            causal=False,
            window=None,
            scale=None,
            softcap=None,
            alibi=None,
            qk_norm=None,
            qkv_clip=None,
            qk_filter=None,
        )
        d_ff = self.d_ff if self.d_ff is not None else 4 * self.d_model
        mlp = MlpConfig(d_ff, ACTIVATIONS[self.activation], gated=False, bias=True)
        post = residual(None, post=layer_norm)
        block = BlockConfig(attention, mlp, post, parallel="no")
        return EncoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((block,), self.n_layers),),
            final_norm=None,
            learned_positions=self.max_length - self.position_offset,
            position_offset=self.position_offset,
            tied=True,
            embed_norm=layer_norm,
            head_bias=True,
            init=InitConfig(self.init_std, self.init_std, 1.0, 1.0),
            token_types=self.token_types,
            transform=TransformConfig(self.head_activation, layer_norm),
        )

    def write_hf(self) -> dict[str, Any]:
        """Sizes as numbers, and no dropout."""
        d_ff = self.d_ff if self.d_ff is not None else 4 * self.d_model
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return {"intermediate_size": d_ff, **rates}

    def copies(self) -> dict[str, str]:
        """Tensors that files may repeat, by the name of what they repeat."""
        bias, table = f"{self.HEAD[2]}.bias", f"{self.BODY}embeddings.word_embeddings.weight"
        return {f"{self.HEAD[2]}.decoder.weight": table, f"{self.HEAD[2]}.decoder.bias": bias}

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        embed, layer = f"{self.BODY}embeddings.", self.BODY + "encoder.layer.{layer}."
        ours, (transform, transform_norm, head) = "group_0.block_0.", self.HEAD
        entries = [
            Entry(f"{embed}word_embeddings.weight", "embed.table", "V D", "V D"),
            Entry(f"{embed}position_embeddings.weight", "position_embed.table", "T D", "T D"),
            *norm(f"{embed}LayerNorm", "embed_norm", bias=True),
            *dense(
                f"{layer}attention.output.dense", f"{ours}attention.out", "D (N H)", "N H D", "D"
            ),
            *norm(f"{layer}attention.output.LayerNorm", f"{ours}attention_post_norm", bias=True),
            *dense(f"{layer}intermediate.dense", f"{ours}mlp.up", "O I", "I O", "O"),
            *dense(f"{layer}output.dense", f"{ours}mlp.down", "O I", "I O", "O"),
            *norm(f"{layer}output.LayerNorm", f"{ours}mlp_post_norm", bias=True),
            *dense(transform, "transform.dense", "O I", "I O", "O"),
            *norm(transform_norm, "transform.norm", bias=True),
            Entry(f"{head}.bias", "head_bias", "V", "V"),
        ]
        if self.token_types:
            table = f"{embed}token_type_embeddings.weight"
            entries.append(Entry(table, "type_embed.table", "R D", "R D"))
        for part in ("query", "key", "value"):
            hf, path = f"{layer}attention.self.{part}", f"{ours}attention.{part}"
            entries += dense(hf, path, "(N H) D", "D N H", "(N H)")
        return entries
