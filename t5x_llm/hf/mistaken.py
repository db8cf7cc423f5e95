"""Recognises what was given in place of a model, and says what to do about it."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from t5x_llm.core.errors import CheckpointError, ConfigError

_LFS = b"version https://git-lfs.github.com/spec/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DOWNLOAD = "hf download {0} --local-dir {1}"
_LISTED = 3
# Files of weights that are not read, and whose they are.
_FOREIGN = (
    ("consolidated*.safetensors", "in Mistral's own layout"),
    ("consolidated*.pth", "in Meta's own layout"),
    ("*.pth", "a pickle of torch's"),
    ("*.pt", "a pickle of torch's"),
    ("*.ckpt", "a pickle of torch's"),
    ("*.h5", "of TensorFlow"),
    ("*.msgpack", "of Flax"),
    ("*.onnx", "of ONNX"),
    ("*.npz", "of NumPy"),
)


def instead(head: bytes) -> str:
    """Returns a sentence on what a file is that begins with ``head``; '' where nothing is known."""
    if not head:
        return "is empty, 0 bytes, too short for any format. Download or copy it again."
    if head.startswith(_LFS):
        return (
            "is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its repository, "
            "or download it with `hf download`."
        )
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return (
            "is a web page, as servers send instead of a file where one must log in or accept a "
            "licence first. Do so, and download it again."
        )
    if head.startswith(b"GGUF"):
        return "is a GGUF file: give it a name that ends in .gguf, and give that as the model."
    if head.startswith(b"PK\x03\x04"):
        return "is a zip file, as torch.save writes; call it pytorch_model.bin if it is one."
    return ""


def head_of(path: pathlib.Path) -> bytes:
    """Returns the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(200)


def why_no_model(path: str | os.PathLike[str]) -> str:
    """Returns what a path is that is no directory with a config.json, and what to give instead.

    It reads names only, and never the network; '' where nothing is recognised.
    """
    text, place = os.fspath(path), pathlib.Path(path).expanduser()
    hub = re.sub(r"^(hf:/+|https?:/+(www\.)?huggingface\.co/)(models/)?", "", text).rstrip("/")
    if not place.exists():
        if hub != text:
            hub = "/".join(hub.split("/")[:2])
        if _HUB_ID.fullmatch(hub):
            local = "models/" + hub.split("/")[1]
            return (
                f"There is no such directory. If {hub} is the name of a model on the Hugging Face "
                f"hub: nothing is downloaded here; `{_DOWNLOAD.format(hub, local)}` does so, then "
                f"give {local}."
            )
        return "There is no such directory."
    if place.is_file():
        said = instead(head_of(place))
        return f"It {said}" if said else "It is a file; give the directory that holds config.json."
    return _why_no_model_directory(place)


def _why_no_model_directory(place: pathlib.Path) -> str:
    names = {p.name for p in place.iterdir()}
    snapshots = place if place.name == "snapshots" else place / "snapshots"
    if snapshots.is_dir():
        found = sorted(p for p in snapshots.iterdir() if (p / "config.json").exists())
        if not found:
            return (
                "It is a repository in the hub's download cache, without a config.json in its "
                "snapshots/: the download is not complete, or the repository holds another kind of "
                "model."
            )
        return (
            "It is a repository in the hub's download cache; the model's files lie below it: give "
            f"{_named(found)}."
        )
    if "adapter_config.json" in names:
        return adapter(place)
    if found := [p for p in _sorted(place) if p.suffix == ".gguf"]:
        return f"It holds GGUF files: give one itself, {_named(found)}."
    if "model_index.json" in names:
        return "It is a pipeline of diffusers, which makes images; no language model of its own."
    if _foreign(place) and names & {"params.json", "consolidated.safetensors"}:
        return f"{_foreign(place)} Download the repository's Hugging Face (transformers) files."
    if found := [p for p in _sorted(place) if p.name.startswith("models--")]:
        return f"It is the hub's download cache; give a model of it, such as {_named(found)}."
    if found := [p for p in _sorted(place) if (p / "config.json").is_file()]:
        return f"config.json lies one level deeper: give {_named(found)}."
    if "operative_config.gin" in {p.name for p in place.parent.iterdir()}:
        return f"It is a part of a run: give the run's directory, {place.parent}."
    return ""


def adapter(place: pathlib.Path) -> str:
    """Returns a sentence on a directory of peft's."""
    base = "its base model"
    file = place / "adapter_config.json"
    if file.is_file() and file.stat().st_size < 1_000_000:
        try:
            said = json.loads(file.read_bytes()).get("base_model_name_or_path")
        except (ValueError, AttributeError, RecursionError):
            said = None
        if isinstance(said, str) and said:
            base = f"its base model {said[:200]!r}"
    return (
        f"It holds an adapter (LoRA or another of peft's), which is no model without {base}. Give "
        f"that one, with --adapter {place} where a command takes it; or merge them first: t5x-llm "
        f"adapter merge BASE {place} OUT, or in peft, merge_and_unload()."
    )


