"""Next-token cross entropy that never holds the logits of the whole batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Aux = dict[str, jax.Array]


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    transposed: bool = False,
    chunk: int | None = None,
    platform: str = "tpu",
) -> tuple[jax.Array, Aux]:
    """Summed negative log likelihood of ``targets``, plus z-loss.

    Args:
      hidden: [B, T, D] final hidden states.
      kernel: [D, V], or [V, D] if ``transposed`` (an embedding table), same dtype as ``hidden``.
      targets: [B, T] int32.
      mask: [B, T] float32 weights of the positions; 0 leaves one out.
      z_loss: weight of log(Z)^2 (PaLM, arXiv 2204.02311, section 5).
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118).
      logit_scale: factor on the logits, before the cap.
      transposed: the layout of ``kernel``.
      chunk: positions of T processed at once; chosen by default.
      platform: 'cpu', 'gpu' or 'tpu': may change the form of the products, never the result.

    Returns:
      (scalar float32 to differentiate: sum(nll) + z_loss term,
       {'nll': [B, T] float32 weighted by ``mask``, 'z_loss': the z-loss term}); no gradient flows
      through the second.
    """
    b, t, _ = hidden.shape
    size = chunk or _chunk_length(t)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def rows(hidden: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        form = "btd,vd->btv" if transposed else "btd,dv->btv"
        logits = jnp.einsum(form, hidden, kernel, preferred_element_type=jnp.float32)
        if logit_scale is not None:
            logits *= logit_scale
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
        nll = (log_z - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)) * mask
        return nll, z_loss * jnp.square(log_z) * mask

    def body(_: None, i: jax.Array) -> tuple[None, tuple[jax.Array, ...]]:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=i * size, slice_size=size, axis=1
        )
        return None, rows(cut(hidden), cut(targets), cut(mask))

    if size == t:
        nll, z = rows(hidden, targets, mask)
    else:
        _, out = jax.lax.scan(body, None, jnp.arange(t // size))
        nll, z = (jnp.moveaxis(a, 0, 1).reshape(b, t) for a in out)
    z_term = jnp.sum(z)
    aux = {"nll": nll, "z_loss": z_term}
    return jnp.sum(nll) + z_term, jax.tree.map(jax.lax.stop_gradient, aux)


def _chunk_length(length: int, most: int = 512) -> int:
    """The largest divisor of ``length`` that is at most ``most``."""
    return max(c for c in range(1, min(length, most) + 1) if length % c == 0)
