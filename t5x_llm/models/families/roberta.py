"""RoBERTa (arXiv 1907.11692): BERT whose positions count from after the pad token's id."""

from __future__ import annotations

import dataclasses

from t5x_llm.core.errors import check_number
from t5x_llm.models.families.bert import Bert


@dataclasses.dataclass(frozen=True)
class Roberta(Bert):
    """The RoBERTa preset.

    Attributes:
      max_length: rows of the table of positions; ``pad_id + 1`` of them are no token's.
      pad_id: the tokenizer's pad token.
    """

    max_length: int = 514
    token_types: int = 1
    norm_eps: float = 1e-5
    pad_id: int = 1

    hf_type = "roberta"
    architecture = "RobertaForMaskedLM"
    FIELDS = {**Bert.FIELDS, "pad_id": ("pad_token_id", 1)}
    BODY = "roberta."
    HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head")

    def __post_init__(self) -> None:
        high = self.vocab_size - 1
        check_number("Roberta.pad_id", self.pad_id, low=0, high=high, integer=True)
        super().__post_init__()

    @property
    def position_offset(self) -> int:
        """Positions of tokens come after that of padding, which is its id."""
        return self.pad_id + 1

    @property
    def head_activation(self) -> str:
        """GELU, whatever the layers have."""
        return "gelu"

    def special_ids(self) -> dict[str, int]:
        """The pad token, whose id positions are counted from."""
        return {"pad_id": self.pad_id}
