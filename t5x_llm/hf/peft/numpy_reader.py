"""Base tensors with an adapter in them, in NumPy: the gate of what is written, and the merge.

Written from peft's description of its formats and papers (LoRA arXiv 2106.09685, rsLoRA 2312.03732,
DoRA 2402.09353, AdaLoRA 2303.10512, (IA)3 2205.05638). It knows Hugging Face names and shapes alone
and shares nothing with the code that turns our parameters into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.peft.config import PROMPTS, PeftConfig
from t5x_llm.hf.peft.read import PeftAdapter, sort_tensors

Read = Callable[[str], np.ndarray]


class AdaptedTensors:
    """Tensors of a model with an adapter applied.

    Args:
      found: the adapter.
      read: tensors of the base by Hugging Face name.
      tied: names of tensors that are another's, to that one's.
      dtype: in which sums are made and results are returned.

    Raises:
      ConfigError: virtual tokens, which are no change of weights.
    """

    def __init__(
        self,
        found: PeftAdapter,
        read: Read,
        tied: Mapping[str, str] | None = None,
        dtype: type[np.floating] = np.float64,
    ):
        if found.config.kind in PROMPTS:
            raise ConfigError(
                "peft_type",
                found.config.kind,
                "a method that changes weights",
                "Virtual tokens cannot be merged: keep base and adapter.",
            )
        held = sort_tensors(found)
        self.config: PeftConfig = held.config
        self.leaves, self.saved = held.leaves, held.saved
        self.base, self.tied, self._dtype = read, dict(tied or {}), dtype

    def changed(self) -> list[str]:
        """Names of the weights that the adapter changes."""
        return [f"{name}.weight" for name in self.leaves] + list(self.saved)

    def read(self, name: str) -> np.ndarray:
        """One tensor; those without an adapter as the base has them, in ``dtype``."""
        if name in self.saved:
            return self.saved[name].astype(self._dtype)
        array = np.asarray(self.base(self.tied.get(name, name))).astype(self._dtype)
        module, _, leaf = name.rpartition(".")
        leaves = self.leaves.get(module)
        if leaves is None:
            return array
        leaves = {k: v.astype(self._dtype) for k, v in leaves.items()}
        if "ia3_l" in leaves:
            return self._scaled(module, leaf, array, leaves["ia3_l"])
        if leaf != "weight":
            return array
        if "lora_embedding_A" in leaves:
            rank = leaves["lora_embedding_A"].shape[0]
            delta = (leaves["lora_embedding_B"] @ leaves["lora_embedding_A"]).T
            assert rank == leaves["lora_embedding_B"].shape[1]
            return array + self._scale(module) * delta
        return self._low_rank(module, array, leaves)

    def _scale(self, module: str) -> np.floating:
        return self._dtype(self.config.scale_of(module))

    def _scaled(self, module: str, leaf: str, array: np.ndarray, gain: np.ndarray) -> np.ndarray:
        if leaf == "bias":
            return array if self.config.feeds(module) else array * gain.reshape(-1)
        return array * (gain.T if self.config.transposed else gain)

    def _low_rank(
        self, module: str, array: np.ndarray, leaves: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        a, b = leaves["lora_A"], leaves["lora_B"]
        if "lora_E" in leaves:
            a = a * leaves["lora_E"]
        delta = self._scale(module) * (b @ a)
        weight = array.T if self.config.transposed else array
        if weight.shape != delta.shape:
            raise ConfigError(
                "adapter",
                f"{module}: {list(delta.shape)}",
                f"{list(weight.shape)}, as the base has it",
                "The adapter is of another base, or fan_in_fan_out is wrong.",
            )
        weight = weight + delta
        if "lora_magnitude_vector" in leaves:
            norm = np.linalg.norm(weight, axis=1)
            weight = weight * (leaves["lora_magnitude_vector"].reshape(-1) / norm)[:, None]
        return weight.T if self.config.transposed else weight
