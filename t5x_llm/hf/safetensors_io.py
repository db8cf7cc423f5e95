"""Reading and writing safetensors directories, trusting nothing that a file says about itself.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON
header of {name: {dtype, shape, data_offsets}}, then the data. The safetensors library checks much
of that too, but its NumPy door knows no bfloat16, it does not say which tensor of a truncated file
is short by how much, and it knows nothing of ``model.safetensors.index.json``.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.core.paths import check_writable

SINGLE = "model.safetensors"
PARITY = "parity.json"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # the format's own bound
MAX_INDEX = 100_000_000
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Tensor(NamedTuple):
    """Where one tensor lies."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def parse_json(path: pathlib.Path, text: str | bytes) -> dict[str, Any]:
    """A JSON object without repeated names.

    Raises:
      CheckpointError: naming ``path``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not valid JSON ({e}).") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one file, every claim checked against the file's size.

    Raises:
      CheckpointError: naming the file, the tensor, and the expected and found bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: {size} bytes is too short for a safetensors file.")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER or 8 + length > size:
            raise CheckpointError(
                f"{path}: claims a header of {length} bytes; the file has {size} bytes and the "
                f"format allows at most {MAX_HEADER}. Not a safetensors file, or truncated."
            )
        header = parse_json(path, file.read(length))
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = {name: _check(path, name, info, data) for name, info in header.items()}
    end = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            raise CheckpointError(
                f"{path}: tensor {name} starts at byte {tensor.start}, expected {end}: the data "
                "of a safetensors file neither overlaps nor leaves holes."
            )
        end = tensor.start + tensor.nbytes
        if end > size:
            raise CheckpointError(
                f"{path}: truncated: tensor {name} needs {tensor.nbytes} bytes up to byte {end}, "
                f"found {max(0, size - tensor.start)} ({size} bytes in the file)."
            )
    if end != size:
        raise CheckpointError(f"{path}: expected {end} bytes, found {size}.")
    return tensors


def _check(path: pathlib.Path, name: str, info: Any, data: int) -> Tensor:
    def natural(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    try:
        dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
        ok = isinstance(dtype, str) and all(map(natural, shape)) and len(shape) <= 32
        ok = ok and all(map(natural, offsets))
        first, last = offsets
    except (TypeError, KeyError, ValueError):
        ok = False
    if not ok:
        raise CheckpointError(f"{path}: the header's entry for tensor {name} is malformed.")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} is {dtype}; accepted are {', '.join(DTYPES)}. Convert it with "
            "the library that wrote it."
        )
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if last - first != expected:
        raise CheckpointError(
            f"{path}: tensor {name}, {dtype} of shape {shape}, needs {expected} bytes; its "
            f"offsets span {last - first}."
        )
    return Tensor(path, dtype, tuple(shape), data + first, expected)


class SafetensorsReader:
    """The tensors of a directory (single file or sharded), read lazily one at a time.

    Args:
      directory: holds ``model.safetensors`` or ``model.safetensors.index.json`` and its shards.

    Raises:
      CheckpointError: nothing there, or something in it is not what it says.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = pathlib.Path(directory)
        if (self.directory / INDEX).is_file():
            self.tensors = self._sharded()
        elif (self.directory / SINGLE).is_file():
            self.tensors = read_header(self._inside(SINGLE))
        else:
            pickles = sorted(p.name for p in self.directory.glob("*.bin"))
            hint = f" Found {pickles[0]}: convert it to safetensors first." if pickles else ""
            raise CheckpointError(f"{self.directory}: no {SINGLE} and no {INDEX}.{hint}")

    def _inside(self, name: Any) -> pathlib.Path:
        plain = isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name
        if not plain or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{self.directory / INDEX}: shard {name!r} is not a plain *.safetensors file name."
            )
        path = self.directory / name
        if not path.is_file():
            raise CheckpointError(f"{self.directory}: shard {name} is missing.")
        if not path.resolve().is_relative_to(_home(self.directory)):
            raise CheckpointError(f"{path}: is a link that leaves its directory.")
        return path

    def _sharded(self) -> dict[str, Tensor]:
        index = self.directory / INDEX
        if index.stat().st_size > MAX_INDEX:
            raise CheckpointError(f"{index}: larger than {MAX_INDEX} bytes.")
        weight_map = parse_json(index, index.read_bytes()).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: has no weight_map.")
        files: dict[str, dict[str, Tensor]] = {}
        found = {}
        for name, file in weight_map.items():
            path = self._inside(file)
            if file not in files:
                files[file] = read_header(path)
            if name not in files[file]:
                raise CheckpointError(f"{index}: tensor {name} is not in {file}.")
            found[name] = files[file][name]
        extra = {
            f"{name} in {f}" for f, held in files.items() for name in held if name not in found
        }
        if extra:
            raise CheckpointError(f"{index}: does not list {', '.join(sorted(extra)[:5])}.")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype it is stored in, as a read-only view of the mapped file."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing.")
        tensor = self.tensors[name]
        count = math.prod(tensor.shape)
        if count == 0:
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        mapped = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.nbytes,))
        return mapped.view(np.ndarray).view(DTYPES[tensor.dtype]).reshape(tensor.shape)


