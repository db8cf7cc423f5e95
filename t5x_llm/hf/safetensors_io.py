"""Reading safetensors directories, trusting nothing that a file says about itself.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON
header of {name: {dtype, shape, data_offsets}}, then the data. The safetensors library checks much
of that too, but its NumPy door knows no bfloat16, it does not say which tensor of a truncated file
is short by how much, and it knows nothing of ``model.safetensors.index.json``.
"""

from __future__ import annotations

import math
import os
import pathlib
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf.mistaken import head_of, instead, why_no_weights
from t5x_llm.hf.shards import inside, parse_json, read_index

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # the format's own bound
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Differences of bits (``hf.delta``); no model's weights.
INTEGERS: dict[str, np.dtype[Any]] = {"I16": np.dtype(np.int16), "I32": np.dtype(np.int32)}
# Bytes of the format's other types: buffers have them, weights that we read do not.
_OTHERS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


class Tensor(NamedTuple):
    """Dtype, shape and place of one tensor in a safetensors file."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of one file, every claim checked against the file's size.

    Raises:
      CheckpointError: naming the file, the tensor, and the expected and found bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if found := instead(head_of(path)):
            raise CheckpointError(f"{path}: {found}")
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
    def natural(value: object) -> bool:
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
    if dtype not in DTYPES and dtype not in _OTHERS:
        raise _unknown_dtype(path, name, dtype)
    itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else _OTHERS[dtype]
    expected = math.prod(shape) * itemsize
    if last - first != expected:
        raise CheckpointError(
            f"{path}: tensor {name}, {dtype} of shape {shape}, needs {expected} bytes; its "
            f"offsets span {last - first}."
        )
    return Tensor(path, dtype, tuple(shape), data + first, expected)


def _unknown_dtype(path: pathlib.Path, name: str, dtype: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: tensor {name} is {dtype}; accepted are {', '.join(DTYPES)}. Convert it with the "
        "library that wrote it."
    )


class SafetensorsReader:
    """The tensors of a directory (single file or sharded), read lazily one at a time.

    Args:
      directory: holds ``model.safetensors`` or ``model.safetensors.index.json`` and its shards.
      integers: whether tensors may be such.
      single: name of the one file, where it is another.

    Raises:
      CheckpointError: nothing there, or something in it is not what it says.
    """

    def __init__(
        self, directory: str | os.PathLike[str], integers: bool = False, single: str = SINGLE
    ):
        self.directory = pathlib.Path(directory)
        self._dtypes = DTYPES | (INTEGERS if integers else {})
        if single == SINGLE and os.path.lexists(self.directory / INDEX):
            self.tensors = self._sharded()
        elif os.path.lexists(self.directory / single):
            self.tensors = read_header(inside(self.directory, single, ".safetensors"))
        else:
            hint = why_no_weights(self.directory) if self.directory.is_dir() else ""
            raise CheckpointError(f"{self.directory}: no {single} and no {INDEX}. {hint}".rstrip())

    def _sharded(self) -> dict[str, Tensor]:
        index = self.directory / INDEX
        files: dict[str, dict[str, Tensor]] = {}
        found = {}
        for name, file in read_index(index, ".safetensors").items():
            if file not in files:
                files[file] = read_header(self.directory / file)
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

    def dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a tensor without reading it."""
        tensor = self.tensors[name]
        if tensor.dtype not in self._dtypes:
            raise _unknown_dtype(tensor.file, name, tensor.dtype)
        return self._dtypes[tensor.dtype]

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype it is stored in, as a read-only view of the mapped file."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing.")
        tensor = self.tensors[name]
        if tensor.dtype not in self._dtypes:
            raise _unknown_dtype(tensor.file, name, tensor.dtype)
        count = math.prod(tensor.shape)
        if count == 0:
            return np.empty(tensor.shape, self._dtypes[tensor.dtype])
        mapped = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.nbytes,))
        return mapped.view(np.ndarray).view(self._dtypes[tensor.dtype]).reshape(tensor.shape)
