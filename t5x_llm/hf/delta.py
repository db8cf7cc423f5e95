"""A tuned model as its difference from a base that may not be passed on (Vicuna, 2023).

Two kinds:

* ``bits``: the difference of the bit patterns, as integers modulo 2^16 or 2^32. Applying it gives
  back every bit, whatever the values; checksums of the base and of the result prove it.
* ``sum``: ``tuned - base`` in the tuned model's dtype, which is how Vicuna's deltas were published
  and what FastChat's apply_delta adds. The sum of two rounded numbers need not be the tuned one.
  Where base and tuned are within a factor of two of each other the difference is exact (Sterbenz)
  and so is the result; elsewhere it is off by at most u * (|tuned - base| + |tuned|) and a little
  of second order, with u = 2^-11 in float16, 2^-8 in bfloat16 and 2^-24 in float32. ``make`` counts
  the values that do not come back and writes the largest error into delta.json.

Rows that the tuned model has beyond the base's (a grown vocabulary) are differences from zero, or
for deltas made elsewhere, from the mean of the base's rows.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError, check_choice
from t5x_llm.hf.convert import same_bits
from t5x_llm.hf.export import DTYPES, MAX_SHARD_BYTES
from t5x_llm.hf.import_ import BUFFERS
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.hf.safetensors_write import TensorSpec, new_directory, write_safetensors
from t5x_llm.hf.shards import inside, read_json
from t5x_llm.hf.source import MAX_CONFIG, ModelSource, open_source, read_config, tokenizer_of
from t5x_llm.text.comparing import differing_id

KINDS, GROWN = ("bits", "sum"), ("zeros", "mean")
RECORD = "delta.json"
_FILES = "files"  # config and tokenizer of a 'bits' delta, so that nobody takes it for a model
_COMPANION = (".json", ".model", ".txt", ".jinja")
_INTEGERS = {2: np.dtype(np.int16), 4: np.dtype(np.int32)}


class DeltaReport(NamedTuple):
    """Figures of a delta.

    Attributes:
      values: how many there are.
      inexact: how many do not come back to the bit.
      largest: the largest error among those.
    """

    values: int
    inexact: int
    largest: float


def make(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    kind: str = "bits",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> DeltaReport:
    """Writes the delta of ``tuned`` from ``base``, one tensor of each in memory at a time.

    Raises:
      ConfigError: ``out_dir`` cannot be written, or the models are not of one shape.
      CheckpointError: missing, damaged or malicious files.
    """
    check_choice("kind", kind, KINDS)
    first, second = open_source(base, "hf"), open_source(tuned, "hf")
    names = [n for n in second.weights.names() if not BUFFERS.search(n)]
    held = set(first.weights.names())
    layouts: dict[str, TensorSpec] = {}
    checksums: dict[str, list[int]] = {}
    for name in names:
        dtype, shape = second.weights.dtype(name), second.weights.shape(name)
        _base_shape(first, held, name, shape)
        layouts[name] = TensorSpec(_INTEGERS[dtype.itemsize] if kind == "bits" else dtype, shape)
    values = inexact = 0
    largest = 0.0

    def difference(name: str) -> np.ndarray:
        nonlocal values, inexact, largest
        there = np.asarray(second.weights.read(name))
        origin = _base(first, name, there.shape, there.dtype, "zeros")
        checksums[name] = [_crc(origin), _crc(there)]
        if kind == "bits":
            whole = _INTEGERS[there.dtype.itemsize]
            return there.view(whole) - origin.view(whole)
        delta = _rounded(np.subtract, there, origin)
        back = _rounded(np.add, origin, delta)
        values += there.size
        if not same_bits(back, there):
            error = np.abs(back.astype(np.float32) - there.astype(np.float32))
            inexact += int(np.count_nonzero(error))
            largest = max(largest, float(error.max()))
        return delta

    with new_directory(out_dir) as draft:
        write_safetensors(draft, layouts, difference, max_shard_bytes)
        files = draft / _FILES if kind == "bits" else draft
        files.mkdir(exist_ok=True)
        _copy_companions(second.path, files)
        record: dict[str, Any] = {"kind": kind, "checksums": checksums}
        record["dtypes"] = {name: second.weights.dtype(name).name for name in names}
        if kind == "sum":
            record |= {"values": values, "inexact": inexact, "largest_error": largest}
        (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return DeltaReport(values, inexact, largest)


def apply(
    base: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    grown: str = "zeros",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> bool:
    """Writes the tuned model, one tensor in memory at a time.

    Args:
      base: the model the delta was made from.
      delta: from ``make``, or a Hugging Face directory of differences, as Vicuna's.
      out_dir: new, empty, or an earlier export.
      grown: what rows beyond the base's are differences from; of deltas made elsewhere.
      max_shard_bytes: limit on the data of one safetensors file.

    Returns:
      Whether checksums prove that every bit is the tuned model's; False for a delta without them,
      or a sum that does not come back to the bit.

    Raises:
      CheckpointError: another base than the delta was made from, or a damaged delta.
    """
    check_choice("grown", grown, GROWN)
    first, path = open_source(base, "hf"), pathlib.Path(delta).expanduser()
    record = _record(path)
    kind, checksums = record["kind"], record["checksums"]
    if kind == "bits":
        reader: Any = SafetensorsReader(path, integers=True)
        files = path / _FILES
        read_config(files)
    else:
        reader, files = open_source(path, "hf").weights, path
    names = [n for n in reader.names() if not BUFFERS.search(n)]
    if checksums and set(checksums) != set(names):
        raise CheckpointError(f"{path}: {RECORD} and the weights name different tensors.")
    layouts = {name: TensorSpec(_dtype(record, reader, name), reader.shape(name)) for name in names}
    held = set(first.weights.names())
    for name, layout in layouts.items():
        _base_shape(first, held, name, layout.shape)
    proved = bool(checksums)
    if not proved:  # nothing else says that the delta is of this base
        _check_tokens(first, files)

    def added(name: str) -> np.ndarray:
        nonlocal proved
        change, dtype = np.asarray(reader.read(name)), layouts[name].dtype
        origin = _base(first, name, change.shape, dtype, "zeros" if checksums else grown)
        if checksums and _crc(origin) != checksums[name][0]:
            raise CheckpointError(
                f"{first.path}: {name} is not what the delta was made from: another base model, or "
                "another version or dtype of it."
            )
        if kind == "bits":
            found = (origin.view(change.dtype) + change).view(dtype)
        else:
            found = _rounded(np.add, origin, change)
        if checksums and _crc(found) != checksums[name][1]:
            if kind == "bits":
                raise CheckpointError(f"{path}: {name} is damaged: its sum has another checksum.")
            proved = False
        return found

    with new_directory(out_dir) as draft:
        write_safetensors(draft, layouts, added, max_shard_bytes)
        _copy_companions(files, draft, skip=(RECORD,))
    return proved


def _check_tokens(base: ModelSource, files: pathlib.Path) -> None:
    """Raises ConfigError if token ids of the base mean other text in a delta's tokenizer."""
    theirs, ours = tokenizer_of(files), base.tokenizer()
    if (
        theirs is None
        or ours is None
        or not (found := differing_id(theirs, ours, ("the delta", base.path.name)))
    ):
        return
    raise ConfigError(
        "delta",
        str(files),
        f"a delta from {base.path.name}, whose tokenizer it has, but {found}",
        "Rows of the two would be added that are not the same token's: give the base that the "
        "delta was made from.",
    )


