"""PEFT's tensors as an adapter of ours; and PEFT directories, from disk, checked."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.peft.adapter import PlainAdapter, Prompted, Site
from t5x_llm.hf.peft.config import PICKLE, PROMPTS, WEIGHTS, PeftConfig, read_peft_config
from t5x_llm.hf.peft.experts import unfused
from t5x_llm.hf.peft.layout import LinearLayers, LinearModule, Slot
from t5x_llm.hf.safetensors_io import SafetensorsReader

PROMPT = "prompt_embeddings"
_KEY = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.(?P<leaf>lora_A|lora_B|lora_E|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector|ia3_l)(\.weight)?$"
)
_COPY = re.compile(r"^base_model\.model\.(?P<module>.+)\.base_layer\.(weight|bias)$")
_SAVED = re.compile(r"^base_model\.model\.(?P<name>.+)$")


class PeftAdapter(NamedTuple):
    """A PEFT directory.

    Attributes:
      config: its adapter_config.json.
      tensors: by the names of its file.
    """

    config: PeftConfig
    tensors: dict[str, np.ndarray]


def open_adapter(directory: str | os.PathLike[str]) -> PeftAdapter:
    """Reads a PEFT directory.

    Raises:
      CheckpointError: files missing, damaged or pickles; a tensor with NaN or infinity.
      ConfigError: naming a field of adapter_config.json.
    """
    path = pathlib.Path(directory).expanduser()
    config = read_peft_config(path)
    if not os.path.lexists(path / WEIGHTS):
        why = "Download or copy it again."
        if os.path.lexists(path / PICKLE):
            why = (
                f"{PICKLE} is a pickle, which can run any code and is not read. Load it once with "
                "peft and save it: PeftModel.save_pretrained(directory) writes safetensors."
            )
        raise CheckpointError(f"{path}: no {WEIGHTS}. {why}")
    reader = SafetensorsReader(path, single=WEIGHTS)
    tensors = {}
    for name in reader.names():
        array = reader.read(name)
        if not np.all(np.isfinite(array.astype(np.float32))):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite: the training it comes from "
                "diverged. Take an earlier checkpoint of it."
            )
        tensors[name] = array
    if not tensors:
        raise CheckpointError(f"{path}: {WEIGHTS} holds no tensors: the training saved nothing.")
    return PeftAdapter(config, tensors)


class Sorted(NamedTuple):
    """Tensors of a PEFT file by what they are.

    Attributes:
      config: with the ranks and scales of experts that were fused.
      leaves: module to {leaf: array}.
      saved: whole tensors of ``modules_to_save``, by Hugging Face name.
    """

    config: PeftConfig
    leaves: dict[str, dict[str, np.ndarray]]
    saved: dict[str, np.ndarray]


def sort_tensors(found: PeftAdapter) -> Sorted:
    """Sorts the tensors of a file; experts fused in one tensor become one module each.

    Raises:
      CheckpointError: naming a tensor that belongs to no known method.
    """
    leaves: dict[str, dict[str, np.ndarray]] = {}
    saved: dict[str, np.ndarray] = {}
    config, tensors = unfused(found.config, found.tensors)
    for key, array in tensors.items():
        if match := _KEY.match(key):
            leaves.setdefault(match["module"], {})[match["leaf"]] = array
        elif _COPY.match(key):
            continue  # peft copies the weight of an adapted head or embedding
        elif (match := _SAVED.match(key)) and found.config.saved:
            saved[match["name"]] = array
        else:
            raise CheckpointError(
                f"{WEIGHTS}: {key} is no tensor of {found.config.kind} as peft names them."
            )
    return Sorted(config, leaves, saved)


def from_peft(found: PeftAdapter, layout: LinearLayers) -> PlainAdapter:
    """Makes an adapter of ours, its arrays stacked as the base's kernels are.

    Layers without an adapter get one that changes nothing. Where ranks differ along a stack, the
    smaller are filled with zeros and scales go into B.

    Args:
      found: as ``fitting.check_fits`` returns it.
      layout: of the base.

    Raises:
      CheckpointError: the adapter is of another base, naming a module or a shape.
      ConfigError: it has what an adapter of ours cannot hold, with the remedy.
    """
    if found.config.kind in PROMPTS:
        return PlainAdapter(found.config.kind, prompt=_prompt(found))
    held = sort_tensors(found)
    config = held.config
    if held.saved:
        raise ConfigError(
            "modules_to_save",
            sorted(held.saved),
            "none: whole modules are no adapter here",
            "Merge it with its base: t5x-llm adapter merge BASE ADAPTER OUT.",
        )
    whole = [n for n, leaves in held.leaves.items() if n not in layout.modules]
    for name in whole:
        raise ConfigError(
            "target_modules",
            name,
            "linear layers that are no other's too: an adapter here holds no more",
            "Merge it with its base: t5x-llm adapter merge BASE ADAPTER OUT --untie.",
        )
    sites: dict[str, list[tuple[LinearModule, Slot, dict[str, np.ndarray]]]] = {}
    for name, leaves in held.leaves.items():
        module = layout.modules[name]
        if config.kind == "ADALORA":
            leaves = _in_place(name, leaves, config)
        for slot, cut in _cut(module, leaves):
            sites.setdefault(slot.path, []).append((module, slot, cut))
    made = {path: _site(path, parts, config, layout) for path, parts in sites.items()}
    return PlainAdapter(
        config.kind, made, dropout=config.dropout, rank_stabilised=config.rank_stabilised
    )


def _in_place(
    name: str, leaves: Mapping[str, np.ndarray], config: PeftConfig
) -> dict[str, np.ndarray]:
    """AdaLoRA's factors with zeros where ranks were taken away, so that all have ``init_r``."""
    kept = np.asarray(config.kept.get(name, (True,) * config.rank), np.bool_)
    rank = len(leaves["lora_A"])
    if len(kept) != config.rank or int(kept.sum()) != rank:
        raise CheckpointError(
            f"{name}: the file keeps {rank} ranks, adapter_config.json says {int(kept.sum())} of "
            f"{len(kept)}, with init_r = {config.rank}."
        )
    a = np.zeros((config.rank, leaves["lora_A"].shape[1]), np.float32)
    b = np.zeros((leaves["lora_B"].shape[0], config.rank), np.float32)
    e = np.zeros((config.rank, 1), np.float32)
    a[kept], b[:, kept], e[kept] = leaves["lora_A"], leaves["lora_B"], leaves["lora_E"]
    return {"lora_A": a, "lora_B": b, "lora_E": e}


