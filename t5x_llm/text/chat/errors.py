"""The error of a chat template."""

from __future__ import annotations

from t5x_llm.core.errors import DataError

PROOFS = ("render", "bos", "stop", "prefix", "serving")


class TemplateError(DataError):
    """A chat template that cannot be rendered, or that one of the proofs refuses.

    Args:
      message: what was wrong, and what to do.
      proof: 'render' (it raised, looped or left the sandbox), 'bos' (one BOS), 'stop' (the stop
        token is trained), 'prefix' (prefixes are stable), or 'serving' (training ids equal serving
        ids).
      turn: index of the message at which it failed; None for none.
    """

    def __init__(self, message: str, proof: str = "render", turn: int | None = None):
        super().__init__(message)
        self.message, self.proof, self.turn = message, proof, turn

    def __reduce__(self):
        """Pickles the error with its fields, so that a worker process's arrives whole."""
        return type(self), (self.message, self.proof, self.turn)
