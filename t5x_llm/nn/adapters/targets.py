"""Names of the linear layers that an adapter goes to, the same for every family."""

from __future__ import annotations

from collections.abc import Iterable

from t5x_llm.core.errors import ConfigError, nearest

# Parts of a block by what they do; ``Block`` calls its layers by these names.
KINDS = {
    "attention": ("attention", "cross_attention", "ssm", "time_mix", "ttt", "conv"),
    "feed_forward": ("mlp", "channel_mix"),
}
ALL = "all_linear"


def check_targets(field: str, targets: str | Iterable[str]) -> tuple[str, ...]:
    """Returns targets as a tuple.

    Raises:
      ConfigError: they are no names, or there is none.
    """
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    if not names or not all(isinstance(name, str) and name.strip(".") for name in names):
        raise ConfigError(
            field, targets, "names such as 'all_linear', 'attention', 'feed_forward' or 'mlp.up'"
        )
    return names


def matches(path: str, target: str) -> bool:
    """Returns True if ``target`` names the linear layer at ``path``.

    Args:
      path: dotted path in the model, such as ``group_0.block_0.attention.query``.
      target: ``all_linear`` (all layers of blocks, not the head), ``attention`` (and what a family
        has in its place), ``feed_forward`` (experts too), ``head``, or some names of a path that
        follow each other, as ``query``, ``mlp.up`` or ``block_1``.
    """
    parts = path.split(".")
    block = next((i for i, part in enumerate(parts) if part.startswith("block_")), None)
    if target == ALL:
        return block is not None
    if target in KINDS and block is not None:
        return parts[block + 1] in KINDS[target]
    asked = target.split(".")
    return any(parts[i : i + len(asked)] == asked for i in range(len(parts) - len(asked) + 1))


def chosen(paths: Iterable[str], targets: tuple[str, ...], field: str) -> list[str]:
    """Returns the paths that some target names, in their order.

    Raises:
      ConfigError: a target names none.
    """
    paths = list(paths)
    for target in targets:
        if not any(matches(path, target) for path in paths):
            names = sorted({part for path in paths for part in path.split(".")[-2:]})
            near = nearest(target, [*names, *KINDS, ALL])
            raise ConfigError(
                field,
                target,
                f"linear layers of the model: {ALL}, {', '.join(KINDS)} or some of "
                + ", ".join(names),
                f"Did you mean {near!r}?" if near else "",
            )
    return [path for path in paths if any(matches(path, target) for target in targets)]
