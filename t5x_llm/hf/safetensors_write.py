"""Writing safetensors directories, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.core.paths import check_writable
from t5x_llm.hf.drafts import make_draft, remove_abandoned
from t5x_llm.hf.safetensors_io import DTYPES, INDEX, INTEGERS, SINGLE

RECORDS = ("parity.json", "delta.json")  # what marks a directory as made here
_NAMES = {dtype: name for name, dtype in (DTYPES | INTEGERS).items()}


class TensorSpec(NamedTuple):
    """Dtype and shape of a tensor that is to be written."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


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
    layouts: Mapping[str, TensorSpec],
    make: Callable[[str], np.ndarray],
    max_shard_bytes: int,
) -> list[str]:
    """Writes tensors into one file, or shards with an index; one tensor is in memory at a time.

    Args:
      directory: exists.
      layouts: dtype and shape of every tensor, in the order they are to lie in.
      make: name to array, called once each.
      max_shard_bytes: limit on the data of one file.

    Returns:
      Names of the files written.

    Raises:
      CheckpointError: an array is not what its layout says.
    """
    sizes = {name: layout.nbytes for name, layout in layouts.items()}
    shards = plan_shards(sizes.items(), max_shard_bytes)
    weight_map: dict[str, str] = {}
    files: list[str] = []
    for i, names in enumerate(shards):
        one = len(shards) == 1
        file = SINGLE if one else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / file, {name: layouts[name] for name in names}, make)
        weight_map |= dict.fromkeys(names, file)
        files.append(file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        files.append(INDEX)
    return files


def write_file(
    path: pathlib.Path, layouts: Mapping[str, TensorSpec], make: Callable[[str], np.ndarray]
) -> None:
    """Writes tensors into one safetensors file, one in memory at a time."""
    # Wide types first, so that every tensor is aligned to its own.
    order = sorted(layouts, key=lambda name: -layouts[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dtype, shape = layouts[name]
        first, end = end, end + layouts[name].nbytes
        entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [first, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = make(name)
            if (array.dtype, array.shape) != layouts[name]:
                raise CheckpointError(
                    f"{name}: expected {layouts[name].dtype} of shape {layouts[name].shape}, made "
                    f"{array.dtype} of shape {array.shape}."
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # before the next is made


@contextmanager
def new_directory(target: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory beside ``target`` that becomes it if the body succeeds and vanishes if not.

    An earlier export at ``target`` is replaced only then; anything else there is left alone. What a
    killed export to ``target`` left beside it is removed first.

    Raises:
      ConfigError: if ``target`` holds something that is no export, or cannot be written.
      CheckpointError: if the disk is full or fails.
    """
    final = pathlib.Path(target).expanduser()
    check_writable("out_dir", final.parent)
    if final.exists() and not any((final / name).is_file() for name in RECORDS):
        if not final.is_dir() or any(final.iterdir()):
            raise ConfigError(
                "out_dir", str(final), "a new or empty directory, or an earlier export to replace"
            )
    remove_abandoned(final)
    draft, old, lock = make_draft(final)
    try:
        yield draft
        if final.exists():
            final.rename(old)
        draft.rename(final)
    except BaseException as e:
        if old.exists() and not final.exists():
            old.rename(final)
        if isinstance(e, OSError):
            raise CheckpointError(
                f"Cannot write {final}: {e}. Nothing was written, and what was there is as it was; "
                "free space or choose another directory."
            ) from e
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        os.close(lock)
