"""A checkpoint's parameters as arrays that are read in slices."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorstore as ts

from t5x_llm.core.errors import CheckpointError

# What TensorStore keeps of chunks it has decoded: the layers of a stacked parameter share chunks.
_CACHE_BYTES = 1 << 25


class LazyArray:
    """One array on disk: slices of it are read when they are asked for.

    Attributes:
      shape: of the whole.
      dtype: of the whole.
    """

    def __init__(self, store: ts.TensorStore):
        self._store = store
        self.shape = tuple(store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._store[index].read().result())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self._store.read().result())
        return array if dtype is None else array.astype(dtype)


def open_arrays(path: Any, under: str) -> dict[str, Any]:
    """The nested dict of arrays of one field of a saved state.

    Args:
      path: the directory of the state.
      under: the field, e.g. ``params``.

    Raises:
      CheckpointError: it is not there, or not as it was saved here.
    """
    try:
        metadata = json.loads((path / "_METADATA").read_text())
        ours = metadata["use_ocdbt"] and not metadata["use_zarr3"]
        keys = [
            tuple(key["key"] for key in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: its metadata cannot be read ({e}).") from e
    if not ours:
        raise CheckpointError(f"{path}: is not stored as checkpoints of this program are.")
    base = str(path) if "://" in str(path) else f"file://{path}"
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    tree: dict[str, Any] = {}
    for key in keys:
        if key[0] != under:
            continue
        node = tree
        for name in key[1:-1]:
            node = node.setdefault(name, {})
        kvstore = {"driver": "ocdbt", "base": f"{base}/", "path": f"{'.'.join(key)}/"}
        spec = {"driver": "zarr", "kvstore": kvstore, "recheck_cached_data": False}
        try:
            store = ts.open(spec, open=True, read=True, context=context).result()
        except (ValueError, OSError) as e:
            raise CheckpointError(f"{path}: {'.'.join(key)} cannot be read ({e}).") from e
        node[key[-1]] = LazyArray(store)
    return tree
