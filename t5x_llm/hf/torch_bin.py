"""Reading ``pytorch_model.bin`` without running what may be in it.

A ``.bin`` is a zip file around a pickle, and a pickle is a program. Only torch's weights-only
loader touches it, which knows tensors and containers and refuses every other call; where torch is
not installed the file is refused. Before that the zip's directory is checked: torch stores its
entries uncompressed, so no entry can be larger than the file.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.mistaken import head_of, instead
from t5x_llm.hf.shards import inside, read_index

FILE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# The weights-only loader of earlier versions could be made to run code (CVE-2025-32434).
_TORCH = (2, 6)
_MAX_ENTRIES = 1_000_000
_REMEDY = "Or save the model as safetensors: model.save_pretrained(directory) in transformers 5."


class TorchBinReader:
    """The tensors of ``pytorch_model.bin``, single or sharded, mapped and read one at a time.

    Args:
      directory: holds the file, or its index and shards.

    Raises:
      ConfigError: torch is not installed, or too old.
      CheckpointError: the files are damaged, or hold anything but tensors by name.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = pathlib.Path(directory)
        index = self.directory / INDEX
        if index.is_file():
            listed = read_index(index, ".bin")
            files = list(dict.fromkeys(listed.values()))
        else:
            listed, files = {}, [FILE]
        for file in files:
            check_zip(inside(self.directory, file, ".bin"))
        self._tensors: dict[str, Any] = {}
        for file in files:
            for name, tensor in _load(self.directory / file).items():
                if name in self._tensors:
                    raise CheckpointError(f"{self.directory}: tensor {name} is in two files.")
                if listed and listed.get(name) != file:
                    raise CheckpointError(f"{index}: does not list {name} in {file}.")
                self._tensors[name] = tensor
        for name in listed:
            if name not in self._tensors:
                raise CheckpointError(f"{index}: tensor {name} is not in {listed[name]}.")

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a tensor without reading it."""
        kind = str(self._tensors[name].dtype).removeprefix("torch.")
        if kind not in _DTYPES:
            raise CheckpointError(
                f"{self.directory}: tensor {name} is {kind}; accepted are {', '.join(_DTYPES)}."
            )
        return _DTYPES[kind]

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype it is stored in."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing.")
        dtype, tensor = self.dtype(name), self._tensors[name].contiguous()
        if dtype == _DTYPES["bfloat16"]:  # NumPy has none of its own, so torch cannot hand it over
            import torch

            return tensor.view(torch.int16).numpy().view(dtype)
        return tensor.numpy()


_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def check_zip(path: pathlib.Path) -> None:
    """Refuses what torch would not have written.

    Raises:
      CheckpointError: no zip file, compressed or overlapping entries, names that lead elsewhere.
    """
    head = head_of(path)
    if not head.startswith(b"PK") and (found := instead(head)):
        raise CheckpointError(f"{path}: {found}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as e:
        raise CheckpointError(
            f"{path}: not a file of torch 1.6 or later ({e}). Older ones are bare pickles and are "
            f"not read. {_REMEDY}"
        ) from e
    size = path.stat().st_size
    if len(entries) > _MAX_ENTRIES:
        raise CheckpointError(f"{path}: {len(entries)} entries.")
    names, end = set(), 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        parts = entry.filename.split("/")
        if entry.filename in names or ".." in parts or "" in parts[:-1] or "\\" in entry.filename:
            raise CheckpointError(f"{path}: the entry {entry.filename!r} is not one torch writes.")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"{path}: {entry.filename} is compressed or encrypted.")
        if entry.compress_size != entry.file_size:
            raise CheckpointError(f"{path}: {entry.filename} claims two sizes.")
        if entry.header_offset < end or entry.header_offset + entry.file_size > size:
            raise CheckpointError(f"{path}: {entry.filename} overlaps another or the file's end.")
        end = entry.header_offset + entry.file_size
        names.add(entry.filename)


def _load(path: pathlib.Path) -> dict[str, Any]:
    if not importlib.util.find_spec("torch"):
        raise ConfigError(
            "path",
            str(path),
            "safetensors where torch is not installed",
            f"Pickles are read by torch's weights-only loader alone: pip install torch. {_REMEDY}",
        )
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _TORCH:
        raise ConfigError(
            "torch",
            torch.__version__,
            f"{'.'.join(map(str, _TORCH))} or later",
            "The weights-only loader of earlier versions is not safe.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # whatever a malformed pickle leads to
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(
            f"{path}: torch's weights-only loader refuses it ({reason[:300]}). Nothing in it was "
            "run. Ask whoever made it for safetensors."
        ) from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor.")
        dense = tensor.layout == torch.strided and not tensor.is_quantized
        if not dense or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is not a plain dense tensor.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} of shape {list(tensor.shape)} claims more than is stored."
            )
    return content
