"""Configuration of what a run gives besides its checkpoints: evaluations, samples, an export."""

from __future__ import annotations

import dataclasses

from t5x_llm.core.errors import ConfigError, check_choice, check_count, check_number
from t5x_llm.core.fields import later
from t5x_llm.hf.export import DTYPES
from t5x_llm.hf.peft.serving import check_servers
from t5x_llm.infer.sampler import Sampling


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of held-out loss and bits per byte, by source.

    Attributes:
      batch_size: rows evaluated at once.
      limit: tokens of each source read by evaluations before the last; None reads all.
      compare: True evaluates before the first step as well, and says at every evaluation by how
        much bits per byte rose or fell since; None does so where ``Run.start_from`` is set.
      baseline: run directory of an earlier stage, to compare with what it began with.
    """

    batch_size: int = 8
    limit: int | None = 20_000
    compare: bool | None = None
    baseline: str = ""

    def __post_init__(self) -> None:
        check_number("Evaluation.batch_size", self.batch_size, low=1, integer=True)
        if self.limit is not None:
            check_count("Evaluation.limit", self.limit, low=1)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Texts the model writes while it learns; they go to ``samples.txt``.

    Attributes:
      prompts: texts that the model continues; none writes no samples.
      sampling: how each next token is chosen.
      every: steps between samples; 0 writes them at the end alone.
    """

    prompts: tuple[str, ...] = ()
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    every: int = 0

    def __post_init__(self) -> None:
        check_number("Samples.every", self.every, low=0, integer=True)
        if isinstance(self.prompts, str):
            raise ConfigError("Samples.prompts", self.prompts, "a tuple of strings")


@dataclasses.dataclass(frozen=True)
class Export:
    """Export of a Hugging Face directory at the end, to ``hf/`` of the run.

    Attributes:
      enabled: False writes none.
      dtype: dtype of the stored weights.
      max_shard_bytes: limit on one safetensors file.
      license: of the weights, for the model card, such as ``apache-2.0``; None says none.
      adapter_for: programs that are to load the adapter of ``Run.adapter``: 'peft', 'vllm', 'gguf'
        (llama.cpp). What they could not load is refused before training.
    """

    enabled: bool = True
    dtype: str = "float32"
    max_shard_bytes: int = 5_000_000_000
    license: str | None = None
    adapter_for: tuple[str, ...] = later(())

    def __post_init__(self) -> None:
        check_choice("Export.dtype", self.dtype, DTYPES)
        object.__setattr__(self, "adapter_for", check_servers(self.adapter_for))
        check_count("Export.max_shard_bytes", self.max_shard_bytes, low=1)
