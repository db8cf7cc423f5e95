"""An adapter of ours as plain arrays: what is converted to PEFT's tensors and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

LEAF = "adapter"


@dataclasses.dataclass(frozen=True)
class Site:
    """The adapter of one linear map of ours; arrays are stacked as its kernel is.

    Attributes:
      a: [repeats?, experts?, *inputs, r] or None, as of (IA)3.
      b: [repeats?, experts?, r, *outputs].
      scale: the factor on (x a) b, without ``e``.
      e: [repeats?, experts?, r] singular values of AdaLoRA, those taken away 0; or None.
      magnitude: [repeats?, experts?, *outputs] of DoRA, or None.
      gain: [repeats?, *outputs] of (IA)3; [repeats?, *inputs] where ``feeds``; or None.
      feeds: the gain multiplies inputs.
    """

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    scale: float = 1.0
    e: np.ndarray | None = None
    magnitude: np.ndarray | None = None
    gain: np.ndarray | None = None
    feeds: bool = False

    @property
    def rank(self) -> int:
        """r."""
        return 0 if self.a is None else self.a.shape[-1]


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Virtual tokens before every row.

    Attributes:
      kind: 'PREFIX_TUNING', 'PROMPT_TUNING' or 'P_TUNING'.
      embeddings: [n, D] of a prompt; None of a prefix.
      keys: [L, n, K, H] of a prefix, as they stand in the cache; None of a prompt.
      values: the same of values.
    """

    kind: str
    embeddings: np.ndarray | None = None
    keys: np.ndarray | None = None
    values: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class PlainAdapter:
    """An adapter of any method.

    Attributes:
      kind: PEFT's name of the method.
      sites: by path of the linear map; empty for prompts.
      prompt: the virtual tokens, or None.
      dropout: of low rank methods, to go on training with.
      rank_stabilised: of LoRA: scales are alpha / sqrt(r).
    """

    kind: str
    sites: Mapping[str, Site] = dataclasses.field(default_factory=dict)
    prompt: Prompted | None = None
    dropout: float = 0.0
    rank_stabilised: bool = False
