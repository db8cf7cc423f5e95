"""RWKV-4 (arXiv 2305.13048), as in RWKV/rwkv-4-169m-pile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_llm.models.decoder import DecoderConfig
from t5x_llm.models.family import REQUIRED, Family, dense, norm
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.block import BlockConfig, GroupConfig, pre_norm
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.rwkv import ChannelMixConfig, TimeMixConfig

_FINAL_EPS = 1e-5  # whatever layer_norm_epsilon is


@dataclasses.dataclass(frozen=True)
class RWKV(Family):
    """Time mixing and channel mixing, LayerNorm before each and after the embedding.

    Attributes:
      vocab_size: V.
      d_model: D.
      n_layers: L.
      d_inner: width of time mixing; None means D.
      d_ff: F; None means 4 D.
      norm_eps: LayerNorm epsilon, but of the last one.
      tied: the head is the embedding table.
      max_length: longest sequence the model was trained on; recorded in exports.
      rescale_every: layers after which float16 inference elsewhere halves the stream, and its
        output kernels with it: the same function but for the epsilons. Recorded in exports.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    d_inner: int | None = None
    d_ff: int | None = None
    norm_eps: float = 1e-5
    tied: bool = False
    max_length: int = 1024
    rescale_every: int = 6

    hf_type = "rwkv"
    architecture = "RwkvForCausalLM"
    FIELDS: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "n_layers": ("num_hidden_layers", REQUIRED),
        "d_inner": ("attention_hidden_size", None),
        "d_ff": ("intermediate_size", None),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", False),
        "max_length": ("context_length", 1024),
        "rescale_every": ("rescale_every", 6),
    }

    def __post_init__(self) -> None:
        self.check_decoder()

    def decoder(self) -> DecoderConfig:
        """The generic decoder this preset describes."""
        norm = NormConfig("layer", self.norm_eps, bias=True, scale="ones")
        time = TimeMixConfig(self.d_model if self.d_inner is None else self.d_inner)
        channel = ChannelMixConfig(4 * self.d_model if self.d_ff is None else self.d_ff)
        block = BlockConfig(time, channel, pre_norm(norm), parallel="no")
        return DecoderConfig(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            groups=(GroupConfig((block,), self.n_layers),),
            final_norm=dataclasses.replace(norm, eps=_FINAL_EPS),
            learned_positions=None,
            tied=self.tied,
            init=InitConfig(None, 0.02, 1.0, 1.0),
            embed_norm=norm,
        )

    def write_hf(self) -> dict[str, Any]:
        """transformers' cache fits one width only."""
        return {"use_cache": self.d_inner in (None, self.d_model)}

    def weight_map(self) -> list[Entry]:
        """HF tensor names and layouts against ours."""
        layer, ours = "rwkv.blocks.{layer}.", "group_0.block_0."
        entries = [
            Entry("rwkv.embeddings.weight", "embed.table", "V D", "V D"),
            *norm("rwkv.blocks.0.pre_ln", "embed_norm", bias=True),
            *norm("rwkv.ln_out", "final_norm", bias=True),
            *norm(f"{layer}ln1", f"{ours}time_mix_norm", bias=True),
            *norm(f"{layer}ln2", f"{ours}channel_mix_norm", bias=True),
            Entry(f"{layer}attention.time_decay", f"{ours}time_mix.decay", "A", "A"),
            Entry(f"{layer}attention.time_first", f"{ours}time_mix.bonus", "A", "A"),
            *dense(f"{layer}attention.output", f"{ours}time_mix.out", "D A", "A D"),
            *dense(f"{layer}feed_forward.value", f"{ours}channel_mix.value", "D F", "F D"),
        ]
        for hf, path, parts in (
            ("attention", "time_mix", ("key", "value", "receptance")),
            ("feed_forward", "channel_mix", ("key", "receptance")),
        ):
            for part in parts:
                mixed = f"{layer}{hf}.time_mix_{part}", f"{ours}{path}.mix_{part}"
                entries.append(Entry(*mixed, "1 1 D", "D"))
                if (hf, part) != ("attention", "value"):
                    entries += dense(f"{layer}{hf}.{part}", f"{ours}{path}.{part}", "O D", "D O")
        entries += dense(f"{layer}attention.value", f"{ours}time_mix.value", "O D", "D O")
        if not self.tied:
            entries.append(Entry("head.weight", "head.kernel", "V D", "D V"))
        return entries
