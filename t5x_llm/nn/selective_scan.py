"""The selective state-space recurrence of Mamba (arXiv 2312.00752, algorithm 2), in float32.

Decays differ for every channel and every entry of its state, so nothing of it is a matrix product.
On each device a loop over tokens keeps the state at hand and the states of all tokens nowhere:
forward it keeps one a chunk, backward it computes those of one chunk again. On two CPU cores this
takes a tenth of the forward and half of the backward time of parallel prefix sums within chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_llm.nn.kernels import scan_chunks
from t5x_llm.parallel import compute_spec, constrain, current

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32

CHUNK = 64
# Said on both sides of an exchange, lest what is around it be exchanged too.
_WIDE, _NARROW = ("batch", "length", "inner"), ("batch", "length", None)

_Chunk = tuple[jax.Array, ...]


def selective_scan(
    x: Float[Array, "B T I"],
    dt: Float32[Array, "B T I"],
    a: Float32[Array, "R I"],
    b: Float[Array, "B T R"],
    c: Float[Array, "B T R"],
    starts: Bool[Array, "B T"],
    state: Float32[Array, "B R I"],
) -> tuple[Float[Array, "B T I"], Float32[Array, "B R I"]]:
    """h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t and y_t = sum over R of c_t h_t.

    h is [B, R, I], R being the state's size; it is zero before a token of ``starts``.

    Args:
      x: [B, T, I] inputs.
      dt: [B, T, I] float32 steps, positive.
      a: [R, I] float32 rates, negative.
      b: [B, T, R] how an input enters the state.
      c: [B, T, R] how the state is read.
      starts: [B, T] bool, where a token does not continue the one before it.
      state: [B, R, I] float32 before the first token.

    Returns:
      (y [B, T, I] in the dtype of ``x``, the state after the last token).
    """

    def local(
        a: jax.Array, state: jax.Array, inputs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array]:
        return scan_chunks(lambda h, chunk: _chunk(a, h, *chunk), state, inputs, CHUNK)

    x, dt = (constrain(each, _WIDE) for each in (x, dt))
    b, c = (constrain(each, _NARROW) for each in (b, c))
    inputs = (x, dt, b, c, starts)
    context, wide = current(), compute_spec(("batch", None, "scan_inner"), x.shape)
    if context is None or wide is None:
        state, y = local(a, state, inputs)
        return y, state
    # Rows and channels know nothing of each other: no device waits for another until the end. A
    # sequence in pieces is exchanged for channels, as heads are in Ulysses.
    rows, inner = wide[0], wide[2]
    narrow = PartitionSpec(rows, None, None)
    state, y = jax.shard_map(
        local,
        mesh=context.mesh,
        in_specs=(
            PartitionSpec(None, inner),
            wide,
            (wide, wide, narrow, narrow, PartitionSpec(rows, None)),
        ),
        out_specs=(wide, wide),
        check_vma=False,
    )(a, state, inputs)
    return constrain(y, _WIDE), state


def _decay(a: jax.Array, dt: jax.Array, start: jax.Array) -> jax.Array:
    """Returns the share of the state [B, R, I] left by a step [B, I]; 0 where a segment starts."""
    return jnp.where(start[:, None, None], 0.0, jnp.exp(dt[:, None] * a))


def _step(a: jax.Array, h: jax.Array, token: _Chunk) -> tuple[jax.Array, jax.Array]:
    """One token: the new state and the output [B, I]."""
    x, dt, b, c, start = token
    h = _decay(a, dt, start) * h + (dt * x)[:, None] * b[:, :, None]
    return h, jnp.sum(h * c[:, :, None], axis=1)


def _tokens(*arrays: jax.Array) -> _Chunk:
    """[B, T, ...] to [T, B, ...]; all but masks in float32."""
    wide = (x if x.dtype == jnp.bool_ else x.astype(jnp.float32) for x in arrays)
    return tuple(jnp.moveaxis(x, 1, 0) for x in wide)


@jax.custom_vjp
def _chunk(
    a: jax.Array,
    h: jax.Array,
    x: jax.Array,
    dt: jax.Array,
    b: jax.Array,
    c: jax.Array,
    starts: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The state after a chunk, and its outputs; arguments as ``selective_scan`` has them."""
    h, y = jax.lax.scan(lambda h, t: _step(a, h, t), h, _tokens(x, dt, b, c, starts))
    return h, jnp.moveaxis(y, 0, 1).astype(x.dtype)


def _chunk_fwd(*args: jax.Array) -> tuple[tuple[jax.Array, jax.Array], _Chunk]:
    return _chunk(*args), args


def _chunk_bwd(
    saved: _Chunk, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    """Gradients by one pass forward, for the states, and one backward, with that of the state."""
    a, h, *inputs = saved
    dh, dy = cotangents
    tokens = _tokens(*inputs)
    before = jax.lax.scan(lambda h, t: (_step(a, h, t)[0], h), h, tokens)[1]

    def back(
        carry: tuple[jax.Array, jax.Array], token: _Chunk
    ) -> tuple[tuple[jax.Array, jax.Array], _Chunk]:
        dh, da = carry
        h, dy, x, dt, b, c, start = token
        decay, u = _decay(a, dt, start), dt * x
        left = decay * h
        dh = dh + dy[:, None] * c[:, :, None]
        dc = jnp.sum((left + u[:, None] * b[:, :, None]) * dy[:, None], axis=2)
        db = jnp.sum(dh * u[:, None], axis=2)
        du = jnp.sum(dh * b[:, :, None], axis=1)
        exponent = dh * left  # gradient of dt a
        ddt = du * x + jnp.sum(exponent * a, axis=1)
        return (decay * dh, da + exponent * dt[:, None]), (du * dt, ddt, db, dc)

    carry = dh, jnp.zeros_like(dh)
    (dh, da), grads = jax.lax.scan(back, carry, (before, *_tokens(dy), *tokens), reverse=True)
    dx, ddt, db, dc = (
        jnp.moveaxis(grad, 0, 1).astype(given.dtype)
        for grad, given in zip(grads, inputs, strict=False)
    )
    return jnp.sum(da, axis=0), dh, dx, ddt, db, dc, None


_chunk.defvjp(_chunk_fwd, _chunk_bwd)
