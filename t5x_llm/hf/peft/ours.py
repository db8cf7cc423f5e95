"""Adapters of ``nn.adapters``, with their configs, as plain arrays and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.peft.adapter import PlainAdapter, Site
from t5x_llm.hf.peft.config import PROMPTS
from t5x_llm.hf.peft.targets import common_value, suffixes
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, stacked, unflatten
from t5x_llm.nn.adapters.config import Adapter, LoRA
from t5x_llm.nn.adapters.roots import ADAPTER

_ENDING = f"_{ADAPTER}"


def site_path(path: str) -> tuple[str, str] | None:
    """Returns (linear map, leaf) of an adapter's parameter; None for other parameters.

    ``x.query.adapter.a`` is the leaf a of x.query, ``x.experts.up_adapter.a`` that of x.experts.up.
    """
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part == ADAPTER and i == len(parts) - 2:
            return ".".join(parts[:i]), parts[-1]
        if part.endswith(_ENDING) and i == len(parts) - 2:
            return ".".join([*parts[:i], part.removesuffix(_ENDING)]), parts[-1]
    return None


def parameter_path(site: str, leaf: str, experts: bool) -> str:
    """Returns the path of an adapter's parameter: the inverse of ``site_path``."""
    head, _, last = site.rpartition(".")
    return f"{head}.{last}{_ENDING}.{leaf}" if experts else f"{site}.{ADAPTER}.{leaf}"


def to_plain(config: Adapter, tree: Mapping[str, Any]) -> PlainAdapter:
    """Makes plain arrays of an adapter's parameters.

    Args:
      config: of the run.
      tree: nested dict of the adapter's parameters, those of its start (``initial_``) too.

    Raises:
      ConfigError: the method has no form in PEFT.
    """
    leaves: dict[str, dict[str, np.ndarray]] = {}
    for path, value in flatten(tree).items():
        if (found := site_path(path)) is not None:
            leaves.setdefault(found[0], {})[found[1]] = np.asarray(value, np.float32)
    if isinstance(config, LoRA):
        sites = {path: _low_rank(config, its) for path, its in leaves.items()}
        return PlainAdapter(
            "LORA", sites, dropout=config.dropout, rank_stabilised=config.rank_stabilised
        )
    raise no_form(config)


def no_form(config: Adapter) -> ConfigError:
    """Returns the error of a method that PEFT has no form of."""
    return ConfigError(
        "Run.adapter",
        config.method,
        "a method that PEFT has a form of",
        "It is a layer of its own, so merging is impossible too: keep the run, which generate and "
        "eval read.",
    )


def _low_rank(config: LoRA, leaves: Mapping[str, np.ndarray]) -> Site:
    a, b = leaves["a"], leaves["b"]
    scale = config.scaling(a.shape[-1])
    if "initial_a" in leaves:
        # PiSSA takes its start off the base: two adapters in one, of which the second is negative.
        a = np.concatenate([a, leaves["initial_a"]], axis=-1)
        axis = b.ndim - (leaves["b"].ndim - _rank_axis(leaves))
        b = np.concatenate([b, -leaves["initial_b"]], axis=axis)
    return Site(a=a, b=b, scale=scale, magnitude=leaves.get("magnitude"))


def _rank_axis(leaves: Mapping[str, np.ndarray]) -> int:
    """Returns the axis of b's rank: what stands before it is what stands before a's inputs."""
    a, b = leaves["a"], leaves["b"]
    rank = a.shape[-1]
    same = 0
    while same < min(a.ndim, b.ndim) - 1 and a.shape[same] == b.shape[same]:
        same += 1
    return next(i for i in range(same, -1, -1) if b.shape[i] == rank)


def from_plain(
    adapter: PlainAdapter, family: Family, **options: Any
) -> tuple[Adapter, dict[str, Any]]:
    """Makes the config and the parameters of an adapter of ours.

    Args:
      adapter: plain arrays.
      family: the preset of the base.
      options: fields of the config, instead of those of the adapter: dropout.

    Returns:
      (config, nested dict of the adapter's parameters alone); maps that the config's targets name
      and the adapter does not have get one that changes nothing.

    Raises:
      ConfigError: there is no such method here.
    """
    if adapter.kind != "LORA" or adapter.kind in PROMPTS:
        raise ConfigError("peft_type", adapter.kind, "LORA: others cannot be used here yet")
    config = _lora(adapter, family, options)
    model = Model(family.decoder(), adapter=config)
    wanted = {p: leaf for p, leaf in flatten(model.abstract_params()).items() if site_path(p)}
    out: dict[str, np.ndarray] = {}
    for path, leaf in wanted.items():
        name, part = site_path(path) or ("", "")
        site = adapter.sites.get(name)
        value = np.zeros(leaf.shape, np.float32)
        if site is not None:
            value = _leaf(site, part, config)
        elif part == "magnitude":
            raise ConfigError("target_modules", name, "every map that its end names, with DoRA")
        if value.shape != leaf.shape:
            raise CheckpointError(
                f"The adapter is of another base: {path} has shape {list(value.shape)}, and this "
                f"model asks for {list(leaf.shape)}."
            )
        out[path] = value
    return config, unflatten(out)


def _leaf(site: Site, part: str, config: LoRA) -> np.ndarray:
    value: np.ndarray | None = getattr(site, part)
    assert value is not None
    factor = site.scale / config.scaling(site.rank)
    if part == "b" and not math.isclose(factor, 1.0, rel_tol=1e-12):
        value = (value * factor).astype(np.float32)
    return value


def _lora(adapter: PlainAdapter, family: Family, options: Mapping[str, Any]) -> LoRA:
    sites = adapter.sites
    every = _linear_paths(family)
    ranks = {path: site.rank for path, site in sites.items()}
    rank: int = common_value(ranks.values())
    scale: float = common_value(site.scale for site in sites.values() if site.rank == rank)
    stable = adapter.rank_stabilised
    alpha = float(f"{scale * (math.sqrt(rank) if stable else rank):.12g}")
    others: dict[str, int] = {}
    for other in sorted(set(ranks.values()) - {rank}):
        chosen = [path for path, its in ranks.items() if its == other]
        unadapted = [path for path in every if path not in sites]
        ends = suffixes([*chosen, *unadapted], every)
        others |= {end: other for end, named in ends.items() if set(named) & set(chosen)}
    fields: dict[str, Any] = dict(
        rank=rank,
        alpha=alpha,
        dropout=adapter.dropout,
        targets=tuple(suffixes(sites, every)),
        rank_stabilised=stable,
        dora=any(site.magnitude is not None for site in sites.values()),
        ranks=others,
    )
    return LoRA(**fields | dict(options))


def _linear_paths(family: Family) -> list[str]:
    """Returns the paths of all maps that an adapter can go to."""
    shapes = flatten(Model(family.decoder()).abstract_params())
    found = []
    for path, leaf in shapes.items():
        if path.endswith(".kernel"):
            found.append(path.removesuffix(".kernel"))
        elif ".experts." in path and len(leaf.shape) - int(stacked(path)) == 3:
            found.append(path)
    return found
