"""Settings of checkpoints: how often they are made and how many stay."""

from __future__ import annotations

import dataclasses

from t5x_llm.core.errors import check_number


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Settings of checkpoints: how often they are made and how many stay.

    Attributes:
      every_steps: steps between checkpoints; 0 saves at the end of the run alone.
      keep: the newest so many are kept; damaged ones do not count.
      keep_period: besides, every checkpoint whose step is a multiple of it stays for good.
      asynchronous: writing goes on while training does; the loop waits for the copy to host alone.
      allow_changes: fields that may differ from the checkpoint's on resume, as gin binds them, or
        classes: ``('Schedule.peak', 'en/Source.files')``; ``Source.files`` allows other
        documents, ``Data.tokenizer`` alone another tokenizer.
      retry_steps: a save that failed is tried again after so many steps.
      give_up_minutes: the run stops when no save has succeeded for so long.
    """

    every_steps: int = 1000
    keep: int = 3
    keep_period: int | None = None
    asynchronous: bool = True
    allow_changes: tuple[str, ...] = ()
    retry_steps: int = 10
    give_up_minutes: float = 30.0

    def __post_init__(self) -> None:
        check_number("CheckpointConfig.every_steps", self.every_steps, low=0, integer=True)
        check_number("CheckpointConfig.keep", self.keep, low=1, integer=True)
        if self.keep_period is not None:
            check_number("CheckpointConfig.keep_period", self.keep_period, low=1, integer=True)
        check_number("CheckpointConfig.retry_steps", self.retry_steps, low=1, integer=True)
        check_number("CheckpointConfig.give_up_minutes", self.give_up_minutes, low=0)