def why_no_weights(place: pathlib.Path) -> str:
    """Returns what a directory with a config.json holds in place of its weights."""
    if (place / "adapter_config.json").exists():
        return adapter(place)
    files = _sorted(place)
    if found := [p for p in files if p.suffix == ".gguf"]:
        return f"Found GGUF: give the file itself, {_named(found)}."
    tensors = [p for p in files if p.suffix == ".safetensors"]
    if foreign := _foreign(place):
        return (
            f"{foreign} Download the Hugging Face (transformers) weights, or load and save the "
            "model with transformers."
        )
    if len(tensors) == 1:
        return f"Found {tensors[0].name}: call it model.safetensors if it is the whole model."
    if tensors:
        return (
            f"Found {len(tensors)} *.safetensors, {tensors[0].name} among them: the index that "
            "says which tensor is in which is missing; download it too."
        )
    if found := [p for p in files if p.suffix == ".bin"]:
        return f"Found {found[0].name}: convert it to safetensors first."
    return "It has no weights at all: the download is not complete."


def _foreign(place: pathlib.Path) -> str:
    for pattern, whose in _FOREIGN:
        if found := sorted(place.glob(pattern)):
            return f"Found {found[0].name}, {whose}, which is not read here."
    return ""


def _sorted(place: pathlib.Path) -> list[pathlib.Path]:
    return sorted(place.iterdir())


def _named(found: list[pathlib.Path]) -> str:
    more = f" or {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(str(p) for p in found[:_LISTED]) + more


_SHOWN = ("quant_method", "bits", "load_in_4bit", "load_in_8bit")
# Methods of quantization_config and the endings of tensors' names that they leave.
_QUANTISED = {
    "gptq or awq": re.compile(r"\.(qweight|qzeros|g_idx)$"),
    "bitsandbytes": re.compile(r"\.weight\.(absmax|quant_map|nested_absmax|quant_state\.\w+)$"),
    "fp8": re.compile(r"\.(weight_scale_inv|weight_scale|input_scale)$"),
    "compressed-tensors": re.compile(r"\.weight_(packed|shape|zero_point)$"),
    "mxfp4": re.compile(r"_proj_(blocks|scales)$"),
    "hqq": re.compile(r"\.(W_q|meta)$"),
    "aqlm": re.compile(r"\.(codes|codebooks)$"),
}


def check_quantised(path: pathlib.Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuses weights that are stored as codes, by what config.json or tensors' names say.

    Args:
      path: the directory.
      config: its config.json.
      names: of the stored tensors.

    Raises:
      ConfigError: config.json says so.
      CheckpointError: names say so.
    """
    remedy = (
        "Only float32, float16 and bfloat16 are read, or a GGUF file. Take the model that it was "
        "quantised from; or load it with transformers, call model.dequantize(), and save that with "
        "save_pretrained."
    )
    for field in ("quantization_config", "compression_config"):
        if isinstance(settings := config.get(field), dict) and settings:
            shown = {k: settings[k] for k in _SHOWN if k in settings} or settings
            said = "null: the weights are quantised"
            raise ConfigError(f"config.json {field}", shown, said, remedy)
    listed = list(names)
    if how := next((k for k, v in _QUANTISED.items() if any(map(v.search, listed))), ""):
        raise CheckpointError(f"{path}: the weights are quantised, by their names {how}. {remedy}")


# Tensors of training that a model for inference has no place for.
_LEFTOVERS = {
    "lora_": "an adapter that is not merged: call merge_and_unload() before save_pretrained",
    "v_head.": "the value head of a reward or PPO model, which is no language model",
    "score.": "the head of a classifier or reward model, which is no language model",
    "classifier.": "the head of a classifier, which is no language model",
    "visual.": "the vision part of a model that also sees",
    "vision_": "the vision part of a model that also sees",
    "audio_": "the audio part of a model that also hears",
}


def leftovers(names: Iterable[str]) -> str:
    """Returns a sentence on what tensors without a place come from; '' where nothing is known."""
    for name in names:
        for sign, what in _LEFTOVERS.items():
            if sign in name:
                return f"{name} is of {what}."
    return ""


_WRAPPERS = {
    "_orig_mod.": "torch.compile leaves that: save model._orig_mod.state_dict()",
    "module.": "DataParallel and DeepSpeed leave that: save model.module.state_dict()",
    "_fsdp_wrapped_module.": "FSDP leaves that: save its full state dict",
    "base_model.model.": "peft leaves that: call merge_and_unload() before save_pretrained",
    "language_model.": "the language part of a model that also sees or hears",
}
_PREFIX = re.compile(r"^(?:[A-Za-z_]\w*\.){1,4}")


def prefix_found(wanted: Collection[str], stored: Collection[str]) -> str:
    """Returns a sentence on the prefix that stored tensors have before the wanted names; or ''.

    Args:
      wanted: names that are not stored.
      stored: names in the file.
    """
    counts: dict[str, int] = {}
    for name in stored:
        whole = _PREFIX.match(name)
        parts = whole.group().split(".")[:-1] if whole else []
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth]) + "."
            if name[len(prefix) :] in wanted or f"model.{name[len(prefix) :]}" in wanted:
                counts[prefix] = counts.get(prefix, 0) + 1
    if not counts:
        return ""
    prefix = max(counts, key=counts.__getitem__)
    why = next((f" ({v})" for k, v in _WRAPPERS.items() if prefix.startswith(k)), "")
    return (
        f"{counts[prefix]} of the {len(stored)} stored names are wanted ones behind the prefix "
        f"{prefix!r}{why}. Rename them without it."
    )