def _cut(
    module: LinearModule, leaves: dict[str, np.ndarray]
) -> list[tuple[Slot, dict[str, np.ndarray]]]:
    """The leaves of each slot; of a fused module cut into blocks where it is made of such."""
    paths = module.paths()
    whole = [(slot, leaves) for slot in module.slots]
    if len(paths) == 1 or "lora_A" not in leaves:
        return whole
    rank = len(leaves["lora_A"])
    if rank % len(paths):
        return whole
    each = rank // len(paths)
    cut: list[tuple[Slot, dict[str, np.ndarray]]] = []
    for slot in module.slots:
        first = paths.index(slot.path) * each
        own = slice(first, first + each)
        shape = list(slot.kernel_shape)[slot.count :]
        b = np.zeros((rank, *shape), np.float32)
        slot.b_to_ours(leaves["lora_B"].astype(np.float32), b)
        outside = np.delete(b, np.arange(own.start, own.stop), axis=0)
        if np.any(outside) or not np.any(b[own]):
            return whole
        part = dict(leaves, lora_A=leaves["lora_A"][own], lora_B=leaves["lora_B"][:, own])
        if "lora_E" in leaves:
            part["lora_E"] = leaves["lora_E"][own]
        cut.append((slot, part))
    return cut


def _site(
    path: str,
    parts: list[tuple[LinearModule, Slot, dict[str, np.ndarray]]],
    config: PeftConfig,
    layout: LinearLayers,
) -> Site:
    """One linear map's adapter from those of its layers and experts."""
    shape = layout.kernel(path)
    assert shape is not None
    slot = parts[0][1]
    lead = shape[: len(shape) - len(slot.kernel_shape)]
    inner = slot.kernel_shape
    ins, outs = inner[: slot.count], inner[slot.count :]
    if config.kind == "IA3":
        return _gains(parts, config, (lead, ins, outs))
    rank = max(len(leaves["lora_A"]) for _, _, leaves in parts)
    a = np.zeros((*lead, *ins, rank), np.float32)
    b = np.zeros((*lead, rank, *outs), np.float32)
    e = np.zeros((*lead, rank), np.float32) if config.kind == "ADALORA" else None
    magnitude = np.full((*lead, *outs), np.nan, np.float32) if config.dora else None
    scale = config.scale_of(parts[0][0].name)
    for module, its, leaves in parts:
        own = len(leaves["lora_A"])
        factor = config.scale_of(module.name) / scale
        low = its.leading
        one_a, one_b = np.zeros((*ins, own), np.float32), b[low][:own]
        its.a_to_ours(leaves["lora_A"].astype(np.float32), one_a)
        a[low][..., :own] = one_a
        b_hf = leaves["lora_B"].astype(np.float32)
        its.b_to_ours(b_hf if factor == 1 else (b_hf * factor).astype(np.float32), one_b)
        if e is not None:
            e[low][:own] = leaves["lora_E"][:, 0]
        if magnitude is not None:
            vector = leaves["lora_magnitude_vector"].astype(np.float32)[:, None]
            its.b_to_ours(vector, magnitude[low][None])
    if magnitude is not None and np.any(np.isnan(magnitude)):
        raise ConfigError(
            "target_modules",
            path,
            "every layer of it, as magnitudes of DoRA are needed in all",
            "Merge it with its base: t5x-llm adapter merge BASE ADAPTER OUT.",
        )
    return Site(a=a, b=b, scale=scale, e=e, magnitude=magnitude)


