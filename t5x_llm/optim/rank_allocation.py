"""Allocation of a budget of ranks among adapted matrices (AdaLoRA, arXiv 2303.10512).

A matrix's update is a sum of triplets: column i of ``a``, the scalar ``e[i]``, row i of ``b``. The
triplets of all matrices compete for one budget, which falls from all of them to the target. Shapes
stay: a triplet without a place in the budget has its ``e`` set to zero, and may come back as long
as the budget still falls.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

TRIPLET = ("a", "e", "b")


@dataclasses.dataclass(frozen=True)
class RankBudget:
    """Number of triplets that are kept, by step (section 3.3, equation 9). Steps count from 1.

    Attributes:
      target_rank: mean rank of a matrix at the end.
      start: last step at which all triplets are kept.
      stop: step from which on the target is kept, and always the same triplets.
      every: steps between two allocations in between.
    """

    target_rank: int
    start: int
    stop: int
    every: int

    def at(self, step: Any, initial: int, target: int) -> jax.Array:
        """Computes the triplets kept at ``step``, of ``initial`` at first and ``target`` at last.

        In between it falls as the cube of the share of steps that is left.
        """
        left = 1.0 - (step - self.start) / (self.stop - self.start)
        left = jnp.clip(jnp.asarray(left, jnp.float32), 0.0, 1.0)
        falling = jnp.floor((initial - target) * left**3 + target).astype(jnp.int32)
        kept = jnp.where(step <= self.start, initial, falling)
        return jnp.where(step >= self.stop, target, kept)

    def allocates(self, step: Any) -> jax.Array:
        """Returns True at steps that choose the triplets anew."""
        falling = (step > self.start) & (step < self.stop) & (step % self.every == 0)
        return falling | (step == self.stop)


class RankState(NamedTuple):
    """State of ``allocate_ranks``.

    Attributes:
      count: int32 scalar, updates so far.
      sensitivity: moving average of \\|parameter x gradient\\|, a tree like the triplets.
      uncertainty: moving average of how far that varies, likewise.
      kept: by matrix, ``e``: bool, the triplets of the last allocation.
      masked: bool scalar, True if this update sets the other triplets to zero.
    """

    count: jax.Array
    sensitivity: Any
    uncertainty: Any
    kept: Any
    masked: jax.Array


def triplets(tree: Any) -> dict[str, dict[str, Any]]:
    """Returns the triplets of a tree of parameters: {dotted path: {'a': .., 'e': .., 'b': ..}}."""
    if not isinstance(tree, dict):
        return {}
    if _is_triplet(tree):
        return {"": {name: tree[name] for name in TRIPLET}}
    found: dict[str, dict[str, Any]] = {}
    for key in sorted(tree):
        inside = triplets(tree[key])
        found |= {f"{key}.{path}" if path else key: value for path, value in inside.items()}
    return found


def _is_triplet(tree: dict[str, Any]) -> bool:
    return set(TRIPLET) <= set(tree) and not any(isinstance(tree[n], dict) for n in TRIPLET)


def _picked(tree: Any, names: tuple[str, ...]) -> Any:
    """The tree of triplets alone, of each the arrays ``names``, at the paths that they have."""
    if _is_triplet(tree):
        return {name: tree[name] for name in names}
    inside = {k: _picked(x, names) for k, x in tree.items() if isinstance(x, dict)}
    return {key: x for key, x in inside.items() if x}


def triplet_scores(e: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Adds to the score of each ``e`` the mean ones of its vectors (equation 7): [..., r].

    Args:
      e: [..., r] scores of entries, stacked over layers and experts as may be.
      a: [..., *inputs, r] scores.
      b: [..., r, *outputs] scores.
    """
    stack = e.ndim - 1
    inputs = tuple(range(stack, a.ndim - 1))
    outputs = tuple(range(stack + 1, b.ndim))
    return e + jnp.mean(a, axis=inputs) + jnp.mean(b, axis=outputs)


def keep_best(scores: dict[str, jax.Array], count: Any) -> dict[str, jax.Array]:
    """Returns where the ``count`` largest of all scores are, of equal ones the first: bool."""
    flat = jnp.concatenate([x.reshape(-1) for x in scores.values()])
    order = jnp.argsort(-flat, stable=True)
    place = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    kept, start, found = place < count, 0, {}
    for path, x in scores.items():
        found[path] = kept[start : start + x.size].reshape(x.shape)
        start += x.size
    return found


def budget_sizes(tree: Any, budget: RankBudget) -> tuple[int, int]:
    """Returns the triplets of a tree, and how many of them the budget keeps at last."""
    shapes = [found["e"].shape for found in triplets(tree).values()]
    matrices = sum(math.prod(shape[:-1]) for shape in shapes)
    return sum(math.prod(shape) for shape in shapes), budget.target_rank * matrices


