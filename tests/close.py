"""Comparison of arrays up to rounding: the tolerance follows from dtype, length of sums and scale.

Two ways to add ``n`` numbers differ by at most ``2 n u sum|x|`` to first order, where ``u`` is half
the dtype's epsilon (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). The
kernels of two machines are two such ways. So the tolerance is ``epsilon * roundings * scale``; of
many roundings, which do not all err to one side, ``LAMBDA sqrt(n)`` count (Higham and Mary, A New
Approach to Probabilistic Rounding Error Analysis, 2019, theorem 2.4: more with odds of 1 in 10^13).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

# Elementary functions (exp, rsqrt, tanh) and the products around a sum, in units of epsilon.
ELEMENTARY = 8
LAMBDA = 8
# Called with each observed difference over the one allowed; set by the plugin ``margins``.
recorders = []


def tolerance(desired, terms, dtype, scale=None):
    """Returns the absolute difference that rounding explains, as a float.

    Args:
        desired: the array of reference; its largest magnitude is the scale where none is given.
        terms: roundings that follow one another on the longest way to one value: the lengths of
            the sums passed through, added up over layers and over steps of a recurrence.
        dtype: type in which the coarser side computes.
        scale: magnitude of what is summed, where sums cancel and the result is small beside it.
    """
    if scale is None:
        scale = np.max(np.abs(desired), initial=0.0)
    roundings = min(terms, LAMBDA * math.sqrt(terms)) + ELEMENTARY
    return float(jnp.finfo(dtype).eps) * roundings * float(scale)


def assert_close(actual, desired, terms, *, dtype=None, scale=None):
    """Raises AssertionError unless two arrays, or trees of them, agree up to rounding.

    ``dtype`` is by default the coarsest floating type on either side. Each leaf of a tree is held
    against its own scale, unless ``scale`` is given. ``terms`` is as in ``tolerance``.
    """
    expected, structure = jax.tree_util.tree_flatten_with_path(desired)
    got = structure.flatten_up_to(actual)
    for (path, d), a in zip(expected, got, strict=True):
        _assert_leaf(a, d, terms, dtype, scale, jax.tree_util.keystr(path))


def _assert_leaf(actual, desired, terms, dtype, scale, name):
    dtype = dtype or _coarser(actual, desired)
    actual, desired = _wide(actual), _wide(desired)
    assert actual.shape == desired.shape, (name, actual.shape, desired.shape)
    allowed = tolerance(desired, terms, dtype, scale)
    observed = np.max(np.abs(actual - desired), initial=0.0)
    assert_within(observed, allowed, f"{name or 'array'}, {terms} terms in {jnp.dtype(dtype).name}")


def assert_within(observed, allowed, what=""):
    """Raises AssertionError unless ``0 <= observed <= allowed``; its margin is recorded."""
    for record in recorders:
        record(observed, allowed)
    # Negated, as it is to fail where a value is not a number.
    if not 0 <= observed <= allowed:
        raise AssertionError(f"{what}: differs by {observed:.3g}, allowed is {allowed:.3g}")


def _wide(x):
    return np.asarray(x).astype(np.float64)


def _coarser(*arrays):
    types = [jnp.dtype(getattr(x, "dtype", np.float64)) for x in arrays]
    floating = [t for t in types if jnp.issubdtype(t, jnp.floating)]
    if not floating:
        raise TypeError(f"no floating type among {types}: say dtype=")
    return max(floating, key=lambda t: float(jnp.finfo(t).eps))
