"""Generation of token ids: prompts of unequal length, a cache of rows, one compiled loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.mesh_scope import MeshScope
from t5x_llm.infer.sampling import Sampling, Seeds, Switches, draw, row_seeds
from t5x_llm.models.model import Model
from t5x_llm.nn.rotary_scaling import LongRotaryScaling
from t5x_llm.parallel import Rules, constrain

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int32

_BUCKET = 32  # prompts are padded to a multiple of this, so that few shapes are compiled
_CHUNK = 16  # tokens decoded between two looks at them


@dataclasses.dataclass(frozen=True)
class Generated:
    """One sample of a prompt.

    Attributes:
      tokens: what was generated, the end token that finished it included.
      log_probs: [len(tokens)] float32, of each token under the model's own distribution (no
        temperature or other warp).
      sampled_log_probs: [len(tokens)] float32, under the distribution that it was drawn from; 0
        where it is greedy.
      finish_reason: 'eos' or 'length'.
    """

    tokens: tuple[int, ...]
    log_probs: Float32[np.ndarray, " T"]
    sampled_log_probs: Float32[np.ndarray, " T"]
    finish_reason: str


class Chunk(NamedTuple):
    """The next tokens of every row of a ``Decoding``, as NumPy arrays.

    Attributes:
      tokens: [B, T] int32; -1 after a row's last.
      log_probs: [B, T] float32, see ``Generated``.
      sampled_log_probs: [B, T] float32, likewise.
      done: [B] bool, rows that have no further token.
    """

    tokens: Int32[np.ndarray, "B T"]
    log_probs: Float32[np.ndarray, "B T"]
    sampled_log_probs: Float32[np.ndarray, "B T"]
    done: Bool[np.ndarray, " B"]


class _Start(NamedTuple):
    """Beginning of rows: tokens [B, P] padded at their ends, of ``lengths`` [B]; ``count`` [B] of
    them were generated, ``limit`` [B] at most will be; ``done`` [B] bool marks rows that only fill
    the batch."""

    tokens: np.ndarray
    lengths: np.ndarray
    count: np.ndarray
    limit: np.ndarray
    done: np.ndarray
    seeds: Seeds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """State of the compiled loop: logits [B, V] of the next token; seen [B, V] bool (no column
    without a penalty); keys [B]; count [B] tokens generated; limit [B]; done [B] bool."""

    cache: Any
    logits: jax.Array
    seen: jax.Array
    keys: jax.Array
    count: jax.Array
    limit: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "scope", "switches", "length"))
def _prefill(
    model: Model, scope: MeshScope, switches: Switches, length: int, params: Any, start: _Start
) -> _State:
    """Runs the prompts into a cache of ``length`` places a row.

    An encoder-decoder's encoder reads them, and its decoder the token it starts with.
    """
    with scope.current():
        tokens = constrain(jnp.asarray(start.tokens), ("batch", None))
        lengths, size = jnp.asarray(start.lengths), len(start.tokens)
        place = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        valid = place < lengths[:, None]
        read: dict[str, Any] = dict(
            positions=jnp.where(valid, place, 0), segment_ids=valid.astype(jnp.int32)
        )
        if model.config.kind == "encoder_decoder":
            encoder = {"encoder_tokens": tokens} | {f"encoder_{k}": v for k, v in read.items()}
            tokens = jnp.full((size, 1), model.config.start, jnp.int32)
            valid, lengths, read = jnp.ones((size, 1), bool), jnp.ones(size, jnp.int32), encoder
        cache: Any = model.start_cache(params, size, length)
        hidden, cache = model.apply(params, tokens, cache=cache, **read)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        seen = jnp.zeros((size, model.vocab_size if switches.penalty else 0), bool)
        if switches.penalty:
            known = jnp.where(valid, tokens, model.vocab_size)
            seen = seen.at[jnp.arange(size)[:, None], known].set(True, mode="drop")
        return _State(
            cache=cache,
            logits=model.logits(params, last)[:, 0],
            seen=seen,
            keys=start.seeds.keys(),
            count=jnp.asarray(start.count),
            limit=jnp.asarray(start.limit),
            done=jnp.asarray(start.done),
        )


@functools.partial(
    jax.jit,
    static_argnames=("model", "scope", "switches", "ends"),
    donate_argnames=("state",),
)
def _decode(
    model: Model,
    scope: MeshScope,
    switches: Switches,
    ends: tuple[int, ...],
    params: Any,
    state: _State,
    finished: jax.Array,
    values: jax.Array,
) -> tuple[_State, tuple[jax.Array, ...]]:
    """Up to _CHUNK tokens for every unfinished row, and the arrays of a ``Chunk``."""
    rows = jnp.arange(state.logits.shape[0])

    def unfinished(carry: tuple[jax.Array, _State, Any]) -> jax.Array:
        step, state, _ = carry
        return (step < _CHUNK) & ~jnp.all(state.done)

    def one(carry: tuple[jax.Array, _State, Any]) -> tuple[jax.Array, _State, Any]:
        step, state, out = carry
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
        drawn = draw(state.logits, state.seen, keys, switches, values)
        found = (jnp.where(state.done, -1, drawn.token), *drawn[1:])
        out = tuple(x.at[:, step].set(y) for x, y in zip(out, found, strict=True))
        count = state.count + ~state.done
        over = jnp.isin(drawn.token, jnp.asarray(ends, jnp.int32)) | (count >= state.limit)
        done = state.done | over
        # A finished row's token is padding: it takes no place, and has a position that exists.
        hidden, cache = model.apply(
            params,
            drawn.token[:, None],
            positions=jnp.where(done, 0, model.held(state.cache))[:, None],
            segment_ids=(~done).astype(jnp.int32)[:, None],
            cache=state.cache,
        )
        seen = state.seen
        if switches.penalty:
            seen = seen.at[rows, drawn.token].set(True)
        state = dataclasses.replace(
            state,
            cache=cache,
            logits=model.logits(params, hidden)[:, 0],
            seen=seen,
            count=count,
            done=done,
        )
        return step + 1, state, out

    with scope.current():
        state = dataclasses.replace(state, done=state.done | finished)
        shape = (len(rows), _CHUNK)
        nothing = jnp.full(shape, -1, jnp.int32), *(jnp.zeros(shape, jnp.float32),) * 2
        _, state, out = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, nothing))
        # Every process reads them.
        shown = [constrain(x, (None,) * x.ndim) for x in (*out, state.done)]
        return state, tuple(shown)


class Decoding:
    """Completions of a batch of prompts in the making.

    Row ``i * sampling.n + k`` is the k-th sample of prompt i.

    Args:
      model: its policy's compute dtype is used.
      params: parameter tree, on the mesh of ``scope`` if that has one.
      prompts: token ids of each prompt.
      sampling: how tokens are drawn; stop strings are not looked at.
      end_ids: tokens that end a completion.
      scope: where it runs.

    Raises:
      ConfigError: a prompt is empty (unless an encoder reads it), has an id that the vocabulary
        has not, or leaves no room within learned positions; or the model is an encoder.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        end_ids: Sequence[int] = (),
        scope: MeshScope | None = None,
    ):
        self.model, self.params, self.sampling = model, params, sampling
        self.scope = scope or MeshScope()
        self._ends = tuple(sorted(set(map(int, end_ids))))
        for i, ids in enumerate(prompts):
            _check_prompt(model, i, ids)
        self._tokens = [list(map(int, ids)) for ids in prompts for _ in range(sampling.n)]
        self._given = [len(row) for row in self._tokens]
        self.rows = len(self._tokens)
        self._switch = _switch_length(model)
        seeds = self._tokens + [[]] * (self.scope.rows(self.rows) - self.rows)
        self._seeds = row_seeds(sampling.seed, seeds)
        self._state = self._begin(np.zeros(self.rows, bool))

    def _begin(self, done: np.ndarray) -> _State:
        """Reads the rows' tokens, padded at their ends, into a cache."""
        model, most, rows = self.model, self.sampling.max_tokens, self._tokens
        size = self.scope.rows(self.rows)
        width = -(-max(1, *map(len, rows)) // _BUCKET) * _BUCKET
        tokens, lengths = np.zeros((size, width), np.int32), np.ones(size, np.int32)
        given = np.ones(size, np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            given[row] = self._given[row]
        answers = model.config.kind == "encoder_decoder"
        begun = np.ones(size, np.int32) if answers else given
        limit = np.full(size, most, np.int32)
        if model.max_length is not None:
            limit = np.minimum(limit, model.max_length - begun)
        if self._switch is not None:  # pause with the first token whose rotation is another
            pause = np.where(lengths <= self._switch, self._switch + 1 - given, limit)
            limit = np.minimum(limit, pause).astype(np.int32)
        count = np.zeros(size, np.int32) if answers else lengths - given
        whole = np.arange(size) >= self.rows
        whole[: self.rows] |= done
        start = _Start(tokens, lengths, count, limit, whole, self._seeds)
        left = -(-(most - int(count.min())) // _CHUNK) * _CHUNK
        length = (1 if answers else width) + left
        return _prefill(model, self.scope, self.sampling.switches, length, self.params, start)

    def advance(self, finished: Sequence[bool]) -> Chunk:
        """Decodes some more tokens.

        Args:
          finished: [rows], those that need no more, whatever the device thinks.
        """
        stopped = np.ones(len(self._state.done), bool)
        stopped[: self.rows] = np.asarray(finished, bool)
        self._state, out = _decode(
            self.model,
            self.scope,
            self.sampling.switches,
            self._ends,
            self.params,
            self._state,
            stopped,
            self.sampling.values,
        )
        chunk = Chunk(*(np.asarray(x)[: self.rows] for x in out))
        return chunk if self._switch is None else self._read_again(chunk, stopped[: self.rows])

    def _read_again(self, chunk: Chunk, stopped: np.ndarray) -> Chunk:
        """Reads the rows again whose rotation has become another with their last token.

        Every layer's keys of all their tokens change then, so none can be kept: what follows is
        what a pass over the whole row gives. Other rows are read again with them, to no effect.
        """
        paused = np.zeros(self.rows, bool)
        for i, (row, drawn) in enumerate(zip(self._tokens, chunk.tokens, strict=True)):
            new = drawn[drawn >= 0].tolist()
            row += new
            if new and new[-1] not in self._ends and not stopped[i]:
                most = self.sampling.max_tokens
                if self.model.max_length is not None:
                    most = min(most, self.model.max_length - self._given[i])
                short = len(row) - self._given[i] < most
                paused[i] = chunk.done[i] and short and len(row) == (self._switch or 0) + 1
        done = chunk.done & ~paused
        if paused.any():
            self._state = self._begin(done | stopped)
        return chunk._replace(done=done)


def _switch_length(model: Model) -> int | None:
    """Tokens up to which a model's rotation is one, and beyond which it is another; or None."""
    scalings = (rotary.scaling for rotary in getattr(model.config, "rotaries", ()))
    found = {s.original_length for s in scalings if isinstance(s, LongRotaryScaling)}
    return max(found) - model.virtual if found else None


def _check_prompt(model: Model, row: int, ids: Sequence[int]) -> None:
    """Refuses what cannot be continued."""
    field = f"prompts[{row}]"
    reads = model.config.kind == "encoder_decoder"
    if not len(ids) and not reads:
        raise ConfigError(field, list(ids), "at least one token, such as begin-of-text")
    if len(ids) and not (0 <= min(ids) and max(ids) < model.vocab_size):
        wrong = next(i for i in ids if not 0 <= i < model.vocab_size)
        raise ConfigError(field, wrong, f"token ids from 0 to {model.vocab_size - 1}")
    longest = model.max_length
    if longest is not None and len(ids) + (not reads) > longest:
        raise ConfigError(
            field,
            f"{len(ids)} tokens",
            f"fewer than {longest} tokens, the model's learned positions",
            "Shorten it.",
        )


def generate_ids(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    end_ids: Sequence[int] = (),
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> list[list[Generated]]:
    """Continues prompts of token ids, or answers them (an encoder-decoder).

    A sample depends on parameters, prompt, seed and its number among the samples of the prompt, and
    on nothing else in the batch (but for the rounding of sums, which batch shapes may change).

    Args:
      model: its policy's compute dtype is used.
      params: parameter tree; on ``mesh``, laid out by ``rules``, if there is one.
      prompts: token ids of each prompt, of any length, as the model reads them: begin-of-text, or
        for an encoder end-of-text, included.
      sampling: defaults to ``Sampling()``; it has no stop strings, which need a tokenizer.
      end_ids: tokens that end a completion.
      mesh: runs on all its devices, rows and caches laid out by the rules; None for the default
        device.
      rules: of the mesh.

    Returns:
      For each prompt, in order, its ``sampling.n`` samples.

    Raises:
      ConfigError: see ``Decoding``; or there are stop strings, or a mesh without rules.
    """
    sampling, scope = sampling or Sampling(), MeshScope(mesh, rules)
    if sampling.stop:
        raise ConfigError(
            "Sampling.stop", sampling.stop, "() where there is no text", "Use end_ids."
        )
    if not prompts:
        return []
    decoding = Decoding(model, params, prompts, sampling, end_ids, scope)
    chunks, done = [], np.zeros(decoding.rows, bool)
    while not done.all():
        chunks.append(decoding.advance(done))
        done = chunks[-1].done
    whole = [np.concatenate(parts, axis=1) for parts in list(zip(*chunks, strict=True))[:3]]
    ends = set(map(int, end_ids))
    found = [_generated(t, raw, drawn, ends) for t, raw, drawn in zip(*whole, strict=True)]
    return [found[i : i + sampling.n] for i in range(0, len(found), sampling.n)]


def _generated(
    tokens: np.ndarray, log_probs: np.ndarray, sampled: np.ndarray, ends: set[int]
) -> Generated:
    """Returns a row without the places after its last token."""
    real = tokens >= 0
    kept = tuple(map(int, tokens[real]))
    reason = "eos" if kept and kept[-1] in ends else "length"
    return Generated(kept, log_probs[real], sampled[real], reason)