def allocate_ranks(budget: RankBudget, beta1: float, beta2: float) -> optax.GradientTransformation:
    """Follows the importance of triplets by their gradients, which it passes on as they are.

    It stands before everything that changes gradients. ``masked_ranks`` applies what it finds.

    Args:
      budget: how many triplets are kept.
      beta1: decay of the average of sensitivities.
      beta2: decay of the average of their uncertainties.
    """

    def init(params: Any) -> RankState:
        zeros = jax.tree.map(jnp.zeros_like, _picked(params, TRIPLET))
        ones = jax.tree.map(lambda e: jnp.ones(e.shape, bool), _picked(params, ("e",)))
        count, masked = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return RankState(count, zeros, jax.tree.map(jnp.copy, zeros), ones, masked)

    def update(grads: Any, state: RankState, params: Any = None) -> tuple[Any, RankState]:
        step = state.count + 1
        follow = step < budget.stop

        def average(old: jax.Array, new: jax.Array, beta: float) -> jax.Array:
            return jnp.where(follow, beta * old + (1.0 - beta) * new, old)

        weights, slopes = _picked(params, TRIPLET), _picked(grads, TRIPLET)
        now = jax.tree.map(lambda w, g: jnp.abs(w * g), weights, slopes)
        sensitivity = jax.tree.map(lambda o, n: average(o, n, beta1), state.sensitivity, now)
        varied = jax.tree.map(lambda n, s: jnp.abs(n - s), now, sensitivity)
        uncertainty = jax.tree.map(lambda o, n: average(o, n, beta2), state.uncertainty, varied)
        entries = triplets(jax.tree.map(jnp.multiply, sensitivity, uncertainty))
        scores = {path: triplet_scores(x["e"], x["a"], x["b"]) for path, x in entries.items()}
        best = keep_best(scores, budget.at(step, *budget_sizes(params, budget)))
        anew = budget.allocates(step)
        kept = _at_paths(lambda path, old: jnp.where(anew, best[path], old), state.kept)
        masked = anew | (step > budget.stop)
        return grads, RankState(step, sensitivity, uncertainty, kept, masked)

    return optax.GradientTransformation(init, update)


def masked_ranks(params: Any, opt_state: Any) -> Any:
    """Returns trained parameters after an update, with ``e`` zero where a triplet has no place.

    Args:
      params: the trained part.
      opt_state: the optimizer's state after the update; without ``allocate_ranks`` in it nothing
        is changed.
    """
    for state in _states(opt_state):
        params = _masked(params, state.kept, state.masked)
    return params


def _masked(tree: Any, kept: Any, masked: jax.Array) -> Any:
    if not isinstance(kept, dict):
        return jnp.where(masked & ~kept, jnp.zeros_like(tree), tree)
    return tree | {key: _masked(tree[key], x, masked) for key, x in kept.items()}


def kept_ranks(opt_state: Any) -> dict[str, Any]:
    """Returns which triplets the last allocation kept: {path of the matrix: bool [..., r]}.

    Without ``allocate_ranks`` in the optimizer's state it is empty.
    """
    found: dict[str, Any] = {}
    for state in _states(opt_state):
        _at_paths(found.__setitem__, state.kept)
    return found


def _states(opt_state: Any) -> list[RankState]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, RankState))
    return [x for x in leaves if isinstance(x, RankState)]


def _at_paths(make: Any, kept: Any) -> Any:
    """Maps ``kept`` by (dotted path of the matrix, array)."""

    def one(path: Any, x: Any) -> Any:
        return make(".".join(str(key.key) for key in path[:-1]), x)

    return jax.tree_util.tree_map_with_path(one, kept)


def orthogonality(tree: Any) -> jax.Array:
    """Mean Frobenius norm of P P^T - I over the vectors ``a`` and ``b`` of all matrices.

    It is equation 4's regulariser as a mean over matrices, and of norms that are not squared, so
    that its weight does not depend on the depth of the model.
    """
    norms = []
    for found in triplets(tree).values():
        e, a, b = (found[name].astype(jnp.float32) for name in ("e", "a", "b"))
        stack, rank = math.prod(e.shape[:-1]), e.shape[-1]
        for vectors in (
            a.reshape(stack, -1, rank).swapaxes(1, 2),
            b.reshape(stack, rank, -1),
        ):
            product = jnp.einsum("mik,mjk->mij", vectors, vectors)
            squares = jnp.sum(jnp.square(product - jnp.eye(rank)), axis=(1, 2))
            # The root has no slope at zero.
            safe = jnp.where(squares > 0, squares, 1.0)
            norms.append(jnp.where(squares > 0, jnp.sqrt(safe), 0.0))
    return jnp.mean(jnp.concatenate(norms)) if norms else jnp.float32(0)