def _gains(
    parts: list[tuple[LinearModule, Slot, dict[str, np.ndarray]]],
    config: PeftConfig,
    shape: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> Site:
    lead, ins, outs = shape
    feeds = {config.feeds(module.name) for module, _, _ in parts}
    if len(feeds) > 1:
        raise ConfigError("feedforward_modules", list(config.feedforward), "every layer or none")
    feed = feeds.pop()
    gain = np.ones((*lead, *(ins if feed else outs)), np.float32)
    for _, slot, leaves in parts:
        vector = leaves["ia3_l"].astype(np.float32)
        if feed:
            slot.a_to_ours(vector, gain[slot.leading][..., None])
        else:
            slot.b_to_ours(vector, gain[slot.leading][None])
    return Site(gain=gain, feeds=feed)


def _prompt(found: PeftAdapter) -> Prompted:
    config = found.config
    if set(found.tensors) != {PROMPT}:
        raise CheckpointError(f"{WEIGHTS}: holds {sorted(found.tensors)[:3]}, expected {PROMPT}.")
    array = found.tensors[PROMPT].astype(np.float32)
    if config.sides != 1:
        raise ConfigError(
            "num_transformer_submodules",
            config.sides,
            "1: virtual tokens of the encoder, or of a decoder alone",
        )
    if config.kind != "PREFIX_TUNING":
        if array.shape != (config.tokens, config.token_width):
            raise CheckpointError(
                f"{WEIGHTS}: {PROMPT} has shape {list(array.shape)}, adapter_config.json says "
                f"{[config.tokens, config.token_width]}."
            )
        return Prompted(config.kind, embeddings=array)
    size, rest = divmod(config.token_width, config.heads)
    wanted = (config.tokens, config.layers * 2 * config.token_width)
    if rest or array.shape != wanted:
        raise CheckpointError(
            f"{WEIGHTS}: {PROMPT} has shape {list(array.shape)}, adapter_config.json says "
            f"{list(wanted)}."
        )
    cut = array.reshape(config.tokens, config.layers, 2, config.heads, size)
    keys, values = cut.transpose(2, 1, 0, 3, 4)
    return Prompted(config.kind, keys=keys, values=values)
