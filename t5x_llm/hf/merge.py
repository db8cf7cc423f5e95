"""One model from several of the same config: averages, and the great circle between two."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.hf import parity
from t5x_llm.hf.convert import STORED, ids_of, write_directory
from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES, narrowed
from t5x_llm.hf.import_ import check_tokenizer, family_in, resolve
from t5x_llm.hf.safetensors_write import TensorSpec
from t5x_llm.hf.source import ModelSource, open_source
from t5x_llm.models.family import Family
from t5x_llm.models.weight_map import flatten, unflatten
from t5x_llm.text.comparing import check_same_tokenizer
from t5x_llm.text.tokenizer import Tokenizer

METHODS = ("linear", "slerp")
_CHUNK = 1 << 22
_PARALLEL = 0.9995  # cosine from which the great circle is a straight line


def merge(
    paths: Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    method: str = "linear",
    dtype: str = STORED,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    unproved: bool = False,
) -> parity.ParityReport:
    """Writes the merger of Hugging Face models; one tensor of each is in memory at a time.

    Args:
      paths: Hugging Face directories whose configs agree.
      out_dir: new, empty, or an earlier export.
      weights: one a model, adding up to 1; equal if None.
      method: 'linear', sum of weight times tensor, in float32; or 'slerp' of two (Shoemake 1985),
        each tensor on the great circle between them, the second's weight of the way.
      dtype: of the result; 'stored' keeps the first model's.
      max_shard_bytes: limit on the data of one safetensors file.
      unproved: as ``convert``.

    Raises:
      ConfigError: configs differ, naming the field; or weights that do not fit.
    """
    check_choice("method", method, METHODS)
    check_choice("dtype", dtype, (STORED, *DTYPES))
    shares = check_weights(weights, len(paths))
    if method == "slerp" and len(paths) != 2:
        raise ConfigError("method", method, f"linear for {len(paths)} models; slerp is of two")
    sources = [open_source(path) for path in paths]
    families = [family_in(source) for source in sources]
    for source, family in zip(sources[1:], families[1:], strict=True):
        _check_same(sources[0], families[0], source, family)
    family = families[0]
    tensors = [resolve(s.weights, f) for s, f in zip(sources, families, strict=True)]
    tokenizer = _one_tokenizer(sources, family.vocab_size)
    layouts = {
        name: TensorSpec(tensors[0].dtype(name) if dtype == STORED else DTYPES[dtype], shape)
        for name, shape in tensors[0].shapes.items()
    }

    def make(name: str) -> np.ndarray:
        parts = [t.read(name) for t in tensors]
        if method == "slerp":
            mixed = slerp(parts[0], parts[1], shares[1])
        else:
            mixed = average(parts, shares)
        return narrowed(name, mixed, layouts[name].dtype)

    listed = " + ".join(
        f"{share:g} {s.path.name}" for share, s in zip(shares, sources, strict=True)
    )
    return write_directory(
        out_dir,
        family,
        layouts,
        make,
        tokenizer=tokenizer,
        ids=ids_of(sources[0], tokenizer, family.vocab_size),
        generation=sources[0].generation(),
        dtype=tensors[0].stored if dtype == STORED else dtype,
        max_shard_bytes=max_shard_bytes,
        unproved=unproved,
        origin=f"Merged by t5x_llm ({method}: {listed})",
    )


def check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight a model, adding up to 1; equal ones if None. Raises ConfigError."""
    if count < 2:
        raise ConfigError("models", count, "two or more")
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise ConfigError("weights", list(weights), f"{count} numbers, one a model")
    if not abs(sum(weights) - 1.0) < 1e-6:
        raise ConfigError("weights", list(weights), f"numbers that add up to 1, not {sum(weights)}")
    return list(weights)


def _check_same(first: ModelSource, its: Family, other: ModelSource, others: Family) -> None:
    """Raises ConfigError unless two models have one shape.

    It compares configs written from our reading, which states what a config.json may leave open.
    """
    a, b = its.to_hf_config(), others.to_hf_config()
    for field in a.keys() | b.keys():
        if a.get(field) != b.get(field):
            raise ConfigError(
                f"{other.path.name} config.json {field}",
                b.get(field),
                f"{a.get(field)!r}, as {first.path.name} has it",
                "Only models of one shape can be merged.",
            )


def _one_tokenizer(sources: Sequence[ModelSource], vocab_size: int) -> Tokenizer | None:
    """Returns the tokenizer of all; of those that have none, nothing is known.

    Raises:
      ConfigError: two of them give token ids different meanings.
    """
    found: tuple[str, Tokenizer] | None = None
    for source in sources:
        mine = source.tokenizer()
        check_tokenizer(mine, vocab_size)
        if mine is None:
            continue
        if found is None:
            found = source.path.name, mine
            continue
        check_same_tokenizer(
            "models",
            mine,
            found[1],
            (source.path.name, found[0]),
            "Only models of one tokenizer can be merged: a row of their tables is one token's.",
        )
    return found and found[1]


def average(arrays: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """Sum of share times array, float32."""
    out = np.empty(arrays[0].shape, np.float32)
    flat = out.reshape(-1)
    parts = [np.ascontiguousarray(a).reshape(-1) for a in arrays]
    for first in range(0, flat.size, _CHUNK):
        window = slice(first, first + _CHUNK)
        # In float64, so that equal models average to themselves.
        total = sum(s * p[window].astype(np.float64) for s, p in zip(shares, parts, strict=True))
        flat[window] = total
    return out


def slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """The point ``share`` of the way from a to b on the great circle through both, float32."""
    x, y = (np.ascontiguousarray(z).reshape(-1) for z in (a, b))
    dot, xx, yy = (_dot(u, v) for u, v in ((x, y), (x, x), (y, y)))
    norm = np.sqrt(xx * yy)
    cosine = dot / norm if norm > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return average([a, b], [1.0 - share, share])
    angle = np.arccos(cosine)
    first, second = (np.sin(t * angle) / np.sin(angle) for t in (1.0 - share, share))
    return average([a, b], [float(first), float(second)])


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for first in range(0, a.size, _CHUNK):
        window = slice(first, first + _CHUNK)
        total += float(np.dot(a[window].astype(np.float64), b[window].astype(np.float64)))
    return total


class Averaged:
    """The weighted average of arrays that are read in slices; itself read in slices, float32."""

    def __init__(self, arrays: Sequence[Any], shares: Sequence[float]):
        self._arrays, self._shares = arrays, shares
        self.shape, self.dtype = tuple(arrays[0].shape), np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        return average([np.asarray(a[index]) for a in self._arrays], self._shares)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        array = self[...]
        return array if dtype is None else array.astype(dtype)


def averaged(trees: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> dict[str, Any]:
    """The average of parameter trees, such as ``Checkpointer.open_params`` gives."""
    flat = [flatten(tree) for tree in trees]
    for other in flat[1:]:
        for path in flat[0].keys() | other.keys():
            shapes = [tuple(t[path].shape) if path in t else None for t in (flat[0], other)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    "checkpoints", path, f"one shape, not {shapes[0]} and {shapes[1]}"
                )
    return unflatten({path: Averaged([t[path] for t in flat], shares) for path in flat[0]})