def _home(directory: pathlib.Path) -> pathlib.Path:
    """The directory that shards may resolve into.

    The hub's download cache keeps ``snapshots/<revision>/x.safetensors`` as links to ``blobs`` of
    the same repository, so there the repository is the home.
    """
    real = directory.resolve()
    in_cache = real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--")
    return real.parent.parent if in_cache else real


def plan_shards(sizes: Iterable[tuple[str, int]], max_shard_bytes: int) -> list[list[str]]:
    """Consecutive names packed so that no shard exceeds the limit, but for a lone large tensor."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, nbytes in sizes:
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    return shards


def write_safetensors(
    directory: pathlib.Path,
    tensors: Iterable[tuple[str, Callable[[], np.ndarray]]],
    sizes: dict[str, int],
    max_shard_bytes: int,
) -> list[str]:
    """Writes tensors into one file or shards with an index; one shard is in memory at a time.

    Args:
      directory: exists.
      tensors: (name, thunk) pairs.
      sizes: bytes of each tensor, in the same order.
      max_shard_bytes: limit on the data of one file.

    Returns:
      Names of the files written.
    """
    shards = plan_shards(sizes.items(), max_shard_bytes)
    thunks = dict(tensors)
    weight_map: dict[str, str] = {}
    files: list[str] = []
    for i, names in enumerate(shards):
        one = len(shards) == 1
        file = SINGLE if one else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        arrays = {name: np.asarray(thunks[name](), order="C") for name in names}
        save_file(arrays, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        files.append(file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        files.append(INDEX)
    return files


@contextmanager
def new_directory(target: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory beside ``target`` that becomes it if the body succeeds and vanishes if not.

    An earlier export at ``target`` is replaced only then; anything else there is left alone.

    Raises:
      ConfigError: if ``target`` holds something that is no export, or cannot be written.
      CheckpointError: if the disk is full or fails.
    """
    final = pathlib.Path(target).expanduser()
    check_writable("out_dir", final.parent)
    if final.exists() and not (final / PARITY).is_file():
        if not final.is_dir() or any(final.iterdir()):
            raise ConfigError(
                "out_dir", str(final), "a new or empty directory, or an earlier export to replace"
            )
    token = uuid.uuid4().hex[:8]
    draft = final.parent / f".{final.name}.{token}.tmp"
    old = final.parent / f".{final.name}.{token}.old"
    draft.mkdir()
    try:
        yield draft
        if final.exists():
            final.rename(old)
        draft.rename(final)
    except BaseException as e:
        if old.exists() and not final.exists():
            old.rename(final)
        if isinstance(e, (OSError, SafetensorError)):
            raise CheckpointError(
                f"Cannot write {final}: {e}. Nothing was written, and what was there is as it was; "
                "free space or choose another directory."
            ) from e
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
