"""Configuration of sources of conversations: template, trained tokens, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from t5x_llm.core.errors import ConfigError, check_choice, check_number
from t5x_llm.text.chat.encoding import EARLIER, LAST, PROMPT

LOSSES = ("answers", "all", "last_turn")
# Codes of tokens in a store's ``mask`` array that each choice trains.
_CODES: Mapping[str, tuple[int, ...]] = {
    "answers": (EARLIER, LAST), "all": (PROMPT, EARLIER, LAST), "last_turn": (LAST,),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chat:
    """Template of the conversations of sources of kind ``chat``, and the weights of their tokens.

    Attributes:
      template: ``auto`` for the one beside the tokenizer, the name of a built-in template, or the
        path of a .jinja file; ``plain`` writes a prompt, a newline and the answer, no marks.
      loss: tokens trained: those of ``answers`` (every turn of the assistant with its end token),
        of ``all`` turns, or of the assistant's ``last_turn``.
      prompt_weight: weight of the tokens that are not the assistant's, from 0 to 1.
      system: system message of conversations that have none; None for none.
      max_tokens: longer conversations are split between turns; ``Loop.sequence_length`` if None.
      max_dropped: share of a source's rows that may be unreadable; more is an error.
    """

    template: str = "auto"
    loss: str = "answers"
    prompt_weight: float = 0.0
    system: str | None = None
    max_tokens: int | None = None
    max_dropped: float = 0.001

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or not self.template:
            raise ConfigError(
                "Chat.template", self.template, "'auto', a built-in template or a .jinja file"
            )
        check_choice("Chat.loss", self.loss, LOSSES)
        check_number("Chat.prompt_weight", self.prompt_weight, low=0, high=1)
        if self.loss == "all" and self.prompt_weight:
            raise ConfigError(
                "Chat.prompt_weight", self.prompt_weight, "0, as Chat.loss = 'all' trains prompts",
                "Use Chat.loss = 'answers' with a prompt_weight.",
            )  # fmt: skip
        if self.system is not None and not isinstance(self.system, str):
            raise ConfigError("Chat.system", self.system, "the text of a system message, or None")
        if self.max_tokens is not None:
            check_number("Chat.max_tokens", self.max_tokens, low=16, integer=True)
        check_number("Chat.max_dropped", self.max_dropped, low=0, high=1)

    @property
    def measured(self) -> tuple[int, ...]:
        """Codes of the tokens that ``loss`` names: those that an evaluation measures."""
        return _CODES[self.loss]

    @property
    def trained(self) -> tuple[int, ...]:
        """Codes of all tokens whose weight is above 0."""
        return (PROMPT, *self.measured) if self.prompt_weight else self.measured

    def weights(self) -> np.ndarray:
        """Returns the loss weight of each code as a table [256] float32."""
        table = np.zeros(256, np.float32)
        table[PROMPT] = self.prompt_weight
        table[list(self.measured)] = 1.0
        return table

    def measures(self) -> np.ndarray:
        """Returns 1 for each code that an evaluation measures as a table [256] float32."""
        table = np.zeros(256, np.float32)
        table[list(self.measured)] = 1.0
        return table
