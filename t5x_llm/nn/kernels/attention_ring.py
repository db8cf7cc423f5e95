"""Part of each device in ring attention; ``attention_context`` lays it out."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_llm.nn.kernels.attention_mask import MASKED, MAX_SCORES, Bias, visible
from t5x_llm.nn.kernels.saving import keep

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Rows(NamedTuple):
    """Segments and positions [B, T] of queries."""

    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]


class Keys(NamedTuple):
    """Segments and positions [B, S] of keys, and ``attend``'s ``kv_prefix``."""

    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    prefix: Bool[Array, "B S"] | None


class Ring(NamedTuple):
    """Settings that are known when tracing.

    Attributes:
      axes: of the mesh, along which the pieces of the sequence lie.
      size: how many there are.
      bias: of this device's heads, or None.
      causal, window, softcap, scale: see ``attend``.
    """

    axes: tuple[str, ...]
    size: int
    bias: Bias | None
    causal: bool
    window: int | None
    softcap: float | None
    scale: float

    def rounds(self, length: int) -> int:
        """Returns how often keys are looked at to see a window of pieces of ``length``."""
        if self.window is None:
            return self.size
        return min(self.size, 1 + -(-(self.window - 1) // length))

    def moved(self, tree: Any, by: int = 1) -> Any:
        """Returns what the device ``by`` places before this one has."""
        pairs = [(i, (i + by) % self.size) for i in range(self.size)]
        return jax.lax.ppermute(tree, self.axes, pairs)


def ring(
    static: Ring,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K values"],
    rows: Rows,
    keys: Keys,
    sinks: Float[Array, " N"] | None,
) -> Float[Array, "B T N values"]:
    """``attend`` for one piece of the sequence on every device.

    Args:
      static: see there.
      q: [B, T, N, H], this device's piece and heads.
      k: [B, T, K, H], likewise.
      v: [B, T, K, H].
      rows: of ``q``.
      keys: of ``k``.
      sinks: [N], or None.
    """
    balanced = static.causal and static.window is None and keys.prefix is None
    if not balanced or q.shape[1] % 2:
        return _ring(static, False, q, k, v, sinks, rows, keys)
    q, k, v, rows, keys = _dealt(static, (q, k, v, rows, keys), back=False)
    return _dealt(static, _ring(static, True, q, k, v, sinks, rows, keys), back=True)


def _dealt(static: Ring, tree: Any, back: bool) -> Any:
    """Pieces in the order of tokens to one from the front and one from the back, or ``back``.

    Of 2 P halves, device i has 2 i and 2 i + 1 before, i and 2 P - 1 - i after.
    """
    size = static.size
    even = jax.lax.axis_index(static.axes) % 2 == 0

    def swapped(tree: Any) -> Any:
        def one(x: jax.Array) -> jax.Array:
            first, second = jnp.split(x, 2, axis=1)
            return jnp.where(even, x, jnp.concatenate([second, first], axis=1))

        return jax.tree.map(one, tree)

    tree = swapped(tree) if back else tree
    halves = []
    for i in range(2):
        pairs = [(p, min(2 * p + i, 2 * size - 1 - 2 * p - i)) for p in range(size)]
        pairs = [(b, a) for a, b in pairs] if back else pairs
        half = jax.tree.map(lambda x, i=i: jnp.split(x, 2, axis=1)[i], tree)
        stays = all(a == b for a, b in pairs)
        halves.append(half if stays else jax.lax.ppermute(half, static.axes, pairs))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), *halves)
    return joined if back else swapped(joined)


class _Seen(NamedTuple):
    """A softmax that is not finished: float32 sums over keys seen so far, and the largest logit."""

    sums: jax.Array  # [B, T, N, H]
    total: jax.Array  # [B, T, N]
    top: jax.Array  # [B, T, N]


