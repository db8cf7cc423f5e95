"""Our adapters as PEFT's tensors and config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.peft.adapter import PlainAdapter, Prompted, Site
from t5x_llm.hf.peft.config import PeftConfig
from t5x_llm.hf.peft.layout import LinearLayers, LinearModule, Slot, rows
from t5x_llm.hf.peft.targets import common_value, patterns_of, suffixes

PREFIX = "base_model.model."
# Modules whose weights transformers multiplies by without calling them, by model_type: peft refuses
# an adapter there, or would load one that nothing ever calls.
BYPASSED = {
    "mamba": ("dt_proj", "out_proj"),
    "falcon_mamba": ("dt_proj", "out_proj"),
    "mamba2": ("out_proj",),
    "jamba": ("dt_proj",),
}
# Model types whose experts, fused in transformers, peft adapts under their names in files.
EXPERTS = ("mixtral",)
_LEAVE = "Leave it out of the targets, or export merged weights (t5x-llm export RUN --merge)."
Read = Callable[[str], np.ndarray]


class Factors(NamedTuple):
    """A low-rank change of one Hugging Face module.

    Attributes:
      a: [r, in].
      b: [out, r].
      e: [r, 1], or None.
      magnitude: [out], or None.
      scale: the factor on b a.
    """

    a: np.ndarray
    b: np.ndarray
    e: np.ndarray | None
    magnitude: np.ndarray | None
    scale: float


def to_peft(
    adapter: PlainAdapter,
    layout: LinearLayers,
    base: str | None,
    read: Read | None,
    task: str,
    loadable: bool = True,
) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    """Makes the config and the tensors of a PEFT directory.

    Args:
      adapter: arrays, by our paths.
      layout: of the base model.
      base: name or path of the base model, as it is to be loaded.
      read: tensors of the base model by Hugging Face name; asked only for DoRA over a part of a
        fused module.
      task: ``task_type``.
      loadable: refuse what peft could not load; False where it is merged at once.

    Raises:
      ConfigError: naming a map of ours that peft could not load an adapter of.
    """
    if adapter.prompt is not None:
        if adapter.prompt.keys is not None and task == "SEQ_2_SEQ_LM":
            said = "another method: peft gives both attentions of a decoder the same prefix"
            raise ConfigError("Run.adapter", adapter.kind, said)
        return prompt_to_peft(adapter.prompt, base, task, layout.cached_heads)
    modules = adapted(adapter, layout)
    if loadable:
        check_loadable(modules, layout, adapter.kind)
    transposed = {m.transposed for m in modules}
    if len(transposed) > 1:
        raise ConfigError(
            "targets",
            [m.name for m in modules],
            "maps whose weights all lie one way, as peft has one fan_in_fan_out for all",
            "Leave the head out, or adapt it alone.",
        )
    common: dict[str, Any] = dict(
        kind=adapter.kind, base=base, task=task, transposed=transposed.pop()
    )
    targets = tuple(suffixes([m.name for m in modules], layout.names))
    if adapter.kind == "IA3":
        return _ia3(adapter, modules, layout, PeftConfig(**common, targets=targets))
    made = {m.name: factors(m, adapter.sites, read) for m in modules}
    tensors: dict[str, np.ndarray] = {}
    for name, found in made.items():
        dot = "" if adapter.kind == "ADALORA" else ".weight"
        tensors[f"{PREFIX}{name}.lora_A{dot}"] = found.a
        tensors[f"{PREFIX}{name}.lora_B{dot}"] = found.b
        if found.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = found.magnitude
    common |= dict(targets=targets, dropout=adapter.dropout)
    if adapter.kind == "ADALORA":
        return _adalora(made, tensors, PeftConfig(**common))
    experts = [m.name for m in modules if m.slots[0].piece.counters]
    # peft doubles rank and alpha of two experts' maps fused in one, which is right for alpha / r
    # alone; and takes their rank to be ``r``.
    stable = adapter.rank_stabilised and not experts
    if len({(len(made[name].a), made[name].scale) for name in experts}) > 1:
        raise ConfigError("targets", experts[0], "one rank and scale for all experts", _LEAVE)
    ranks = {name: len(f.a) for name, f in made.items()}
    alphas = {
        name: f.scale * (math.sqrt(len(f.a)) if stable else len(f.a)) for name, f in made.items()
    }
    alphas = {name: _rounded(alpha) for name, alpha in alphas.items()}
    usual = experts or list(made)
    rank: int = common_value(ranks[name] for name in usual)
    alpha: float = common_value(alphas[name] for name in usual)
    config = PeftConfig(
        **common,
        rank=rank,
        alpha=alpha,
        rank_stabilised=stable,
        dora=any(f.magnitude is not None for f in made.values()),
        ranks=patterns_of(ranks, rank, layout.names),
        alphas=patterns_of(alphas, alpha, layout.names),
    )
    return config, tensors


def adapted(adapter: PlainAdapter, layout: LinearLayers) -> list[LinearModule]:
    """The modules that an adapter changes, in the order of the weight map.

    Raises:
      ConfigError: naming a map that is no linear layer of the Hugging Face model.
    """
    paths: dict[str, list[LinearModule]] = {}
    for module in layout.modules.values():
        for path in module.paths():
            paths.setdefault(path, []).append(module)
    for path in adapter.sites:
        if path not in paths:
            remedy = "Leave it out of the targets, or merge the adapter instead of exporting it."
            raise ConfigError("targets", path, "a linear layer of the Hugging Face model", remedy)
        if cut := next((s for m in paths[path] for s in m.slots if s.part_of_inputs), None):
            raise ConfigError("targets", path, f"no part of {cut.piece.hf} along its inputs")
    return [m for m in layout.modules.values() if any(p in adapter.sites for p in m.paths())]


def check_loadable(modules: list[LinearModule], layout: LinearLayers, kind: str) -> None:
    """Raises ConfigError, naming the map, where peft could not load an adapter of a module."""
    names = {m.name for m in modules}
    for module in modules:
        path, leaf = module.paths()[0], module.name.rpartition(".")[2]
        if leaf in BYPASSED.get(layout.model_type, ()):
            said = f"no map like {module.name}, whose adapter transformers would pass by"
            raise ConfigError("targets", path, said, _LEAVE)
        if not module.slots[0].piece.counters:
            continue
        if kind != "LORA":
            raise ConfigError("targets", path, f"no experts for {kind} in peft", _LEAVE)
        if layout.model_type not in EXPERTS:
            said = f"no experts of {layout.model_type}: peft adapts those of {', '.join(EXPERTS)}"
            raise ConfigError("targets", path, said, _LEAVE)
        twin = module.name.replace(".w1", ".w3") if leaf == "w1" else ""
        twin = module.name.replace(".w3", ".w1") if leaf == "w3" else twin
        if twin and twin not in names:
            said = f"{module.name} and {twin} both, as they are one tensor there"
            raise ConfigError("targets", path, said, _LEAVE)


def _rounded(alpha: float) -> float:
    """alpha without what float64 added to a whole or short number."""
    return float(f"{alpha:.12g}")


def _part(array: np.ndarray | None, slot: Slot) -> np.ndarray | None:
    return None if array is None else np.asarray(array[slot.leading])


def factors(module: LinearModule, sites: Mapping[str, Site], read: Read | None) -> Factors:
    """The change of one module: that of its only map, or blocks of those fused in it.

    Maps whose A is the same to the bit, as in an adapter of a fused matrix that was read, share it;
    otherwise each has ranks of its own, whose columns of B are zero in the others' rows.
    """
    paths = [p for p in module.paths() if p in sites]
    lead = {path: next(s for s in module.slots if s.path == path) for path in paths}
    made = {p: lead[p].a_to_hf(_arr(_part(sites[p].a, lead[p]))) for p in paths}
    scale = sites[paths[0]].scale
    shared = len(paths) == 1 or bool(np.any(made[paths[0]]))
    shared = shared and all(
        np.array_equal(made[p], made[paths[0]])
        and sites[p].scale == scale
        and _same(_part(sites[p].e, lead[p]), _part(sites[paths[0]].e, lead[paths[0]]))
        for p in paths
    )
    a = made[paths[0]] if shared else np.concatenate([made[p] for p in paths])
    blocks = []
    for group in [paths] if shared else [[path] for path in paths]:
        rank = len(made[group[0]])
        parts = []
        for slot in module.slots:
            if slot.path in group:
                b = _arr(_part(sites[slot.path].b, slot))
                if sites[slot.path].scale != scale:
                    b = (b * (sites[slot.path].scale / scale)).astype(b.dtype)
            else:
                b = np.zeros((rank, *_outputs(slot)), a.dtype)
            parts.append(slot.b_piece(b))
        blocks.append(rows(parts))
    e = None
    if sites[paths[0]].e is not None:
        held = [paths[0]] if shared else paths
        e = np.concatenate([_arr(_part(sites[p].e, lead[p])) for p in held])[:, None]
    magnitude = None
    if any(sites[p].magnitude is not None for p in paths):
        magnitude = _magnitudes(module, sites, read)
    return Factors(a, np.concatenate(blocks, axis=1), e, magnitude, scale)


def _arr(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def _same(x: np.ndarray | None, y: np.ndarray | None) -> bool:
    return x is None or y is None or bool(np.array_equal(x, y))


def _outputs(slot: Slot) -> tuple[int, ...]:
    """Shape of the outputs of the whole map that a slot is (a slice) of."""
    shape = slot.kernel_shape
    return shape[slot.count :]


def _vector(
    module: LinearModule, of: Callable[[Slot], np.ndarray | None], otherwise: np.ndarray
) -> np.ndarray:
    """[out] from one vector a map of ours, [*outputs]; the rows of others as ``otherwise`` has."""
    parts, present = [], []
    for slot in module.slots:
        vector = of(slot)
        known = np.ones((1, *_outputs(slot)), np.bool_) & (vector is not None)
        filled = np.zeros(_outputs(slot), otherwise.dtype) if vector is None else vector
        parts.append(slot.b_piece(filled[None]))
        present.append(slot.b_piece(known))
    return np.where(rows(present)[:, 0], rows(parts)[:, 0], otherwise)


def _magnitudes(module: LinearModule, sites: Mapping[str, Site], read: Read | None) -> np.ndarray:
    """[out] magnitudes of DoRA; rows without an adapter keep the base's norm."""

    def of(slot: Slot) -> np.ndarray | None:
        return _part(sites[slot.path].magnitude, slot) if slot.path in sites else None

    norms = np.zeros(module.outputs, np.float32)
    if any(path not in sites for path in module.paths()):
        if read is None:
            expected = f"all of {', '.join(module.paths())} with DoRA"
            raise ConfigError("targets", list(sites), expected)
        weight = np.asarray(read(f"{module.name}.weight"), np.float64)
        norms = np.linalg.norm(weight, axis=0 if module.transposed else 1).astype(np.float32)
    return _vector(module, of, norms)


