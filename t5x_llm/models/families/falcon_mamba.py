"""Falcon-Mamba (arXiv 2410.05355): Mamba with RMS norms, without scales, on steps, b and c."""

from __future__ import annotations

import dataclasses

from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.family import changed
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.ssm import SelectiveConfig


@dataclasses.dataclass(frozen=True)
class FalconMamba(Mamba):
    """Mamba with normalised selection.

    Attributes:
      mixer_norm_eps: epsilon of those norms.
    """

    mixer_norm_eps: float = 1e-6

    hf_type = "falcon_mamba"
    architecture = "FalconMambaForCausalLM"
    FIELDS = {**Mamba.FIELDS, "mixer_norm_eps": ("mixer_rms_eps", 1e-6)}
    IGNORED = Mamba.IGNORED | {"use_falcon_mambapy"}

    def mixer(self) -> SelectiveConfig:
        """Returns the mixer with its norms."""
        norm = NormConfig("rms", self.mixer_norm_eps, bias=False, scale="none")
        return changed(super().mixer(), norm=norm)
