"""Base of GPT-2 and its kin: LayerNorm, multi-head attention, a plain feed-forward layer.

A family of this kind says what it has elsewhere and what its tensors are called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import Family, dense, grouped_qkv, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.attention import AttentionConfig
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.mlp import MlpConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig

# transformers' names of activations, some of them of the same function, to ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class GptLike(Family):
    """Pre-norm decoder: LayerNorm, multi-head attention, biases everywhere.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      n_heads: N, a divisor of D.
      d_ff: F; None means 4 D.
      max_length: the longest sequence: rows of a learned position table, or else only recorded.
      norm_eps: LayerNorm epsilon.
      tied: the head is the embedding table.
      init_std: standard deviation of fresh weights.
      activation: of the feed-forward layer; one of ``nn.mlp.ACTIVATIONS``.
      ACTIVATION: config.json's field for it and what transformers takes where that is absent;
        None where the family has but one.
      ALIASES: other names that transformers takes for config.json's fields.
      NAMES: our path of each part to the name its tensors have; ``{layer}`` is the layer number.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int | None = None
    max_length: int = 2048
    norm_eps: float = 1e-5
    tied: bool = True
    init_std: float = 0.02
    activation: str = "gelu_tanh"

    ACTIVATION: ClassVar[tuple[str, str] | None] = ("activation_function", "gelu_new")
    ALIASES: ClassVar[Mapping[str, str]] = {}
    NAMES: ClassVar[Mapping[str, str]] = {}
    READ = frozenset({"activation_function"})

    def __post_init__(self) -> None:
        self.check_divides("d_model", "n_heads")
        family = type(self).__name__
        fixed = {"d_ff", "norm_eps"} - set(self.FIELDS)
        for name in fixed if self.ACTIVATION else fixed | {"activation"}:
            only = getattr(type(self), name)
            if getattr(self, name) != only:
                value = getattr(self, name)
                raise ConfigError(f"{family}.{name}", value, f"{only!r}: config.json has no field")
        self.check_decoder()

    def norm(self) -> NormConfig:
        """The norm of every place."""
        return NormConfig("layer", self.norm_eps, bias=True, scale="ones")

    def attention(self) -> AttentionConfig:
        """The attention of every layer."""
        return AttentionConfig(
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

    def feed_forward(self) -> MlpConfig:
        """The feed-forward layer of every layer."""
        d_ff = self.d_ff if self.d_ff is not None else 4 * self.d_model
        return MlpConfig(d_ff, self.activation, gated=False, bias=True)

    def block(self) -> BlockConfig:
        """A layer."""
        residual = pre_norm(self.norm())
        return BlockConfig(self.attention(), self.feed_forward(), residual, parallel="no")

    def groups(self) -> tuple[GroupConfig, ...]:
        """The stack."""
        return (GroupConfig((self.block(),), self.n_layers),)

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=self.groups(),
            final_norm=self.norm(),
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std, 1.0, 1.0),
        )

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the other names of fields too."""
        named: dict[str, Any] = {}
        for name, value in config.items():
            own = cls.ALIASES.get(name, name)
            if named.setdefault(own, value) != value:
                raise ConfigError(f"config.json {name}", value, f"the same as {own}")
        return super().from_hf_config(named)

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The activation."""
        if cls.ACTIVATION is None:
            return {}
        field, default = cls.ACTIVATION
        name = config.get(field) or default
        check_choice(f"config.json {field}", name, ACTIVATIONS)
        return {"activation": ACTIVATIONS[name]}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads, by the family's own names of functions."""
        if self.ACTIVATION is None:
            return {}
        field, default = self.ACTIVATION
        names = [default, *ACTIVATIONS]
        return {field: next(name for name in names if ACTIVATIONS[name] == self.activation)}

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours; what a model does not have is passed over."""
        return [entry for path, hf in self.NAMES.items() for entry in self.entries(hf, path)]

    def entries(self, hf: str, path: str) -> list[Entry]:
        """Returns the entries of the part of ours at ``path``."""
        ours = f"group_{{group}}.block_{{block}}.{path}" if "{layer}" in hf else path
        part = path.rpartition(".")[2]
        if part.endswith("norm"):
            return norm(hf, ours, bias=True)
        if part in ("embed", "position_embed"):
            return [Entry(f"{hf}.weight", f"{ours}.table", "V D", "V D")]
        if part == "head":
            bias = Entry(f"{hf}.bias", "head_bias", "V", "V")
            return [Entry(f"{hf}.weight", "head.kernel", "V D", "D V"), bias]
        if part == "qkv":
            heads = (self.n_heads, self.attention().n_kv_heads)
            return grouped_qkv(hf, ours.removesuffix(".qkv"), heads)
        if part in ("query", "key", "value"):
            return dense(hf, ours, "(N H) D", "D N H", "(N H)")
        if part == "out":
            return dense(hf, ours, "D (N H)", "N H D", "D")
        return dense(hf, ours, "O I", "I O", "O")
