"""Checks that an adapter is of a base, by names and shapes, before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.peft.config import PROMPTS, PeftConfig
from t5x_llm.hf.peft.layout import LinearLayers, LinearModule
from t5x_llm.hf.peft.read import PROMPT, PeftAdapter, sort_tensors


def check_fits(
    found: PeftAdapter, layers: LinearLayers, shapes: Mapping[str, tuple[int, ...]]
) -> PeftAdapter:
    """Checks that an adapter is of a base, and says which way the base's weights lie.

    Args:
      found: the adapter.
      layers: the base's linear layers.
      shapes: of the base's tensors by Hugging Face name.

    Returns:
      The adapter, ``fan_in_fan_out`` as the base's layers have it: peft corrects it too.

    Raises:
      CheckpointError: naming a module, a tensor or a shape that the base does not have.
      ConfigError: a rank that is larger than the matrix.
    """
    if found.config.kind in PROMPTS:
        _check_width(found, layers)
        return found
    held = sort_tensors(found)
    unknown = [n for n in held.leaves if f"{layers.tied.get(n, n)}.weight" not in shapes]
    unknown += [n for n in held.saved if n not in shapes]
    if unknown:
        known = sorted(layers.modules)
        raise CheckpointError(
            f"The adapter is of another base: {len(unknown)} of its "
            f"{len(held.leaves) + len(held.saved)} modules are not in this model, e.g. "
            f"{unknown[0]}; those here are named like {known[0]}."
        )
    transposed = set()
    for name, leaves in held.leaves.items():
        shape = shapes[f"{layers.tied.get(name, name)}.weight"]
        if "lora_embedding_A" in leaves:
            _check_table(name, leaves, shape)
            continue
        module = layers.modules.get(name)
        if module is None and name in layers.tied:
            module = LinearModule(name, (), shape[1], shape[0], transposed=False)
        if module is None:
            raise ConfigError("target_modules", name, "linear layers and tables of embeddings")
        check_shapes(module, leaves, held.config)
        transposed.add(module.transposed)
    for name, array in held.saved.items():
        if tuple(array.shape) != tuple(shapes[name]):
            raise _other_base(name, array.shape, shapes[name])
    if len(transposed) > 1:
        raise ConfigError(
            "target_modules",
            sorted(held.leaves)[0],
            "modules whose weights all lie one way",
            "Merge it with peft, which looks at each module.",
        )
    way = transposed.pop() if transposed else found.config.transposed
    return found._replace(config=dataclasses.replace(found.config, transposed=way))


def _other_base(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"The adapter is of another base: {name} has shape {list(found)}, and this model asks for "
        f"{list(wanted)}."
    )


def _check_table(name: str, leaves: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    rank = leaves["lora_embedding_A"].shape[0]
    wanted = {"lora_embedding_A": (rank, shape[0]), "lora_embedding_B": (shape[1], rank)}
    if leaves.keys() != wanted.keys():
        raise CheckpointError(f"{name}: has {', '.join(leaves)}, expected {', '.join(wanted)}.")
    for leaf, its in wanted.items():
        if tuple(leaves[leaf].shape) != its:
            raise _other_base(f"{name}.{leaf}", leaves[leaf].shape, its)


def check_shapes(
    module: LinearModule, leaves: Mapping[str, np.ndarray], config: PeftConfig
) -> None:
    """Checks that the tensors of one module fit it and each other.

    Raises:
      CheckpointError: naming what is missing or of another shape.
      ConfigError: the rank is larger than the matrix.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    if config.kind == "IA3":
        feeds = config.feeds(module.name)
        wanted["ia3_l"] = (1, module.inputs) if feeds else (module.outputs, 1)
    else:
        wanted |= _low_rank_shapes(module, leaves, config)
    for leaf, shape in wanted.items():
        if leaf not in leaves:
            raise CheckpointError(f"{module.name}: has no {leaf}.")
        if tuple(leaves[leaf].shape) != shape:
            raise _other_base(f"{module.name}.{leaf}", leaves[leaf].shape, shape)
    if extra := leaves.keys() - wanted.keys():
        raise CheckpointError(f"{module.name}: {sorted(extra)[0]} is not of {config.kind}.")


def _low_rank_shapes(
    module: LinearModule, leaves: Mapping[str, np.ndarray], config: PeftConfig
) -> dict[str, tuple[int, ...]]:
    missing = {"lora_A", "lora_B"} - leaves.keys()
    if missing:
        raise CheckpointError(f"{module.name}: has no {', '.join(sorted(missing))}.")
    rank = leaves["lora_A"].shape[0]
    # peft allows ranks above the smaller side (a gate has one output); a fused matrix may hold one
    # adapter for each of its parts.
    most = max(module.inputs, module.outputs) * max(1, len(module.paths()))
    if rank > most:
        raise ConfigError(
            "r",
            rank,
            f"at most {most}: {module.name} maps {module.inputs} values to {module.outputs}",
            "The adapter is of another base, or damaged.",
        )
    wanted: dict[str, tuple[int, ...]] = {
        "lora_A": (rank, module.inputs),
        "lora_B": (module.outputs, rank),
    }
    if config.kind == "ADALORA":
        wanted["lora_E"] = (rank, 1)
    elif rank != config.rank_of(module.name):
        raise CheckpointError(
            f"{module.name}: the file has rank {rank}, adapter_config.json says "
            f"{config.rank_of(module.name)}. The two do not belong together."
        )
    if config.dora:
        wanted["lora_magnitude_vector"] = (module.outputs,)
    return wanted


def _check_width(found: PeftAdapter, layers: LinearLayers) -> None:
    """Raises CheckpointError unless virtual tokens are as wide as the model."""
    width = layers.shapes["embed.table"][1]
    if found.config.kind != "PREFIX_TUNING" and found.config.token_width != width:
        raise _other_base(PROMPT, found.tensors[PROMPT].shape, (found.config.tokens, width))
