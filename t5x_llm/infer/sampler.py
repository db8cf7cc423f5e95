"""Text generation: prompts in, completions out, streamed without half characters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.decode import Decoding
from t5x_llm.infer.detokenize import Detokenizer, first_stop, held_back
from t5x_llm.infer.mesh_scope import MeshScope
from t5x_llm.infer.sampling import Sampling
from t5x_llm.models.model import Model
from t5x_llm.parallel import Rules

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

__all__ = ["Completion", "Sampling", "generate"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One generated text.

    Attributes:
      prompt: as given.
      text: the completion, without prompt, stop string and end-of-document token.
      tokens: generated tokens, up to the one that completed a stop string; no end token.
      finish_reason: 'eos', 'stop' or 'length'.
      prompt_tokens: tokens of the prompt, beginning-of-document included.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int


def generate(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    add_bos: bool | None = None,
    end_ids: Sequence[int] = (),
    on_text: Callable[[int, str], None] | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> list[Completion]:
    """Completes prompts; an encoder-decoder answers them.

    Args:
      model: its policy's compute dtype is used.
      params: parameter tree; on ``mesh``, laid out by ``rules``, if there is one.
      tokenizer: encodes and decodes; its ``eos_id`` ends a completion.
      prompts: texts of any length, empty ones too if the tokenizer has a ``bos_id``.
      sampling: defaults to ``Sampling()``.
      add_bos: begin prompts with ``bos_id``, as documents of the token store begin; by default
        as the tokenizer says. An empty prompt always does.
      end_ids: further tokens that end a completion.
      on_text: called with (place among the returned, new text) as text becomes certain.
      mesh: see ``generate_ids``.
      rules: likewise.

    Returns:
      The completions of the prompts in order: ``sampling.n`` of the first, then of the second.

    Raises:
      ConfigError: a prompt is empty, or leaves no room within learned positions; or the model is
        an encoder.
    """
    sampling = sampling or Sampling()
    if not prompts:
        return []
    encoded = [_encode(model, tokenizer, i, prompt, add_bos) for i, prompt in enumerate(prompts)]
    ends = {*end_ids, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])}
    scope = MeshScope(mesh, rules)
    decoding = Decoding(model, params, encoded, sampling, tuple(ends), scope)
    answers = model.config.kind == "encoder_decoder"
    rows = []
    for i in range(decoding.rows):
        context = [] if answers else encoded[i // sampling.n]
        rows.append(_Row(i, Detokenizer(tokenizer, context), sampling.stop, on_text))
    while not all(row.reason for row in rows):
        chunk = decoding.advance([bool(row.reason) for row in rows])
        for row, tokens, done in zip(rows, chunk.tokens, chunk.done, strict=True):
            row.take(tokens, ends, bool(done))
    given = [(p, ids) for p, ids in zip(prompts, encoded, strict=True) for _ in range(sampling.n)]
    return [
        Completion(prompt, row.text, tuple(row.tokens), row.reason, len(ids))
        for (prompt, ids), row in zip(given, rows, strict=True)
    ]


def _encode(
    model: Model, tokenizer: Tokenizer, row: int, prompt: str, add_bos: bool | None
) -> list[int]:
    """Returns the ids that the model reads, with its begin or end token."""
    ids = list(tokenizer.encode(prompt))
    if model.config.kind == "encoder_decoder":  # what it reads ends as in training
        return ids if tokenizer.eos_id is None else [*ids, tokenizer.eos_id]
    wanted = tokenizer.add_bos if add_bos is None else add_bos
    if (wanted or not ids) and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    if not ids:
        raise ConfigError(
            f"prompts[{row}]", prompt, "some text", "This tokenizer has no token to begin with."
        )
    return ids


class _Row:
    """One completion in the making, on the host."""

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stops: tuple[str, ...],
        on_text: Callable[[int, str], None] | None,
    ):
        self.index, self.stops = index, stops
        self.detokenizer, self.on_text = detokenizer, on_text
        self.text, self.reason = "", ""
        self.tokens: list[int] = []
        self._shown = 0

    def take(self, tokens: np.ndarray, ends: set[int], done: bool) -> None:
        """Adds one chunk; ``done`` says that the device has finished the row."""
        if self.reason:
            return
        for token in map(int, tokens[tokens >= 0]):
            if token in ends:
                return self._finish("eos")
            self.tokens.append(token)
            if self._add(self.detokenizer.push(token)):
                return self._finish("stop")
        if done:
            stopped = self._add(self.detokenizer.flush())
            return self._finish("stop" if stopped else "length")
        self._show(len(self.text) - held_back(self.text, self.stops))

    def _add(self, piece: str) -> bool:
        """Appends text; True, with the text cut, if that completed a stop string."""
        reach = max((len(stop) - 1 for stop in self.stops), default=0)
        start = max(0, len(self.text) - reach)
        self.text += piece
        cut = first_stop(self.text, self.stops, start)
        if cut is not None:
            self.text = self.text[:cut]
        return cut is not None

    def _finish(self, reason: str) -> None:
        if reason == "eos" and self._add(self.detokenizer.flush()):
            reason = "stop"
        self.reason = reason
        self._show(len(self.text))

    def _show(self, end: int) -> None:
        if self.on_text is not None and end > self._shown:
            self.on_text(self.index, self.text[self._shown : end])
        self._shown = max(self._shown, end)