def _adalora(
    made: Mapping[str, Factors], tensors: dict[str, np.ndarray], config: PeftConfig
) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    """Keeps the singular values that are not 0, and says how many of how many they are."""
    alive = {name: _alive(f.e[:, 0]) for name, f in made.items() if f.e is not None}
    first = next(iter(made.values()))
    width = max(len(f.a) for f in made.values())
    alpha = _rounded(first.scale * (width + 1e-5))
    config = PeftConfig(
        kind="ADALORA",
        base=config.base,
        task=config.task,
        transposed=config.transposed,
        targets=config.targets,
        dropout=config.dropout,
        rank=width,
        alpha=alpha,
        kept={name: (*map(bool, a), *[False] * (width - len(a))) for name, a in alive.items()},
    )
    for name, f in made.items():
        assert f.e is not None
        key, keep = f"{name}.lora_", alive[name]
        e = f.e * np.float64(f.scale / config.scale_of(name))
        tensors[f"{PREFIX}{key}A"] = f.a[keep]
        tensors[f"{PREFIX}{key}B"] = np.ascontiguousarray(f.b[:, keep])
        tensors[f"{PREFIX}{key}E"] = e[keep].astype(f.e.dtype)
    return config, tensors


def _alive(values: np.ndarray) -> np.ndarray:
    """Returns which singular values are kept: before the first step, when all are 0, all."""
    return (values != 0) | ~np.any(values)


