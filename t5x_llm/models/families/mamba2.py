"""Mamba-2 (arXiv 2405.21060): heads with one decay a token, groups of them, a gated RMSNorm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.mamba import MambaLike
from t5x_llm.models.family import dense
from t5x_llm.models.hf_config import given
from t5x_llm.models.weight_map import Entry
from t5x_llm.nn.ssm import SsdConfig

_NO_LIMIT = ("Infinity", math.inf)


@dataclasses.dataclass(frozen=True)
class Mamba2(MambaLike):
    """Mamba-2.

    Attributes:
      n_heads: N.
      head_dim: H; N * H is a multiple of D.
      n_groups: groups of heads that share b and c.
      dt_limit: steps are clipped to these; None for no upper bound.
    """

    d_state: int = 128
    tied: bool = False
    n_heads: int = 128
    head_dim: int = 64
    n_groups: int = 8
    dt_limit: tuple[float, float | None] = (0.0, None)

    hf_type = "mamba2"
    architecture = "Mamba2ForCausalLM"
    FIELDS = {
        **MambaLike.FIELDS,
        "d_state": ("state_size", 128),
        "tied": ("tie_word_embeddings", False),
        "n_heads": ("num_heads", 128),
        "head_dim": ("head_dim", 64),
        "n_groups": ("n_groups", 8),
    }
    # Chunks change no result; the norm follows the gate whatever norm_before_gate says; the rank is
    # that of the first Mamba.
    IGNORED = MambaLike.IGNORED | {"chunk_size", "norm_before_gate", "time_step_rank"}
    READ = frozenset({"expand", "intermediate_size", "time_step_limit"})

    def __post_init__(self) -> None:
        if self.n_heads * self.head_dim % self.d_model:
            raise ConfigError(
                "Mamba2.n_heads",
                self.n_heads,
                f"n_heads * head_dim = {self.n_heads * self.head_dim} to be a multiple of "
                f"Mamba2.d_model = {self.d_model}",
            )
        self.check_decoder()

    def mixer(self) -> SsdConfig:
        """The mixer."""
        low, high = self.dt_limit
        return SsdConfig(
            n_heads=self.n_heads,
            head_dim=self.head_dim,
            n_groups=self.n_groups,
            d_state=self.d_state,
            conv_width=self.conv_width,
            conv_bias=self.conv_bias,
            bias=self.bias,
            activation="silu",
            norm=self.norm(),
            dt_limit=(low, high),
        )

    @classmethod
    def read_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Limits of steps; the inner width must be that of the heads."""
        inner = given(config, "num_heads", 128) * given(config, "head_dim", 64)
        expected = {"expand": inner / config["hidden_size"], "intermediate_size": inner}
        for name, value in expected.items():
            if given(config, name, value) != value:
                reason = f"{value}, as num_heads * head_dim = {inner}"
                raise ConfigError(f"config.json {name}", config[name], reason)
        limit = config.get("time_step_limit")
        if limit is None:
            return {}
        low, high = (x["__float__"] if isinstance(x, Mapping) else x for x in limit)
        return {"dt_limit": (low, None if high in _NO_LIMIT else high)}

    def write_hf(self) -> dict[str, Any]:
        """Returns the fields that ``read_hf`` reads; infinity as transformers writes it."""
        low, high = self.dt_limit
        return {
            "expand": self.n_heads * self.head_dim // self.d_model,
            "time_step_limit": [low, {"__float__": "Infinity"} if high is None else high],
        }

    def mixer_entries(self, hf: str, ours: str) -> list[Entry]:
        """Returns the entries of the mixer: one tensor in, another of all convolutions."""
        inner, shared = self.n_heads * self.head_dim, self.n_groups * self.d_state
        entries = [
            *dense(f"{hf}out_proj", f"{ours}out", "D I", "I D", "D" if self.bias else None),
            Entry(f"{hf}norm.weight", f"{ours}norm.scale", "(G I)", "G I"),
            Entry(f"{hf}dt_bias", f"{ours}step_bias", "N", "N"),
            Entry(f"{hf}A_log", f"{ours}a_log", "N", "N"),
            Entry(f"{hf}D", f"{ours}skip", "N", "N"),
        ]
        parts = (("gate", inner), ("inner", inner), ("b", shared), ("c", shared))
        first, total = 0, 2 * (inner + shared) + self.n_heads
        for name, span in (*parts, ("step", self.n_heads)):
            part: dict[str, Any] = dict(part=(first, total), span=span)
            bias = ("P", "P") if self.bias else None
            entries += dense(f"{hf}in_proj", f"{ours}{name}", "P D", "D P", bias, **part)
            first += span
        first = 0
        for name, span in parts[1:]:
            part = dict(part=(first, inner + 2 * shared), span=span)
            path = f"{ours}{name}_conv"
            entries.append(Entry(f"{hf}conv1d.weight", f"{path}.kernel", "P 1 W", "W P", **part))
            if self.conv_bias:
                entries.append(Entry(f"{hf}conv1d.bias", f"{path}.bias", "P", "P", **part))
            first += span
        return entries
