"""Next-token cross entropy that never holds the logits of the whole batch.

The loss is the last thing the forward pass computes and the first the backward pass needs, so the
forward pass over a chunk of positions makes the gradients of that chunk at once (as Liger does,
arXiv 2410.10989, section 3.2): logits are computed once, never stored, never computed again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int

    Aux = dict[str, Float32[Array, "..."]]


class Pieces(NamedTuple):
    """Layout in which the kernel's gradient is added up, so that no device holds all of it.

    Attributes:
      lay_out: lays out an array of the kernel's shape, or of a block of its rows or columns of V.
      blocks: blocks of V, equal ones, that are computed and laid out one after another; the
        whole gradient of one is on every device for a moment.
    """

    lay_out: Callable[[Float[Array, "D V"]], Float[Array, "D V"]]
    blocks: int = 1


class _Static(NamedTuple):
    """Settings of a cross entropy that are known when it is traced."""

    z_loss: float
    softcap: float | None
    logit_scale: float | None
    transposed: bool
    chunk: int
    one_cpu: bool
    pieces: Pieces | None
    label_smoothing: float

    @property
    def flipped(self) -> bool:
        """The kernel's gradient is summed in the other layout: fewer bytes to transpose."""
        return self.one_cpu and self.transposed


def cross_entropy(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"] | Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Float[Array, "B T"],
    *,
    bias: Float[Array, " V"] | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    transposed: bool = False,
    chunk: int | None = None,
    one_cpu: bool = False,
    pieces: Pieces | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Float32[Array, ""], Aux]:
    """Summed negative log likelihood of ``targets``, plus z-loss and label smoothing.

    Args:
      hidden: [B, T, D] final hidden states.
      kernel: [D, V], or [V, D] if ``transposed`` (an embedding table), same dtype as ``hidden``.
      targets: [B, T] int32.
      mask: [B, T] float32 weights of the positions; 0 leaves one out.
      bias: [V] float32 added to hidden @ kernel, or None.
      z_loss: weight of log(Z)^2 (PaLM, arXiv 2204.02311, section 5).
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118).
      logit_scale: factor on the logits, before the cap.
      transposed: the layout of ``kernel``.
      chunk: positions of T processed at once; chosen by default. T need not be a multiple.
      one_cpu: use the forms that suit a single CPU device; the result is the same.
      pieces: how the gradient of ``kernel`` is added up on several devices; None leaves that to
        the compiler, which adds up the whole of it on each and sums over devices at the end.
      label_smoothing: share of the target's probability that is spread evenly over all V tokens
        (Szegedy et al., arXiv 1512.00567, section 7; ``torch.nn.CrossEntropyLoss``).

    Returns:
      (scalar float32 to differentiate by ``hidden``, ``kernel`` and ``bias``: sum(nll) + z-loss +
      smoothing, {'nll': [B, T] float32 weighted by ``mask``, without smoothing, 'z_loss': the
      z-loss term}, and with ``label_smoothing`` 'smoothing': what it adds to sum(nll)); no
      gradient flows through the second.
    """
    b, t, _ = hidden.shape
    if chunk is None:
        chunk = max(1, _cpu_rows(hidden.shape[-1]) // b) if one_cpu else 512
    chunk = -(-t // -(-t // min(chunk, t)))  # as few chunks as that allows, of equal length
    static = _Static(
        z_loss, softcap, logit_scale, transposed, chunk, one_cpu, pieces, label_smoothing
    )
    value, *parts = _loss(static, hidden, kernel, bias, targets, mask)
    aux = dict(zip(("nll", "z_loss", "smoothing"), parts, strict=False))
    return value, jax.tree.map(jax.lax.stop_gradient, aux)


def _cpu_rows(d_model: int) -> int:
    """Rows of logits held at once: few stay in cache, but for each chunk the kernel's gradient,
    D rows of it, is read and written once."""
    return min(max(d_model, 128), 512)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    static: _Static,
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, ...]:
    return _run(static, hidden, kernel, bias, targets, mask, gradients=False)[0]


def _loss_fwd(
    static: _Static,
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
) -> Any:
    return _run(static, hidden, kernel, bias, targets, mask, gradients=True)


def _loss_bwd(static: _Static, saved: Any, cotangents: Any) -> Any:
    d_hidden, d_kernel, d_bias = saved
    scale = cotangents[0]
    return (
        (d_hidden * scale).astype(d_hidden.dtype),
        (d_kernel * scale).astype(d_hidden.dtype),
        None if d_bias is None else d_bias * scale,
        None,
        None,
    )


_loss.defvjp(_loss_fwd, _loss_bwd)


def _run(
    static: _Static,
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
    *,
    gradients: bool,
) -> tuple[tuple[jax.Array, ...], Any]:
    """The loss chunk by chunk along T, so that a sharded batch stays as it lies."""
    b, t, d = hidden.shape
    mask = mask.astype(jnp.float32)
    count = -(-t // static.chunk)
    fill = count * static.chunk - t
    if fill:
        hidden, targets, mask = (
            jnp.pad(a, ((0, 0), (0, fill)) + ((0, 0),) * (a.ndim - 2))
            for a in (hidden, targets, mask)
        )

    def body(sums: Any, i: jax.Array) -> tuple[Any, Any]:
        x, y, w = (
            jax.lax.dynamic_slice_in_dim(a, i * static.chunk, static.chunk, axis=1)
            for a in (hidden, targets, mask)
        )
        terms, d_logits = _chunk(static, x, kernel, bias, y, w, gradients)
        if not gradients:
            return None, terms
        d_kernel, d_bias = sums
        dx, d_kernel = _chunk_gradients(static, x, kernel, d_logits, d_kernel)
        if bias is not None:
            d_bias = d_bias + jnp.sum(d_logits, axis=(0, 1), dtype=jnp.float32)
        if static.one_cpu and dx.dtype == jnp.bfloat16:
            # XLA's CPU backend in jax 0.10 widens all chunks of bfloat16 to write one; not bits.
            dx = jax.lax.bitcast_convert_type(dx, jnp.uint16)
        return (d_kernel, d_bias), (*terms, dx)

    zero = jnp.zeros(kernel.T.shape if static.flipped else kernel.shape, jnp.float32)
    zero = zero if static.pieces is None else static.pieces.lay_out(zero)
    zeros = (zero, None if bias is None else jnp.zeros(bias.shape, jnp.float32))
    sums, out = jax.lax.scan(body, zeros if gradients else None, jnp.arange(count))
    d_kernel, d_bias = sums if gradients else (None, None)
    if gradients and static.flipped:
        d_kernel = jax.lax.optimization_barrier(d_kernel).T
    whole = [jnp.moveaxis(a, 0, 1).reshape(b, t + fill, *a.shape[3:])[:, :t] for a in out]
    if gradients and whole[-1].dtype != hidden.dtype:
        whole[-1] = jax.lax.bitcast_convert_type(whole[-1], hidden.dtype)
    added = [jnp.sum(term) for term in (whole[1:-1] if gradients else whole[1:])]
    value = sum(added, start=jnp.sum(whole[0]))
    return (value, whole[0], *added), (whole[-1], d_kernel, d_bias) if gradients else None


def _chunk(
    static: _Static,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
    gradients: bool,
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """nll, z-loss and smoothing [B, c] of one chunk, and d(loss)/d(product) [B, c, V] like x."""
    form = "btd,vd->btv" if static.transposed else "btd,dv->btv"
    raw = jnp.einsum(form, x, kernel, preferred_element_type=jnp.float32)
    if bias is not None:
        raw = raw + bias
    logits = raw if static.logit_scale is None else raw * static.logit_scale
    if static.softcap is not None:
        tanh = jnp.tanh(logits / static.softcap)
        logits = static.softcap * tanh
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    found = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    terms: tuple[jax.Array, ...] = (
        (log_z - found) * mask,
        static.z_loss * jnp.square(log_z) * mask,
    )
    if static.label_smoothing:
        terms += (static.label_smoothing * (found - jnp.mean(logits, axis=-1)) * mask,)
    if not gradients:
        return terms, None
    pull = mask * (1.0 + 2.0 * static.z_loss * log_z)
    d_logits = jnp.exp(logits - log_z[..., None]) * pull[..., None]
    if static.label_smoothing:
        spread = static.label_smoothing / logits.shape[-1]
        goal = jnp.where(hit, 1.0 - static.label_smoothing + spread, spread)
        d_logits -= goal * mask[..., None]
    else:
        d_logits -= jnp.where(hit, mask[..., None], 0.0)
    if static.softcap is not None:
        d_logits *= 1.0 - jnp.square(tanh)
    if static.logit_scale is not None:
        d_logits *= static.logit_scale
    return terms, d_logits.astype(x.dtype)


def _chunk_gradients(
    static: _Static, x: jax.Array, kernel: jax.Array, d_logits: jax.Array, d_kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """d(loss)/dx of one chunk in x's dtype; ``d_kernel`` and its d(loss)/d(kernel), float32."""
    form = "btv,vd->btd" if static.transposed else "btv,dv->btd"
    dx = jnp.einsum(form, d_logits, kernel, preferred_element_type=jnp.float32).astype(x.dtype)
    if static.one_cpu:
        # The CPU's fast kernels contract the last axis of a row-major left operand; a transposed
        # array that is the reshape of a flat one is row-major.
        x_t = x.reshape(-1, x.shape[-1]).T
        x_t = jax.lax.optimization_barrier(x_t.reshape(-1)).reshape(x_t.shape)
        flat = d_logits.reshape(-1, d_logits.shape[-1])
        return dx, d_kernel + jnp.dot(x_t, flat, preferred_element_type=jnp.float32)
    form = "btd,btv->vd" if static.transposed else "btd,btv->dv"
    product = functools.partial(jnp.einsum, form, x, preferred_element_type=jnp.float32)
    if static.pieces is None:
        return dx, d_kernel + product(d_logits)
    lay_out, blocks = static.pieces
    if blocks == 1:
        return dx, d_kernel + lay_out(product(d_logits))
    axis = 0 if static.transposed else 1
    size = d_kernel.shape[axis] // blocks

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        part = jax.lax.dynamic_slice_in_dim(d_logits, i * size, size, axis=2)
        old = jax.lax.dynamic_slice_in_dim(total, i * size, size, axis)
        new = lay_out(old) + lay_out(product(part))
        return jax.lax.dynamic_update_slice_in_dim(total, new, i * size, axis), None

    return dx, jax.lax.scan(add, d_kernel, jnp.arange(blocks))[0]