def _ia3(
    adapter: PlainAdapter, modules: list[LinearModule], layout: LinearLayers, config: PeftConfig
) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    tensors: dict[str, np.ndarray] = {}
    feeding: list[str] = []
    for module in modules:
        sites = [adapter.sites[p] for p in module.paths() if p in adapter.sites]
        feeds = {site.feeds for site in sites}
        gains = [site.gain for site in sites]
        if len(feeds) > 1 or any(gain is None for gain in gains):
            raise ConfigError("targets", module.paths(), "scales of inputs or of outputs alone")
        if feeds.pop():
            feeding.append(module.name)
            slots = [s for s in module.slots if s.path in adapter.sites]
            found = [
                slot.a_to_hf(_arr(_part(adapter.sites[slot.path].gain, slot))[..., None])
                for slot in slots
            ]
            whole = len(slots) == len(module.slots)
            if not whole or any(not np.array_equal(found[0], other) for other in found[1:]):
                raise ConfigError(
                    "targets",
                    module.paths(),
                    f"one scale of the inputs of {module.name}, which is one module in peft",
                )
            tensors[f"{PREFIX}{module.name}.ia3_l"] = found[0]
            continue

        def of(slot: Slot) -> np.ndarray | None:
            site = adapter.sites.get(slot.path)
            return None if site is None else _part(site.gain, slot)

        vector = _vector(module, of, np.ones(module.outputs, np.float32))
        tensors[f"{PREFIX}{module.name}.ia3_l"] = vector[:, None]
    ends = suffixes(feeding, layout.names)
    # peft asks for feedforward_modules among target_modules, word for word.
    others = suffixes([m.name for m in modules if m.name not in feeding], layout.names)
    made = PeftConfig(
        kind="IA3",
        base=config.base,
        task=config.task,
        transposed=config.transposed,
        targets=(*others, *ends),
        feedforward=tuple(ends),
    )
    return made, tensors


def prompt_to_peft(
    prompt: Prompted, base: str | None, task: str, cached: int | None = None
) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    """Makes the one tensor of virtual tokens: embeddings, or keys and values of every layer."""
    if prompt.embeddings is not None:
        n, width = prompt.embeddings.shape
        config = PeftConfig(prompt.kind, base, task, tokens=n, token_width=width, heads=1, layers=1)
        return config, {"prompt_embeddings": prompt.embeddings}
    assert prompt.keys is not None and prompt.values is not None
    both = np.stack([prompt.keys, prompt.values], axis=1)  # [L, 2, n, K, H]
    if cached is not None:
        both = np.repeat(both, cached // both.shape[3], axis=3)
    layers, _, n, heads, size = both.shape
    flat = both.transpose(2, 0, 1, 3, 4).reshape(n, layers * 2 * heads * size)
    config = PeftConfig(
        prompt.kind, base, task, tokens=n, token_width=heads * size, heads=heads, layers=layers
    )
    return config, {"prompt_embeddings": np.ascontiguousarray(flat)}
