"""Mamba (arXiv 2312.00752): selective state spaces in every layer, no attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import REQUIRED, Family, dense, norm
from t5x_llm.models.hf_config import given
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.layer import LayerConfig
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.ssm import SelectiveConfig


@dataclasses.dataclass(frozen=True)
class MambaLike(Family):
    """One mixer a layer behind an RMSNorm, and nothing else.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      d_state: size of a channel's state.
      conv_width: taps of the convolution.
      conv_bias: a bias in the convolution.
      bias: biases on the projections in and out.
      norm_eps: RMSNorm epsilon.
      tied: the head is the embedding table.
      init_std: standard deviation of fresh kernels; None draws them from 1/sqrt(fan in). Those that
        write to the residual stream are scaled by 1/sqrt(L), as the authors do.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    d_state: int = 16
    conv_width: int = 4
    conv_bias: bool = True
    bias: bool = False
    norm_eps: float = 1e-5
    tied: bool = True
    init_std: float | None = None

    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "d_state": ("state_size", 16),
        "conv_width": ("conv_kernel", 4),
        "conv_bias": ("use_conv_bias", True),
        "bias": ("use_bias", False),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
    }
    WRITTEN: ClassVar[Mapping[str, Any]] = {"hidden_act": "silu"}
    FIXED: ClassVar[Mapping[str, Any]] = {"rms_norm": True, "ssm_cfg": {}}
    # How fresh weights are drawn, which kernels compute, what precision sums have; and what the
    # first conversions left behind.
    IGNORED = frozenset(
        {"rescale_prenorm_residual", "time_step_min", "time_step_max"}
        | {"time_step_scale", "time_step_floor", "time_step_init_scheme", "use_mambapy"}
        | {"use_associative_scan", "fused_add_norm", "d_model", "d_inner"}
        | {"n_layer", "numb_hidden_layers"}
    )

    def mixer(self) -> LayerConfig:
        """The mixer of every layer."""
        raise NotImplementedError

    def norm(self) -> NormConfig:
        """The norm of every place."""
        return NormConfig("rms", self.norm_eps, bias=False, scale="ones")

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        block = BlockConfig(self.mixer(), None, pre_norm(self.norm()), parallel="no")
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((block,), self.n_layers),),
            final_norm=self.norm(),
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(self.init_std, self.init_std or 0.02, self.n_layers**-0.5, 1.0),
        )

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "backbone.layers.{layer}.", "group_0.block_0."
        return [
            Entry("backbone.embeddings.weight", "embed.table", "V D", "V D"),
            *norm("backbone.norm_f", "final_norm", bias=False),
            *norm(f"{layer}norm", f"{ours}ssm_norm", bias=False),
            *self.mixer_entries(f"{layer}mixer.", f"{ours}ssm."),
            *([] if self.tied else [Entry("lm_head.weight", "head.kernel", "V D", "D V")]),
        ]

    def mixer_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries of one layer's mixer."""
        raise NotImplementedError


def selective_entries(hf: str, ours: str, config: SelectiveConfig) -> list[Entry]:
    """Entries of one selective mixer."""
    bias = "(P I)" if config.bias else None
    entries = [
        *dense(f"{hf}out_proj", f"{ours}out", "D I", "I D", "D" if config.bias else None),
        *dense(f"{hf}x_proj", f"{ours}select", "R I", "I R"),
        *dense(f"{hf}dt_proj", f"{ours}step", "I R", "R I"),
        Entry(f"{hf}dt_proj.bias", f"{ours}step_bias", "I", "I"),
        Entry(f"{hf}conv1d.weight", f"{ours}conv.kernel", "I 1 W", "W I"),
        Entry(f"{hf}A_log", f"{ours}a_log", "I R", "R I"),
        Entry(f"{hf}D", f"{ours}skip", "I", "I"),
    ]
    if config.conv_bias:
        entries.append(Entry(f"{hf}conv1d.bias", f"{ours}conv.bias", "I", "I"))
    for i, part in enumerate(("inner", "gate")):
        entries += dense(f"{hf}in_proj", f"{ours}{part}", "(P I) D", "D I", bias, part=(i, 2))
    return entries


@dataclasses.dataclass(frozen=True)
class Mamba(MambaLike):
    """Mamba.

    Attributes:
      d_inner: I, a multiple of D; None means 2 D.
      dt_rank: width that steps are made from; None means D / 16, rounded up.
    """

    d_inner: int | None = None
    dt_rank: int | None = None

    hf_type = "mamba"
    architecture = "MambaForCausalLM"
    READ = frozenset({"expand", "intermediate_size", "time_step_rank"})

    def __post_init__(self) -> None:
        if self.d_inner is not None:
            family = type(self).__name__
            check_number(f"{family}.d_inner", self.d_inner, low=1, integer=True)
            if self.d_inner % self.d_model:
                whole = f"a multiple of {family}.d_model = {self.d_model}"
                raise ConfigError(f"{family}.d_inner", self.d_inner, whole)
        self.check_decoder()

    def mixer(self) -> SelectiveConfig:
        """The selective mixer."""
        return SelectiveConfig(
            d_inner=self.d_inner or 2 * self.d_model,
            d_state=self.d_state,
            dt_rank=self.dt_rank or -(-self.d_model // 16),
            conv_width=self.conv_width,
            conv_bias=self.conv_bias,
            bias=self.bias,
            activation="silu",
            norm=None,
        )

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The inner width, which stands for itself or as a factor, and the rank."""
        inner = config.get("intermediate_size")
        inner = inner or given(config, "expand", 2) * config["hidden_size"]
        rank = given(config, "time_step_rank", "auto")
        return {"d_inner": int(inner), "dt_rank": None if rank == "auto" else rank}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads."""
        mixer = self.mixer()
        return {
            "expand": mixer.d_inner // self.d_model,
            "intermediate_size": mixer.d_inner,
            "time_step_rank": mixer.dt_rank,
        }

    def mixer_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries of the selective mixer."""
        return selective_entries(hf, ours, self.mixer())