def _record(path: pathlib.Path) -> dict[str, Any]:
    """delta.json, or what stands for it in a delta made elsewhere."""
    file = path / RECORD
    if not file.is_file():
        return {"kind": "sum", "checksums": {}, "dtypes": {}}
    record = read_json(path, RECORD, MAX_CONFIG)
    checksums, dtypes = record.get("checksums"), record.get("dtypes")
    ok = record.get("kind") in KINDS and isinstance(dtypes, dict) and isinstance(checksums, dict)
    if not isinstance(checksums, dict) or not ok or not all(map(_pair, checksums.values())):
        raise CheckpointError(f"{file}: is not a record that `t5x-llm delta make` wrote.")
    return record


def _pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def _dtype(record: dict[str, Any], reader: SafetensorsReader, name: str) -> np.dtype[Any]:
    if record["kind"] == "sum":
        return reader.dtype(name)
    dtype, whole = DTYPES.get(record["dtypes"].get(name)), reader.dtype(name)
    if dtype is None or _INTEGERS[dtype.itemsize] != whole:
        raise CheckpointError(f"{reader.directory}: {RECORD} gives {name} no dtype of its width.")
    return dtype


def _base_shape(base: ModelSource, held: set[str], name: str, shape: tuple[int, ...]) -> None:
    """Raises unless the base has the tensor, with at most as many rows."""
    if name not in held:
        raise ConfigError(f"{base.path.name} {name}", None, "a tensor; the base model has none")
    found = base.weights.shape(name)
    if found[1:] != shape[1:] or len(found) != len(shape) or found[:1] > shape[:1]:
        raise ConfigError(
            f"{base.path.name} {name}", list(found), f"the shape {list(shape)}, or fewer rows"
        )


def _base(
    base: ModelSource, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], grown: str
) -> np.ndarray:
    """The base's tensor in the tuned model's dtype, with rows for a grown vocabulary."""
    array = base.weights.read(name)
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array.astype(dtype, copy=False))
    if narrow.shape == shape:
        return narrow
    out = np.zeros(shape, dtype)
    out[: len(narrow)] = narrow
    if grown == "mean":
        out[len(narrow) :] = np.mean(array, axis=0, dtype=np.float64)
    return out


def _rounded(op: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a op b in their dtype, rounded once: float32 has digits enough for the narrow ones."""
    with np.errstate(over="ignore", invalid="ignore"):
        return op(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _copy_companions(
    source: pathlib.Path, target: pathlib.Path, skip: tuple[str, ...] = ()
) -> None:
    """Config, tokenizer and such: small plain files that are no weights."""
    for path in sorted(source.iterdir()):
        plain = (
            path.is_file() and path.suffix in _COMPANION and not path.name.endswith("index.json")
        )
        if plain and path.name not in skip and not path.name.startswith("parity"):
            shutil.copyfile(inside(source, path.name, ""), target / path.name)