def _scores(
    static: Ring, q: jax.Array, k: jax.Array, rows: Rows, keys: Keys
) -> tuple[jax.Array, jax.Array]:
    """Logits [B, K, G, T, S] in float32, and which of them count: [B, 1, 1, T, S]."""
    b, t, n, h = q.shape
    kv = k.shape[2]
    grouped = q.reshape(b, t, kv, n // kv, h)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    logits *= static.scale
    if static.softcap is not None:
        logits = static.softcap * jnp.tanh(logits / static.softcap)
    if static.bias is not None:
        added = static.bias(rows.positions, keys.positions)
        logits += added.reshape(added.shape[0], kv, n // kv, *added.shape[2:])
    seen = visible(
        *(rows.segments, keys.segments, rows.positions, keys.positions),
        causal=static.causal,
        window=static.window,
        kv_prefix=keys.prefix,
    )
    return logits, seen[:, None, None]


def _heads_last(x: jax.Array) -> jax.Array:
    """[B, K, G, T] to [B, T, N]."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)


def _heads_first(x: jax.Array, kv: int) -> jax.Array:
    """[B, T, N] to [B, K, G, T, 1]."""
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(x.shape[0], kv, -1, x.shape[-1], 1)


def _look(
    static: Ring, before: _Seen, q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, keys: Keys
) -> _Seen:
    """``before`` with these keys added."""

    def some(part: Any) -> _Seen:
        before, q, rows = part
        kv = k.shape[2]
        logits, seen = _scores(static, q, k, rows, keys)
        logits = jnp.where(seen, logits, MASKED)
        top = jnp.maximum(before.top, _heads_last(jnp.max(logits, axis=-1)))
        weights = jnp.exp(logits - _heads_first(top, kv))
        faded = jnp.exp(before.top - top)
        total = before.total * faded + _heads_last(jnp.sum(weights, axis=-1))
        new = jnp.einsum(
            "bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return _Seen(before.sums * faded[..., None] + new.reshape(before.sums.shape), total, top)

    return _by_rows(some, (before, q, rows), k.shape[1])


def _pull(
    static: Ring, given: Any, q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, keys: Keys
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Gradients (of q, (of k, of v)) in float32 from what these keys gave.

    ``given``: (gradient of the output, its product with the output [B, T, N], log-sum-exp).
    """

    def some(part: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        (d_out, delta, log_sum), q, rows = part

        def weighed(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, seen = _scores(static, q, k, rows, keys)
            # Where it is hidden a logit may be far above the sum.
            logits = jnp.where(seen, logits - _heads_first(log_sum, k.shape[2]), MASKED)
            weights = jnp.exp(logits)
            out = jnp.einsum(
                "bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return out.reshape(d_out.shape), _heads_last(jnp.sum(weights, axis=-1))

        _, pull = jax.vjp(weighed, q, k, v)
        dq, dk, dv = (x.astype(jnp.float32) for x in pull((d_out, -delta)))
        return dq, (dk, dv)

    return _by_rows(some, (given, q, rows), k.shape[1], summed=True)


def _by_rows(function: Any, tree: Any, keys: int, summed: bool = False) -> Any:
    """``function`` of blocks of rows [B, T, ...], few enough for ``MAX_SCORES``.

    With ``summed`` the second of its two results is added up over blocks.
    """
    length = jax.tree.leaves(tree)[0].shape[1]
    count = 1
    while (length // count) % 2 == 0 and length // count * keys > MAX_SCORES:
        count *= 2
    if count == 1:
        return function(tree)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], length, *x.shape[3:])

    blocks = jax.tree.map(cut, tree)
    if not summed:
        return jax.tree.map(join, jax.lax.map(function, blocks))
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], blocks))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def add(sums: Any, block: Any) -> tuple[Any, Any]:
        own, more = function(block)
        return jax.tree.map(jnp.add, sums, more), own

    sums, own = jax.lax.scan(add, zeros, blocks)
    return join(own), sums


def _halves(tree: Any, second: bool) -> Any:
    return jax.tree.map(lambda x: jnp.split(x, 2, axis=1)[second], tree)


def _padded(x: jax.Array, second: bool) -> jax.Array:
    """A half [B, T / 2, ...] with zeros in place of the other."""
    zeros = jnp.zeros_like(x)
    return jnp.concatenate([zeros, x] if second else [x, zeros], axis=1)


def _round(static: Ring, balanced: bool, r: Any, whole: Any, low: Any, high: Any, none: Any) -> Any:
    """The work of round ``r``, in which the keys of the device r places before are here.

    Args:
      static: see ``Ring``.
      balanced: pieces are dealt out from both ends.
      r: 0 ... rounds - 1.
      whole: all rows with all keys.
      low: all rows with the first half of the keys, those of a device before this one.
      high: the second half of the rows with all keys, those of one after it.
      none: nothing, as all keys come after all rows.
    """
    index = jax.lax.axis_index(static.axes)
    if balanced:
        return jax.lax.switch(jnp.where(r == 0, 0, jnp.where(r <= index, 1, 2)), [whole, low, high])
    if static.causal and none is not None:
        return jax.lax.cond(r <= index, whole, none)
    return whole()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(
    static: Ring,
    balanced: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sinks: jax.Array | None,
    rows: Rows,
    keys: Keys,
) -> jax.Array:
    return _forward(static, balanced, q, k, v, sinks, rows, keys)[0]


def _forward(
    static: Ring,
    balanced: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sinks: jax.Array | None,
    rows: Rows,
    keys: Keys,
) -> tuple[jax.Array, Any]:
    shape = q.shape[:3]
    nothing = _Seen(
        jnp.zeros((*shape, v.shape[-1]), jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.full(shape, MASKED, jnp.float32),
    )

    def look(seen: _Seen, here: Any, r: Any) -> _Seen:
        def whole() -> _Seen:
            return _look(static, seen, q, here[0], here[1], rows, here[2])

        def low() -> _Seen:
            k, v, keys = _halves(here, second=False)
            return _look(static, seen, q, k, v, rows, keys)

        def high() -> _Seen:
            first, (old, q_2, rows_2) = _halves(seen, False), _halves((seen, q, rows), True)
            new = _look(static, old, q_2, here[0], here[1], rows_2, here[2])
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, new)

        skip = None if keys.prefix is not None else lambda: seen
        return _round(static, balanced, r, whole, low, high, skip)

    def body(state: Any, r: jax.Array) -> tuple[Any, None]:
        here, seen = state
        return (static.moved(here), look(seen, here, r)), None

    last = static.rounds(q.shape[1]) - 1
    (here, seen), _ = jax.lax.scan(body, ((k, v, keys), nothing), jnp.arange(last))
    seen = look(seen, here, last)
    log_sum = seen.top + jnp.log(seen.total)
    faded = 1.0
    if sinks is not None:
        with_sinks = jnp.logaddexp(log_sum, sinks.astype(jnp.float32))
        faded, log_sum = jnp.exp(log_sum - with_sinks)[..., None], with_sinks
    out = (seen.sums / seen.total[..., None] * faded).astype(q.dtype)
    # Named, so that a remat policy that saves them spares the backward pass a second forward.
    out, log_sum = keep(out, "context"), keep(log_sum, "log_sum")
    return out, (q, k, v, sinks, rows, keys, out, log_sum)


def _backward(static: Ring, balanced: bool, saved: Any, d_out: jax.Array) -> tuple[Any, ...]:
    q, k, v, sinks, rows, keys, out, log_sum = saved
    d_out = d_out.astype(jnp.float32)
    delta = jnp.sum(d_out * out.astype(jnp.float32), axis=-1)
    given = d_out, delta, log_sum

    def pull(here: Any, r: Any) -> Any:
        def whole() -> Any:
            return _pull(static, given, q, here[0], here[1], rows, here[2])

        def low() -> Any:
            k, v, keys = _halves(here, second=False)
            dq, d_keys = _pull(static, given, q, k, v, rows, keys)
            return dq, jax.tree.map(lambda x: _padded(x, False), d_keys)

        def high() -> Any:
            given_2, q_2, rows_2 = _halves((given, q, rows), True)
            dq, d_keys = _pull(static, given_2, q_2, here[0], here[1], rows_2, here[2])
            return _padded(dq, True), d_keys

        def none() -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (q, (k, v)))

        skip = None if keys.prefix is not None else none
        return _round(static, balanced, r, whole, low, high, skip)

    def body(state: Any, r: jax.Array) -> tuple[Any, None]:
        here, total = state
        dq, d_keys = jax.tree.map(jnp.add, total, pull(here, r))
        return (static.moved(here), (dq, static.moved(d_keys))), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (q, (k, v)))
    last = static.rounds(q.shape[1]) - 1
    (here, total), _ = jax.lax.scan(body, ((k, v, keys), zeros), jnp.arange(last))
    dq, d_keys = jax.tree.map(jnp.add, total, pull(here, last))
    dk, dv = static.moved(d_keys, -last)  # home
    d_sinks = None
    if sinks is not None:
        share = jnp.exp(sinks.astype(jnp.float32) - log_sum)
        d_sinks = -jnp.sum(share * delta, axis=(0, 1)).astype(sinks.dtype)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_sinks, None, None


_ring.defvjp(_forward, _backward)
