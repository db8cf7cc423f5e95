"""Stacks whose layers are not all alike, as config.json's ``layer_types`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from t5x_llm.core.errors import check_choice
from t5x_llm.nn.block import BlockConfig, GroupConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def grouped(kinds: Sequence[str], block: Callable[[str], BlockConfig]) -> tuple[GroupConfig, ...]:
    """The fewest groups of scanned blocks for layers of the given kinds.

    A pattern that repeats throughout is one group of several blocks; otherwise every run of equal
    layers is a group.

    Args:
      kinds: of each layer, in order.
      block: makes a layer of a kind.
    """
    for period in range(1, min(len(kinds), 8) + 1):
        if len(kinds) % period == 0 and list(kinds) == list(kinds[:period]) * (
            len(kinds) // period
        ):
            return (GroupConfig(tuple(map(block, kinds[:period])), len(kinds) // period),)
    runs: list[list[str]] = []
    for kind in kinds:
        if runs and runs[-1][0] == kind:
            runs[-1].append(kind)
        else:
            runs.append([kind])
    return tuple(GroupConfig((block(run[0]),), len(run)) for run in runs)


def check_layer_types(family: str, kinds: Sequence[str], known: Sequence[str]) -> None:
    """Raises ConfigError for a kind of layer that is not known."""
    for i, kind in enumerate(kinds):
        check_choice(f"{family}.layer_types[{i}]", kind, known)
