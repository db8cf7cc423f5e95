"""Adapters of ``nn.adapters``, with their configs, as plain arrays and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.peft.adapter import PlainAdapter, Site
from t5x_llm.hf.peft.targets import common_value, suffixes
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, stacked, unflatten
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.lora import LoRA
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


def to_plain(config: Adapter, tree: Mapping[str, Any]) -> PlainAdapter:
    """Makes plain arrays of an adapter's parameters.

    Args:
      config: of the run.
      tree: nested dict of the adapter's parameters, those of its start (``initial_``) too.

    Raises:
      ConfigError: the method has no form in PEFT.
    """
    leaves: dict[str, dict[str, np.ndarray]] = {}
    lead: dict[str, int] = {}
    for path, value in flatten(tree).items():
        if (found := site_path(path)) is not None:
            leaves.setdefault(found[0], {})[found[1]] = np.asarray(value, np.float32)
            lead[found[0]] = int(stacked(path)) + int(f"{_ENDING}." in path)
    if isinstance(config, LoRA):
        sites = {path: _low_rank(config, its, lead[path]) for path, its in leaves.items()}
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


def _low_rank(config: LoRA, leaves: Mapping[str, np.ndarray], lead: int) -> Site:
    """The site of one map, whose arrays have ``lead`` axes of repeats and experts."""
    a, b = leaves["a"], leaves["b"]
    scale = config.scaling(a.shape[-1])
    if "initial_a" in leaves:
        # PiSSA takes its start off the base: two adapters in one, of which the second is negative.
        a = np.concatenate([a, leaves["initial_a"]], axis=-1)
        b = np.concatenate([b, -leaves["initial_b"]], axis=lead)
    return Site(a=a, b=b, scale=scale, magnitude=leaves.get("magnitude"))


def from_plain(adapter: PlainAdapter, family: Family) -> tuple[Adapter, dict[str, Any]]:
    """Makes the config and the parameters of an adapter of ours.

    Args:
      adapter: plain arrays.
      family: the preset of the base.

    Returns:
      (config, nested dict of the adapter's parameters alone); maps that the config's targets name
      and the adapter does not have get one that changes nothing.

    Raises:
      ConfigError: there is no such method here.
    """
    if adapter.kind != "LORA":
        raise ConfigError(
            "peft_type",
            adapter.kind,
            "LORA, the one that a model here is given while it runs",
            "Merge another with its base: t5x-llm adapter merge BASE ADAPTER OUT.",
        )
    config = lora_of(adapter, family)
    abstract = flatten(Model(family.decoder(), adapter=config).abstract_params())
    wanted = {path: leaf for path, leaf in abstract.items() if site_path(path)}
    blank = {path: np.zeros(leaf.shape, np.float32) for path, leaf in wanted.items()}
    missing = [p for p in blank if p.endswith(".magnitude") and site_of(adapter, p) is None]
    if missing:
        raise ConfigError("target_modules", missing[0], "all maps that an end names, with DoRA")
    return config, unflatten(filled(adapter, config, blank))


def site_of(adapter: PlainAdapter, path: str) -> Site | None:
    """Returns the site of a parameter's path, or None where the adapter has none."""
    return adapter.sites.get((site_path(path) or ("", ""))[0])


def filled(
    adapter: PlainAdapter, config: LoRA, fresh: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns an adapter's parameters by path: those of ``adapter``, where it has none, the fresh.

    Raises:
      ConfigError: ranks or methods differ, naming the map and what to set.
    """
    out = dict(fresh)
    unused = set(adapter.sites)
    for path, value in fresh.items():
        site, part = site_of(adapter, path), (site_path(path) or ("", ""))[1]
        if site is None:
            continue
        unused.discard((site_path(path) or ("", ""))[0])
        if getattr(site, part, None) is None:
            raise ConfigError("Run.adapter", part, "the method of the adapter that is read")
        made = _leaf(site, part, config)
        if made.shape != value.shape:
            raise ConfigError(
                "LoRA.rank",
                value.shape,
                f"{made.shape} for {path}, as the adapter that is read has rank {site.rank}",
                "t5x-llm adapter show prints its ranks and targets.",
            )
        out[path] = made
    if unused:
        raise ConfigError(
            "LoRA.targets",
            config.targets,
            f"targets that name {sorted(unused)[0]} too, which the adapter that is read has",
        )
    return out


def _leaf(site: Site, part: str, config: LoRA) -> np.ndarray:
    value: np.ndarray | None = getattr(site, part)
    assert value is not None
    factor = site.scale / config.scaling(site.rank)
    if part == "b" and not math.isclose(factor, 1.0, rel_tol=1e-12):
        value = (value * factor).astype(np.float32)
    return value


def lora_of(adapter: PlainAdapter, family: Family) -> LoRA:
    """Returns the config of a LoRA that was read, by whose targets it is given to a model."""
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
    return LoRA(**fields)


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
