"""Text generation: batched prompts of unequal length, KV cache, one compiled loop."""

from __future__ import annotations

import collections
import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.infer import warp
from t5x_llm.infer.detokenize import Detokenizer, first_stop, held_back
from t5x_llm.models.model import Model

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

_BUCKET = 32  # prompts are padded to a multiple of this, so that few shapes are compiled
_CHUNK = 16  # tokens decoded between two looks at the text


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn. The warps apply in the order of transformers' generate.

    Attributes:
      max_tokens: longest completion.
      temperature: 0 is greedy.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens that make up this probability; 1 keeps all.
      repetition_penalty: above 1 discourages tokens of the prompt and completion; 1 is off.
      stop: strings that end a completion; it is cut just before them.
      seed: with the prompt, decides the sample, whatever else is in the batch.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("Sampling.max_tokens", self.max_tokens, low=1, integer=True)
        check_number("Sampling.temperature", self.temperature, low=0, high=1e6)
        check_number("Sampling.top_k", self.top_k, low=0, integer=True)
        check_number("Sampling.top_p", self.top_p, above=0, high=1)
        check_number("Sampling.repetition_penalty", self.repetition_penalty, above=0, high=1e6)
        check_number("Sampling.seed", self.seed, low=0, high=2**32 - 1, integer=True)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ConfigError("Sampling.stop", self.stop, "a tuple of non-empty strings")


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What the compiled loop carries. B rows.

    logits [B, V] of the next token; seen [B, V] bool; keys [B]; count [B] tokens generated;
    position [B] of the next token; limit [B]; done [B] bool.
    """

    cache: Any
    logits: jax.Array
    seen: jax.Array
    keys: jax.Array
    count: jax.Array
    position: jax.Array
    limit: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class _Switches:
    """The part of Sampling that changes the compiled program."""

    greedy: bool
    top_k: bool
    top_p: bool
    penalty: bool


def choose(
    logits: jax.Array, seen: jax.Array, keys: jax.Array, switches: _Switches, values: jax.Array
) -> jax.Array:
    """Next token [B] int32; ``values``: penalty, temperature, k, p."""
    penalty, temperature, k, p = values
    if switches.penalty:
        logits = warp.repetition_penalty(logits, seen, penalty)
    if switches.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = warp.temperature(logits, temperature)
    if switches.top_k:
        logits = warp.top_k(logits, k.astype(jnp.int32))
    if switches.top_p:
        logits = warp.top_p(logits, p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _prefill(
    model: Model, length: int, params: Any, tokens: jax.Array, pads: jax.Array
) -> tuple[Any, jax.Array]:
    """Runs left-padded prompts [B, P]; returns the cache of ``length`` and logits [B, V].

    An encoder-decoder's encoder reads them, and its decoder the token it starts with.
    """
    index = jnp.arange(tokens.shape[1])[None] - pads[:, None]
    positions, segment_ids = jnp.maximum(index, 0), (index >= 0).astype(jnp.int32)
    cache: Any = model.init_cache(tokens.shape[0], length)
    if model.config.kind == "encoder_decoder":
        hidden, cache = model.apply(
            params,
            jnp.full((tokens.shape[0], 1), model.config.start, jnp.int32),
            cache=cache,
            encoder_tokens=tokens,
            encoder_positions=positions,
            encoder_segment_ids=segment_ids,
        )
    else:
        hidden, cache = model.apply(
            params, tokens, positions=positions, segment_ids=segment_ids, cache=cache
        )
    return cache, model.logits(params, hidden[:, -1:])[:, 0]


@functools.partial(
    jax.jit, static_argnames=("model", "switches", "ends"), donate_argnames=("state",)
)
def _decode(
    model: Model,
    switches: _Switches,
    ends: tuple[int, ...],
    params: Any,
    state: _State,
    values: jax.Array,
) -> tuple[_State, jax.Array]:
    """Up to _CHUNK tokens for every unfinished row: [B, _CHUNK], -1 where there is none."""
    rows = jnp.arange(state.logits.shape[0])

    def unfinished(carry: tuple[jax.Array, _State, jax.Array]) -> jax.Array:
        step, state, _ = carry
        return (step < _CHUNK) & ~jnp.all(state.done)

    def one(carry: tuple[jax.Array, _State, jax.Array]) -> tuple[jax.Array, _State, jax.Array]:
        step, state, out = carry
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
        token = choose(state.logits, state.seen, keys, switches, values)
        out = out.at[:, step].set(jnp.where(state.done, -1, token))
        count = state.count + ~state.done
        done = state.done | jnp.isin(token, jnp.asarray(ends, jnp.int32)) | (count >= state.limit)
        hidden, cache = model.apply(
            params,
            token[:, None],
            positions=state.position[:, None],
            segment_ids=jnp.ones_like(token)[:, None],
            cache=state.cache,
        )
        state = _State(
            cache=cache,
            logits=model.logits(params, hidden)[:, 0],
            seen=state.seen.at[rows, token].set(True),
            keys=state.keys,
            count=count,
            position=state.position + ~done,  # a finished row stays within learned positions
            limit=state.limit,
            done=done,
        )
        return step + 1, state, out

    out = jnp.full((state.logits.shape[0], _CHUNK), -1, jnp.int32)
    _, state, out = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, out))
    return state, out


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
) -> list[Completion]:
    """Completes prompts; an encoder-decoder answers them.

    Args:
      model: its policy's compute dtype is used.
      params: parameter tree.
      tokenizer: encodes and decodes; its ``eos_id`` ends a completion.
      prompts: texts of any length, empty ones too if the tokenizer has a ``bos_id``.
      sampling: defaults to ``Sampling()``.
      add_bos: begin prompts with ``bos_id``, as documents of the token store begin; by default
        as the tokenizer says. An empty prompt always does.
      end_ids: further tokens that end a completion.
      on_text: called with (row, new text) as text becomes certain.

    Returns:
      One completion a prompt, in order.

    Raises:
      ConfigError: a prompt is empty, or leaves no room within learned positions; or the model is
        an encoder.
    """
    sampling = sampling or Sampling()
    if not prompts:
        return []
    encoded = [_encode(model, tokenizer, i, prompt, add_bos) for i, prompt in enumerate(prompts)]
    ends = tuple(sorted({*end_ids, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])}))
    state, switches = _start(model, params, encoded, sampling)
    values = jnp.asarray(
        [sampling.repetition_penalty, sampling.temperature, sampling.top_k, sampling.top_p],
        jnp.float32,
    )
    answers = model.config.kind == "encoder_decoder"
    rows = [
        _Row(i, Detokenizer(tokenizer, [] if answers else ids), sampling.stop, on_text)
        for i, ids in enumerate(encoded)
    ]
    while not all(row.reason for row in rows):
        state, out = _decode(model, switches, ends, params, state, values)
        for row, tokens, done in zip(rows, np.asarray(out), np.asarray(state.done), strict=True):
            row.take(tokens, ends, bool(done))
        state = dataclasses.replace(state, done=jnp.asarray([bool(row.reason) for row in rows]))
    return [
        Completion(prompt, row.text, tuple(row.tokens), row.reason, len(ids))
        for prompt, row, ids in zip(prompts, rows, encoded, strict=True)
    ]


def _encode(
    model: Model, tokenizer: Tokenizer, row: int, prompt: str, add_bos: bool | None
) -> list[int]:
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
    if model.max_length is not None and len(ids) >= model.max_length:
        raise ConfigError(
            f"prompts[{row}]",
            prompt[:40],
            f"fewer than {model.max_length} tokens, the model's learned positions",
            f"It has {len(ids)}; shorten it.",
        )
    return ids


def _start(
    model: Model, params: Any, encoded: list[list[int]], sampling: Sampling
) -> tuple[_State, _Switches]:
    """Left-pads, fills the cache, and lays out the state of the loop."""
    size = len(encoded)
    width = -(-max(map(len, encoded)) // _BUCKET) * _BUCKET
    tokens = np.zeros((size, width), np.int32)
    lengths = np.asarray([len(ids) for ids in encoded], np.int32)
    pads = width - lengths
    seen = np.zeros((size, model.vocab_size), bool)
    for row, ids in enumerate(encoded):
        tokens[row, pads[row] :] = ids
    # What the decoder has read, in number and in kind.
    begun = encoded
    if model.config.kind == "encoder_decoder":
        begun, lengths, width = [[model.config.start]] * size, np.ones(size, np.int32), 1
    for row, ids in enumerate(begun):
        seen[row, ids] = True
    limit = np.full(size, sampling.max_tokens, np.int32)
    if model.max_length is not None:
        limit = np.minimum(limit, model.max_length - lengths)
    room = -(-sampling.max_tokens // _CHUNK) * _CHUNK
    cache, logits = _prefill(model, width + room, params, tokens, pads)
    state = _State(
        cache=cache,
        logits=logits,
        seen=jnp.asarray(seen),
        keys=_row_keys(sampling.seed, encoded),
        count=jnp.zeros(size, jnp.int32),
        position=jnp.asarray(lengths),
        limit=jnp.asarray(limit),
        done=jnp.zeros(size, bool),
    )
    switches = _Switches(
        greedy=sampling.temperature == 0,
        top_k=sampling.top_k > 0,
        top_p=sampling.top_p < 1,
        penalty=sampling.repetition_penalty != 1,
    )
    return state, switches


def _row_keys(seed: int, encoded: list[list[int]]) -> jax.Array:
    """A key for every row from (seed, its prompt, how often that prompt came before): [B]."""
    count: collections.Counter[tuple[int, ...]] = collections.Counter()
    keys = []
    for ids in encoded:
        key = jax.random.fold_in(
            jax.random.key(seed), zlib.crc32(np.asarray(ids, np.int32).tobytes())
        )
        keys.append(jax.random.fold_in(key, count[tuple(ids)]))
        count[tuple(ids)] += 1
    return jnp.stack(keys)


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

    def take(self, tokens: np.ndarray, ends: tuple[int, ...], done: bool) -> None:
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
