"""Adapters of ``nn.adapters``, with their configs, as plain arrays and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.peft.adapter import PlainAdapter, Site
from t5x_llm.hf.peft.prompts import prompt_given, prompt_of
from t5x_llm.hf.peft.targets import common_value, suffixes
from t5x_llm.models.family import Family
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, stacked, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.nn.adapters.config import Adapter
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning
from t5x_llm.nn.adapters.roots import ADAPTER
from t5x_llm.nn.adapters.scaling import IA3
from t5x_llm.nn.adapters.targets import matches

_ENDING = f"_{ADAPTER}"
_KINDS: dict[type[Adapter], str] = {
    LoRA: "LORA",
    AdaLoRA: "ADALORA",
    IA3: "IA3",
    Prefix: "PREFIX_TUNING",
    Prompt: "PROMPT_TUNING",
}


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
    kind = kind_of(config)
    if kind is None:
        raise no_form(config)
    flat = {path: np.asarray(value, np.float32) for path, value in flatten(tree).items()}
    if isinstance(config, Prefix | Prompt | PTuning):
        return PlainAdapter(kind, prompt=prompt_of(kind, flat))
    leaves: dict[str, dict[str, np.ndarray]] = {}
    lead: dict[str, int] = {}
    for path, value in flat.items():
        if (found := site_path(path)) is not None:
            leaves.setdefault(found[0], {})[found[1]] = value
            lead[found[0]] = int(stacked(path)) + int(f"{_ENDING}." in path)
    if isinstance(config, IA3):
        sites = {
            path: Site(gain=its["scale"], feeds=any(matches(path, t) for t in config.inputs))
            for path, its in leaves.items()
        }
        return PlainAdapter(kind, sites)
    if isinstance(config, AdaLoRA):
        sites = {
            path: Site(a=its["a"], b=its["b"], e=its["e"], scale=config.scaling)
            for path, its in leaves.items()
        }
        return PlainAdapter(kind, sites, dropout=config.dropout)
    assert isinstance(config, LoRA)
    sites = {path: _low_rank(config, its, lead[path]) for path, its in leaves.items()}
    stable = config.rank_stabilised
    return PlainAdapter(kind, sites, dropout=config.dropout, rank_stabilised=stable)


def kind_of(config: Adapter) -> str | None:
    """Returns PEFT's name of a method, None where it has no form of it."""
    if isinstance(config, PTuning):
        return "P_TUNING" if config.form == "input" else "PREFIX_TUNING"
    return _KINDS.get(type(config))


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

    What AdaLoRA left becomes a LoRA, what an encoder of P-tuning made the rows of a prompt.

    Args:
      adapter: plain arrays.
      family: the preset of the base.

    Returns:
      (config, nested dict of the adapter's parameters alone); maps that the config's targets name
      and the adapter does not have get one that changes nothing.

    Raises:
      ConfigError: the model has no place for it.
    """
    config: Adapter
    if adapter.prompt is not None:
        return prompt_given(adapter.prompt, family)
    if adapter.kind == "IA3":
        every = linear_paths(family)
        feeds = {path: site for path, site in adapter.sites.items() if site.feeds}
        others = [path for path in adapter.sites if path not in feeds]
        config = IA3(tuple(suffixes(others, every)), tuple(suffixes(feeds, every)))
        blank = abstract_adapter(config, family, 1.0)
        gains = {path: _gain(adapter, path, value) for path, value in blank.items()}
        return config, unflatten(gains)
    adapter = folded(adapter)
    config = lora_of(adapter, family)
    blank = abstract_adapter(config, family, 0.0)
    missing = [p for p in blank if p.endswith(".magnitude") and site_of(adapter, p) is None]
    if missing:
        raise ConfigError("target_modules", missing[0], "all maps that an end names, with DoRA")
    return config, unflatten(filled(adapter, config, blank))


def abstract_adapter(config: Adapter, family: Family, value: float) -> dict[str, np.ndarray]:
    """Returns the parameters of an adapter by path, all of them ``value``."""
    tree = roots.split(Model(family.decoder(), adapter=config).abstract_params())
    leaves = flatten(tree[roots.ADAPTER])
    return {path: np.full(leaf.shape, value, np.float32) for path, leaf in leaves.items()}


def _gain(adapter: PlainAdapter, path: str, fresh: np.ndarray) -> np.ndarray:
    site = site_of(adapter, path)
    return fresh if site is None or site.gain is None else site.gain


def folded(adapter: PlainAdapter) -> PlainAdapter:
    """Returns a LoRA that does the same: singular values of AdaLoRA go into A."""
    if adapter.kind != "ADALORA":
        return adapter
    sites = {}
    for path, site in adapter.sites.items():
        assert site.a is not None and site.e is not None
        lead = site.e.ndim - 1
        shape = (*site.e.shape[:lead], *(1,) * (site.a.ndim - lead - 1), site.rank)
        sites[path] = dataclasses.replace(site, a=site.a * site.e.reshape(shape), e=None)
    return dataclasses.replace(adapter, kind="LORA", sites=sites)


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
    every = linear_paths(family)
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


def linear_paths(family: Family) -> list[str]:
    """Returns the paths of all maps that an adapter can go to."""
    shapes = flatten(Model(family.decoder()).abstract_params())
    found = []
    for path, leaf in shapes.items():
        if path.endswith(".kernel"):
            found.append(path.removesuffix(".kernel"))
        elif ".experts." in path and len(leaf.shape) - int(stacked(path)) == 3:
            found.append(path)
    return found
