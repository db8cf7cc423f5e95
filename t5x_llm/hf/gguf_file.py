"""The GGUF container: metadata and where tensors lie, every claim checked before it is believed.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, then
keys with typed values, then tensor descriptions, then data at aligned offsets. Read here rather
than by the ``gguf`` package, which trusts counts and lengths; that package still dequantises.
"""

from __future__ import annotations

import math
import mmap
import os
import pathlib
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.mistaken import head_of, instead

_NUMBERS = {
    0: np.uint8,
    1: np.int8,
    2: np.uint16,
    3: np.int16,
    4: np.uint32,
    5: np.int32,
    6: np.float32,
    7: np.bool_,
    10: np.uint64,
    11: np.int64,
    12: np.float64,
}
_STRING, _ARRAY = 8, 9
PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# ggml's number of a type to (name, elements in a block, bytes of a block): ggml.c, type_traits.
TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110)},
    **{12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98)},
    **{19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110)},
    **{22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56)},
    **{34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17)},
    **{9: ("Q8_1", 32, 40), 15: ("Q8_K", 256, 292), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    28: ("F64", 1, 8),
}
# Types that ggml had and has no more; their blocks are in another order than those of today.
_REMOVED = {
    **{4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"},
}
_MAX_STRING = 1 << 26
_MAX_ITEMS = 1 << 24


class GgufTensor(NamedTuple):
    """Type, shape and place of one tensor in a GGUF file.

    Attributes:
      type: ggml's name of its type.
      shape: outermost axis first, as in NumPy.
      start: byte in the file.
      nbytes: its size there.
    """

    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class GgufFile:
    """One file.

    Attributes:
      fields: metadata by key: numbers, strings, lists of strings, arrays of numbers.
      tensors: by ggml's names.

    Raises:
      CheckpointError: it is malformed or truncated, or claims what it does not hold.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path}: there is no such file.")
        self._size = self.path.stat().st_size
        if self._size < 24:
            head = head_of(self.path)
            if not head.startswith(b"GGUF") and (found := instead(head)):
                raise CheckpointError(f"{path}: {found}")
            raise CheckpointError(f"{path}: {self._size} bytes is too short for a GGUF file.")
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            self._data, self._at = data, 0
            self.fields, self.tensors = self._header()
            del self._data

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        """One tensor: in its own dtype, or dequantised to float32.

        Args:
          name: ggml's.
          index: along the outermost axis; only that part is read, without the axis.

        Raises:
          ConfigError: it is quantised and the package that dequantises is not installed.
        """
        kind, shape, start, nbytes = self.tensors[name]
        if index is not None:
            nbytes //= shape[0]
            start, shape = start + index * nbytes, shape[1:]
        if math.prod(shape) == 0:
            return np.empty(shape, PLAIN.get(kind, np.float32))
        raw = np.memmap(self.path, np.uint8, "r", start, (nbytes,)).view(np.ndarray)
        if kind in PLAIN:
            return raw.view(PLAIN[kind]).reshape(shape)
        try:
            import gguf
        except ImportError as e:
            raise ConfigError(
                "path",
                str(self.path),
                "weights in F32, F16 or BF16",
                f"To read {kind}: pip install gguf.",
            ) from e
        try:
            rows = raw.reshape(*shape[:-1], -1)
            array = gguf.dequantize(rows, getattr(gguf.GGMLQuantizationType, kind))
        except (NotImplementedError, AttributeError) as e:
            raise ConfigError(
                f"{self.path.name} {name}", kind, "a type that the package gguf dequantises"
            ) from e
        return np.asarray(array, np.float32).reshape(shape)

    def _bad(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: not a sound GGUF file: {reason}.")

    def _take(self, count: int, what: str) -> memoryview | bytes:
        if count > self._size - self._at:
            raise self._bad(
                f"{what} of {count} bytes at byte {self._at}, and the file ends at {self._size}"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, code: str, what: str) -> int:
        (value,) = struct.unpack("<" + code, self._take(struct.calcsize(code), what))
        return value

    def _string(self, what: str) -> str:
        length = self._number("Q", f"the length of {what}")
        if length > _MAX_STRING:
            raise self._bad(f"{what} of {length} bytes")
        # As llama.cpp does, a piece of a tokenizer may be no UTF-8.
        return bytes(self._take(length, what)).decode("utf-8", errors="replace")

    def _value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            inner, count = self._number("I", what), self._number("Q", what)
            if inner not in (*_NUMBERS, _STRING):
                raise self._bad(f"{what} is an array of type {inner}")
            width = 8 if inner == _STRING else np.dtype(_NUMBERS[inner]).itemsize
            if count > _MAX_ITEMS or count * width > self._size - self._at:
                raise self._bad(f"{what} claims {count} items")
            if inner == _STRING:
                return [self._string(what) for _ in range(count)]
            return self._numbers(inner, count, what)
        if kind not in _NUMBERS:
            raise self._bad(f"{what} has the unknown type {kind}")
        return self._numbers(kind, 1, what)[0].item()

    def _numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        raw = bytes(self._take(count * dtype.itemsize, what))
        if kind == 7 and any(byte > 1 for byte in raw):
            raise self._bad(f"{what} is a truth value other than 0 and 1")
        return np.frombuffer(raw, dtype)

    def _header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self._take(4, "the magic") != b"GGUF":
            if found := instead(bytes(self._data[:200])):
                raise CheckpointError(f"{self.path}: {found}")
            old = bytes(self._data[:4]) in (b"lmgg", b"fmgg", b"tjgg", b"algg")
            was = ", as before August 2023: convert the model anew" if old else ""
            raise self._bad(f"it begins with {bytes(self._data[:4])!r}{was}")
        version = self._number("I", "the version")
        if version not in (2, 3):
            raise self._bad(
                f"version {version}; 2 and 3 can be read"
                + (", in little-endian order" if version in (2 << 24, 3 << 24) else "")
            )
        n_tensors, n_fields = self._number("Q", "a count"), self._number("Q", "a count")
        # The least that a key and a description take.
        if n_fields * 13 + n_tensors * 24 > self._size:
            raise self._bad(f"{n_tensors} tensors and {n_fields} keys in {self._size} bytes")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self._string("a key")
            if key in fields:
                raise self._bad(f"the key {key!r} occurs twice")
            fields[key] = self._value(self._number("I", f"the type of {key!r}"), repr(key))
        described = [self._tensor() for _ in range(n_tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._bad(f"general.alignment is {alignment!r}")
        return fields, self._placed(described, alignment)

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Name, type, shape, offset in the data, bytes."""
        name = self._string("a tensor's name")
        n_dims = self._number("I", name)
        if n_dims > 4:
            raise self._bad(f"tensor {name} has {n_dims} dimensions; the format allows 4")
        dims = [self._number("Q", name) for _ in range(n_dims)]
        kind = self._number("I", name)
        if kind in _REMOVED:
            raise CheckpointError(
                f"{self.path}: tensor {name} is {_REMOVED[kind]}, a type that llama.cpp has "
                "removed. Quantise the model anew, e.g. as Q4_0 or Q4_K_M, or take the file of "
                "another type."
            )
        if kind not in TYPES:
            raise self._bad(
                f"tensor {name} has type {kind}, which is none of ggml's known here, up to "
                f"{max(TYPES)} ({TYPES[max(TYPES)][0]}): the file is damaged, or newer than this "
                "reader; take one of another type, such as Q8_0"
            )
        title, block, size = TYPES[kind]
        count = math.prod(dims)
        if (dims[0] if dims else 1) % block:
            raise self._bad(f"tensor {name}: rows of {dims[0]} do not divide into {title}'s blocks")
        nbytes = count // block * size
        if nbytes > self._size:
            raise self._bad(
                f"tensor {name}, {title} of shape {dims[::-1]}, would need {nbytes} bytes; the "
                f"file has {self._size}"
            )
        return name, title, tuple(dims[::-1]), self._number("Q", name), nbytes

    def _placed(
        self, described: list[tuple[str, str, tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, GgufTensor]:
        data = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end, before = 0, ""
        for name, title, shape, offset, nbytes in sorted(described, key=lambda t: (t[3], t[4])):
            if name in tensors:
                raise self._bad(f"tensor {name} occurs twice")
            if offset < end:
                raise self._bad(f"tensor {name} overlaps {before}")
            if data + offset + nbytes > self._size:
                raise self._bad(
                    f"truncated: tensor {name} needs {nbytes} bytes at byte {data + offset}, and "
                    f"the file ends at {self._size}"
                )
            end, before = offset + nbytes, name
            tensors[name] = GgufTensor(title, shape, data + offset, nbytes)
        return tensors
