"""The state-space recurrence of Mamba-2 (arXiv 2405.21060, section 6), in float32.

A head has one decay a token, so that what the tokens of a chunk do to each other is a product with
a matrix of decays, and chunks hand on their states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels import scan_chunks
from t5x_llm.parallel import constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32

CHUNK = 128
_WHOLE = ("batch", None)


def ssd(
    x: Float[Array, "B T N H"],
    dt: Float32[Array, "B T N"],
    a: Float32[Array, " N"],
    b: Float[Array, "B T G R"],
    c: Float[Array, "B T G R"],
    starts: Bool[Array, "B T"],
    state: Float32[Array, "B N H R"],
) -> tuple[Float[Array, "B T N H"], Float32[Array, "B N H R"]]:
    """h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T and y_t = h_t c_t, for every head.

    h is [B, N, H, R], R being the state's size; it is zero before a token of ``starts``. Heads
    come in G groups that share b and c.

    Args:
      x: [B, T, N, H] inputs.
      dt: [B, T, N] float32 steps, positive.
      a: [N] float32 rates, negative.
      b: [B, T, G, R] how an input enters the state.
      c: [B, T, G, R] how the state is read.
      starts: [B, T] bool, where a token does not continue the one before it.
      state: [B, N, H, R] float32 before the first token.

    Returns:
      (y [B, T, N, H] in the dtype of ``x``, the state after the last token).
    """
    groups = b.shape[2]
    # A sequence in pieces is exchanged for heads.
    x, dt = constrain(x, (*_WHOLE, "scan_heads", None)), constrain(dt, (*_WHOLE, "scan_heads"))
    b, c = (constrain(each, ("batch", "length", "kv_heads", None)) for each in (b, c))
    b, c = (constrain(each, (*_WHOLE, "kv_heads", None)) for each in (b, c))
    starts = constrain(starts, _WHOLE)

    def body(h: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return _chunk(a, h, *chunk, groups=groups)

    state, y = scan_chunks(body, state, (x, dt, b, c, starts), CHUNK)
    return constrain(y, ("batch", "length", "heads", "head")), state


def _chunk(
    a: jax.Array,
    h: jax.Array,
    x: jax.Array,
    dt: jax.Array,
    b: jax.Array,
    c: jax.Array,
    starts: jax.Array,
    *,
    groups: int,
) -> tuple[jax.Array, jax.Array]:
    """The state after a chunk, and outputs. In einsums t and s are tokens, m heads of a group."""
    batch, length, heads, size = x.shape
    grouped = (batch, length, groups, heads // groups)
    u = (x * dt[..., None]).reshape(*grouped, size)
    b, c = b.astype(jnp.float32), c.astype(jnp.float32)
    h = h.reshape(batch, *grouped[2:], size, -1)

    segment = jnp.cumsum(starts, axis=1)
    causal = jnp.tril(jnp.ones((length, length), bool))
    joined = (segment[:, :, None] == segment[:, None, :]) & causal
    # Exponents since the segment's or the chunk's first token. A product with a mask, not a running
    # sum: what another segment holds must not touch them, not even by rounding.
    since = jnp.einsum(
        "bts,bsn->bnt", joined.astype(jnp.float32), dt * a, precision=jax.lax.Precision.HIGHEST
    ).reshape(batch, *grouped[2:], length)
    between = since[..., :, None] - since[..., None, :]
    decays = jnp.exp(jnp.where(joined[:, None, None], between, -jnp.inf))
    scores = jnp.einsum("btgr,bsgr->bgts", c, b)[:, :, None] * decays
    y = jnp.einsum("bgmts,bsgmh->btgmh", scores, u)

    first = segment == 0  # still the segment that ``h`` comes from
    carried = jnp.where(first[:, None, None], jnp.exp(since), 0.0)
    y = y + jnp.einsum("btgr,bgmhr,bgmt->btgmh", c, h, carried)
    h = h * carried[..., -1, None, None]
    h = h + jnp.einsum("bsgr,bgms,bsgmh->bgmhr", b, decays[..., -1, :], u)
    return h.reshape(batch, heads, size, -1), y.reshape(x.shape).astype(x.dtype)
