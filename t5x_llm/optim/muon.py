"""Muon: momentum made orthogonal for matrices; Adam for everything else.

Jordan, https://kellerjordan.github.io/posts/muon (2024), in the form of Liu et al., 2502.16982
(section 2.2): Nesterov momentum, five Newton-Schulz iterations, and updates of one root mean square
for every shape, so that both parts share a learning rate and a weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from t5x_llm.optim.masks import decay_mask

# What is looked up or slides over tokens maps no vector to another: Adam's, as in the papers.
_NO_MATRIX = ("vocab", "positions", "conv")
_HEADS = ("heads", "kv_heads")


def matrix_axes(
    shape: tuple[int, ...], names: tuple[str | None, ...] | None
) -> MuonDimensionNumbers | None:
    """Returns which dimensions of a parameter are a matrix's input and which are its output.

    Layers, and experts that stand before a matrix, are matrices beside each other. Heads and what
    is in a head are one dimension: all heads of a layer are one matrix.

    Args:
      shape: of the parameter.
      names: logical names of its dimensions; without them a parameter of two dimensions is a
        matrix and no other is.

    Returns:
      None for what is no matrix.
    """
    if names is None:
        return MuonDimensionNumbers((0,), (1,)) if len(shape) == 2 and min(shape) > 1 else None
    if any(name in _NO_MATRIX for name in names):
        return None
    own = [i for i, name in enumerate(names) if name != "layers"]
    if len(own) > 2 and names[own[0]] == "experts":
        own = own[1:]
    kinds = [names[i] for i in own]
    if len(own) == 2 and min(shape[i] for i in own) > 1:
        return MuonDimensionNumbers((own[0],), (own[1],))
    if len(own) == 3 and kinds[1] == "head" and kinds[0] in _HEADS and kinds[2] != "head":
        return MuonDimensionNumbers((own[0], own[1]), (own[2],))
    if len(own) == 3 and kinds[2] == "head" and kinds[1] in _HEADS:
        return MuonDimensionNumbers((own[0],), (own[1], own[2]))
    return None


def scale_by_muon_and_adam(
    b1: float, b2: float, eps: float, momentum: float, update_rms: float, logical_axes: Any
) -> optax.GradientTransformation:
    """Muon's direction for matrices and Adam's for the rest, before decay and learning rate.

    Args:
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: added to the root of Adam's second moment.
      momentum: decay of Muon's momentum.
      update_rms: root mean square of an update of a matrix, at a learning rate of 1.
      logical_axes: tree like the parameters of tuples of logical names, or None.
    """

    def leaves(tree: Any, make: Callable[[Any, Any], Any]) -> Any:
        """``make`` of each leaf and its matrix; what is masked out of ``tree`` stays so."""
        # Adam's too: embeddings and norms, whatever their shape.
        names = {} if logical_axes is None else _by_path(logical_axes)
        inner = _by_path(decay_mask(tree, "matrices"))

        def one(path: Any, x: Any) -> Any:
            found = matrix_axes(x.shape, names.get(path)) if inner[path] else None
            return make(x, found)

        return jax.tree_util.tree_map_with_path(one, tree)

    def label(x: Any, found: MuonDimensionNumbers | None) -> str:
        return "adam" if found is None else "muon"

    def dimensions(tree: Any) -> Any:
        return leaves(tree, lambda x, found: found)

    def rescale(updates: Any, params: Any) -> Any:
        # An orthogonal matrix [m, n] has the root mean square 1 / sqrt(max(m, n)).
        return leaves(updates, lambda x, found: x * update_rms * math.sqrt(_larger(x, found)))

    direction = scale_by_muon(beta=momentum, eps=eps, weight_dimension_numbers=dimensions)
    parts = {
        "muon": optax.chain(direction, optax.stateless(rescale)),
        "adam": optax.scale_by_adam(b1, b2, eps),
    }
    return optax.partition(parts, lambda tree: leaves(tree, label))


def _larger(x: Any, matrix: MuonDimensionNumbers) -> int:
    """The larger side of a matrix."""
    sides = (matrix.reduction_axis, matrix.output_axis)
    return max(math.prod(x.shape[i] for i in side) for side in sides)


def _by_path(tree: Any) -> dict[Any, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return dict(flat)
