"""Drawing of tokens: the settings, the draw itself, and the random key of every draw."""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.infer import warp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int32, Key, UInt32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of how completions are drawn; warps apply in the order of transformers' generate.

    Attributes:
      max_tokens: longest completion.
      temperature: 0 is greedy.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens that make up this probability; 1 keeps all.
      repetition_penalty: above 1 discourages tokens of the prompt and completion; 1 is off.
      stop: strings that end a completion; it is cut just before them.
      seed: with the prompt and the sample's number, decides the sample, whatever else is in the
        batch.
      n: samples of each prompt.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        check_number("Sampling.max_tokens", self.max_tokens, low=1, integer=True)
        check_number("Sampling.temperature", self.temperature, low=0, high=1e6)
        check_number("Sampling.top_k", self.top_k, low=0, integer=True)
        check_number("Sampling.top_p", self.top_p, above=0, high=1)
        check_number("Sampling.repetition_penalty", self.repetition_penalty, above=0, high=1e6)
        check_number("Sampling.seed", self.seed, low=0, high=2**32 - 1, integer=True)
        check_number("Sampling.n", self.n, low=1, integer=True)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ConfigError("Sampling.stop", self.stop, "a tuple of non-empty strings")

    @property
    def switches(self) -> Switches:
        """The part that changes the compiled program."""
        return Switches(
            greedy=self.temperature == 0,
            top_k=self.top_k > 0,
            top_p=self.top_p < 1,
            penalty=self.repetition_penalty != 1,
        )

    @property
    def values(self) -> Float32[np.ndarray, " 4"]:
        """[4] float32: penalty, temperature, k, p."""
        given = [self.repetition_penalty, self.temperature, self.top_k, self.top_p]
        return np.asarray(given, np.float32)


class Switches(NamedTuple):
    """The warps that a compiled program has."""

    greedy: bool
    top_k: bool
    top_p: bool
    penalty: bool


class Drawn(NamedTuple):
    """One token of every row.

    Attributes:
      token: [B] int32.
      log_prob: [B] float32 log-probability of the token under the model's own distribution.
      sampled_log_prob: [B] float32, under the distribution it was drawn from, after all warps;
        0 where it is greedy.
    """

    token: Int32[Array, " B"]
    log_prob: Float32[Array, " B"]
    sampled_log_prob: Float32[Array, " B"]


def draw(
    logits: Float32[Array, "B V"],
    seen: Bool[Array, "B _"],
    keys: Key[Array, " B"],
    switches: Switches,
    values: Float32[Array, " 4"],
) -> Drawn:
    """Draws the next token of every row.

    Args:
      logits: [B, V] float32.
      seen: [B, V] bool, tokens that the penalty is for; not read without it.
      keys: [B] random keys, one a draw.
      switches: the warps.
      values: [4] float32, their penalty, temperature, k and p.
    """
    penalty, temperature, k, p = values
    warped = logits
    if switches.penalty:
        warped = warp.repetition_penalty(warped, seen, penalty)
    if switches.greedy:
        token = jnp.argmax(warped, axis=-1).astype(jnp.int32)
        return Drawn(token, _log_prob(logits, token), jnp.zeros(token.shape, jnp.float32))
    warped = warp.temperature(warped, temperature)
    if switches.top_k:
        warped = warp.top_k(warped, k.astype(jnp.int32))
    if switches.top_p:
        warped = warp.top_p(warped, p)
    token = jax.vmap(jax.random.categorical)(keys, warped).astype(jnp.int32)
    return Drawn(token, _log_prob(logits, token), _log_prob(warped, token))


def _log_prob(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Returns [B] log-probabilities of tokens [B] under logits [B, V]."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


class Seeds(NamedTuple):
    """Numbers that the random keys of a batch's rows are folded from.

    Attributes:
      seed: [2] uint32, data of the key of ``Sampling.seed``.
      prompt: [B] uint32, a hash of each row's prompt.
      number: [B] uint32, how many earlier rows have the same prompt.
    """

    seed: UInt32[np.ndarray, " 2"]
    prompt: UInt32[np.ndarray, " B"]
    number: UInt32[np.ndarray, " B"]

    def keys(self) -> Key[Array, " B"]:
        """Returns the keys [B] of the rows; a draw folds in how many tokens came before it."""
        seed = jax.random.wrap_key_data(self.seed)

        def one(prompt: jax.Array, number: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(seed, prompt), number)

        return jax.vmap(one)(jnp.asarray(self.prompt), jnp.asarray(self.number))


def row_seeds(seed: int, rows: Sequence[Sequence[int]]) -> Seeds:
    """Returns the seeds of rows, given each one's prompt; samples of one prompt count up."""
    count: collections.Counter[tuple[int, ...]] = collections.Counter()
    hashes, numbers = [], []
    for ids in rows:
        hashes.append(zlib.crc32(np.asarray(ids, np.int32).tobytes()))
        numbers.append(count[tuple(ids)])
        count[tuple(ids)] += 1
    data = np.asarray(jax.random.key_data(jax.random.key(seed)))
    return Seeds(data, np.asarray(hashes, np.uint32), np.asarray(numbers, np.uint32))
