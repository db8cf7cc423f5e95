"""The token store: one source's documents as token ids, once and for every sequence length.

A store is a directory, on local disk or gs://:

    manifest.json        written last; a directory without it is not a store
    train/, validation/  the two splits, each with zarr3 arrays:
      tokens     [n] uint16 or uint32   every document, [bos] ids [eos], one after another
      offsets    [documents + 1] int64  where each begins in ``tokens``
      bytes      [documents] int64      its size as UTF-8 text
      file, line [documents] int32/64   where it was read (index into the manifest's files; from 1)
      mask       [n] uint8              optional: 1 where a token is to be predicted; in a store
                                        of conversations, whose manifest has ``chat``, the codes of
                                        ``instruct.chat_config``
      score      [documents] float32    optional: what a curriculum orders documents by

Arrays are cut into shards (one file each, 16 Mi elements) of small chunks (16 Ki elements) that are
read on their own, each with a checksum: a damaged byte or a lost file is an error, never a zero.
Offsets and sizes are kept in memory: 8 bytes a document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import DTypeLike

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path
from t5x_llm.data.instruct.chat_config import Chat

FORMAT = 1
SPLITS = ("train", "validation")
_SHARD = 1 << 24
_CHUNK = 1 << 14
_CACHE_BYTES = 256 << 20
_PREPARE = "Run `t5x-llm prepare` with the same configuration to build it again."


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Place a document was read from: file, and line or record from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@functools.cache
def _context() -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})


def _kvstore(path: str) -> dict[str, Any]:
    """Returns TensorStore's specification of a directory in a bucket or the local file system."""
    if path.startswith("gs://"):
        bucket, _, key = path[5:].partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": key.rstrip("/") + "/"}
    return {"driver": "file", "path": path.rstrip("/") + "/"}


def _open(path: str) -> ts.TensorStore:
    spec = {
        "driver": "zarr3",
        "kvstore": _kvstore(path),
        "fill_missing_data_reads": False,
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    try:
        return ts.open(spec, open=True, read=True, context=_context()).result()
    except ValueError as e:
        raise DataError(f"Token store array {path}: cannot be opened. {_PREPARE} ({e})") from e


class ArrayWriter:
    """Writes a 1-D array of known length from pieces in order; holds one shard in memory.

    Args:
      path: directory of the array.
      dtype: of the elements.
      length: elements in all.
    """

    def __init__(self, path: str, dtype: DTypeLike, length: int):
        self._dtype = np.dtype(dtype)
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        checked = [little, {"name": "crc32c"}]
        inner = {"chunk_shape": [_CHUNK], "codecs": checked, "index_codecs": checked}
        shard = min(_SHARD, -(-max(length, 1) // _CHUNK) * _CHUNK)
        spec = {
            "driver": "zarr3",
            "kvstore": _kvstore(path),
            "metadata": {
                "shape": [length],
                "data_type": self._dtype.name,
                "fill_value": 0,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
                "codecs": [{"name": "sharding_indexed", "configuration": inner}],
            },
            "store_data_equal_to_fill_value": True,
        }
        self._path = path
        with self._explained():
            self._array = ts.open(spec, create=True, delete_existing=True).result()
        self._length, self._shard = length, shard
        self._pending: list[np.ndarray] = []
        self._held = self._written = 0

    def write(self, values: np.ndarray) -> None:
        """Writes the next elements, any number."""
        values = np.asarray(values, self._dtype)
        while len(values):
            take = min(self._shard - self._held, len(values))
            self._pending.append(values[:take])
            self._held += take
            values = values[take:]
            if self._held == self._shard:
                self._flush()

    def close(self) -> None:
        """Writes what is held and checks that every element came."""
        if self._held:
            self._flush()
        if self._written != self._length:
            raise RuntimeError(f"{self._written} elements written, {self._length} promised")

    def _flush(self) -> None:
        stop = self._written + self._held
        with self._explained():
            self._array[self._written : stop].write(np.concatenate(self._pending)).result()
        self._written, self._held, self._pending = stop, 0, []

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError) as e:  # as TensorStore reports a full disk
            raise DataError(
                f"Cannot write {self._path} ({e}). Free space, or choose another Data.store_dir."
            ) from e


class Split:
    """The documents of one split of a store.

    Args:
      store: the store it belongs to.
      name: ``train`` or ``validation``.
    """

    def __init__(self, store: TokenStore, name: str):
        self.store, self.name = store, name
        counts = store.manifest["splits"][name]
        self.tokens: int = counts["tokens"]
        self.total_bytes: int = counts["bytes"]
        self._documents: int = counts["documents"]

    def __len__(self) -> int:
        """The number of documents."""
        return self._documents

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """[documents + 1] int64, where each document begins in the flat tokens."""
        return self._read_all("offsets", np.int64, self._documents + 1)

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return self._read_all("bytes", np.int64, self._documents)

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """[documents] float32 scores of the documents, where ``scored``."""
        return self._read_all("score", np.float32, self._documents)

    @functools.cached_property
    def _token_array(self) -> ts.TensorStore:
        return _open(f"{self.store.path}/{self.name}/tokens")

    @functools.cached_property
    def _mask_array(self) -> ts.TensorStore:
        return _open(f"{self.store.path}/{self.name}/mask")

    @functools.cached_property
    def _origin(self) -> tuple[ts.TensorStore, ts.TensorStore]:
        where = f"{self.store.path}/{self.name}"
        return _open(f"{where}/file"), _open(f"{where}/line")

    @property
    def masked(self) -> bool:
        """True if the store carries a loss mask."""
        return bool(self.store.manifest["masked"])

    @property
    def scored(self) -> bool:
        """True if the store carries a score of each document."""
        return bool(self.store.manifest.get("scored", False))

    @property
    def coded(self) -> bool:
        """True if the mask holds the codes of conversations."""
        return self.store.coded

    def tokens_of(self, codes: Sequence[int]) -> int:
        """Returns how many tokens of a store of conversations have one of these codes."""
        counts = self.store.manifest["codes"][self.name]
        return sum(counts[code] for code in codes)

    @property
    def trained(self) -> float | None:
        """Share of the tokens of conversations whose weight is above 0; None of other documents."""
        if not self.coded:
            return None
        codes = np.flatnonzero(self.store.weights).tolist()
        return self.tokens_of([code for code in codes if code < 4]) / max(self.tokens, 1)

    def read(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Reads the tokens of the ranges [starts, stops), joined; int32."""
        return self._ranges(self._token_array, starts, stops).astype(np.int32)

    def read_mask(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Reads the loss mask, or the codes, of the ranges [starts, stops), joined; uint8."""
        return self._ranges(self._mask_array, starts, stops)

    def read_weights(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Reads the loss weights of the ranges [starts, stops), joined.

        They are the mask, uint8; of conversations what ``TokenStore.chat`` makes of the codes,
        float32.
        """
        mask = self.read_mask(starts, stops)
        return self.store.weights[mask] if self.coded else mask

    def document_weights(self, index: int) -> np.ndarray:
        """Reads the loss weights of one document's tokens [n]; see ``read_weights``."""
        start, stop = self._bounds(index)
        return self.read_weights(np.array([start]), np.array([stop]))

    def measured(self, index: int) -> np.ndarray:
        """Reads which tokens of a conversation [n] an evaluation measures: 1.0, else 0.0."""
        start, stop = self._bounds(index)
        return self.store.measures[self.read_mask(np.array([start]), np.array([stop]))]

    def document(self, index: int) -> np.ndarray:
        """Reads one document's token ids [n] int32, with its begin and end tokens."""
        start, stop = self._bounds(index)
        return self.read(np.array([start]), np.array([stop]))

    def document_bytes(self, index: int) -> int:
        """Returns the UTF-8 bytes of a document's text."""
        self._bounds(index)
        return int(self._bytes[index])

    def provenance(self, index: int) -> Provenance:
        """Returns the file and line that a document was read from."""
        self._bounds(index)
        file, line = (int(array[index].read().result()) for array in self._origin)
        return Provenance(self.store.manifest["files"][file], line)

    def _bounds(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._documents:
            raise IndexError(f"document {index} of {self._documents} in {self.store.path}")
        return int(self.offsets[index]), int(self.offsets[index + 1])

    def _ranges(self, array: ts.TensorStore, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        try:
            reads = [array[start:stop].read() for start, stop in pairs]
            parts = [read.result() for read in reads]
        except (ValueError, OSError) as e:
            raise DataError(
                f"Token store {self.store.path} ({self.name}) is damaged. {_PREPARE} ({e})"
            ) from e
        return np.concatenate(parts) if parts else np.empty(0, array.dtype.numpy_dtype)

    def arrays(self) -> Iterator[tuple[str, ts.TensorStore, int]]:
        """Yields (name, array, elements that the manifest says) of every array of the split."""
        lengths = {"tokens": self.tokens, "offsets": self._documents + 1}
        lengths |= dict.fromkeys(("bytes", "file", "line"), self._documents)
        if self.scored:
            lengths["score"] = self._documents
        if self.masked:
            lengths["mask"] = self.tokens
        for name, length in lengths.items():
            yield name, _open(f"{self.store.path}/{self.name}/{name}"), length

    def _read_all(self, name: str, dtype: DTypeLike, length: int) -> np.ndarray:
        array = _open(f"{self.store.path}/{self.name}/{name}")
        if array.shape != (length,):
            raise DataError(
                f"Token store {self.store.path} ({self.name}/{name}): {array.shape[0]} elements, "
                f"its manifest says {length}. {_PREPARE}"
            )
        whole = np.array([0], np.int64), np.array([length], np.int64)
        return self._ranges(array, *whole).astype(dtype, copy=False)


class TokenStore:
    """One source's token store, opened for reading.

    Args:
      path: its directory.
      manifest: the content of its manifest.json.
      chat: of a store of conversations, which codes have what weight; the default of ``Chat`` if
        None.

    Attributes:
      weights: loss weight of each code, as a table [256] float32.
      measures: 1 for each code that an evaluation measures, as such a table.
      train: the documents trained on.
      validation: the documents held out.
    """

    def __init__(self, path: str, manifest: dict[str, Any], chat: Chat | None = None):
        self.path, self.manifest = path, manifest
        chat = chat or Chat()
        self.weights, self.measures = chat.weights(), chat.measures()
        self.train, self.validation = (Split(self, name) for name in SPLITS)

    @classmethod
    def open(cls, path: str, chat: Chat | None = None) -> TokenStore:
        """Opens the store in directory ``path``, with the weights of ``chat``.

        Raises:
          DataError: if there is none, or it is of another format.
        """
        where = as_path(path) / "manifest.json"
        try:
            manifest = json.loads(where.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"No token store in {path}. {_PREPARE}") from None
        except ValueError as e:
            raise DataError(f"{where}: not JSON. {_PREPARE} ({e})") from e
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{where}: format {manifest.get('format')!r}, this version reads {FORMAT}. "
                + _PREPARE
            )
        return cls(str(path), manifest, chat)

    @property
    def coded(self) -> bool:
        """True for a store of conversations, whose mask holds codes."""
        return "chat" in self.manifest

    @property
    def fingerprint(self) -> str:
        """Hash of everything its content was made from."""
        return self.manifest["fingerprint"]

    @property
    def content(self) -> str:
        """Hash of its token ids, masks and scores in order, wherever the text lay.

        The fingerprint stands for it in a store that was built before there was one.
        """
        return self.manifest.get("content", self.fingerprint)

    @property
    def files(self) -> Sequence[str]:
        """The files it was made from."""
        return self.manifest["files"]

    def verify(self) -> None:
        """Reads every array, one shard in memory at a time.

        Raises:
          DataError: an array is missing or damaged, or of another length than the manifest says.
        """
        for split in (self.train, self.validation):
            for name, array, length in split.arrays():
                if array.shape != (length,):
                    raise DataError(
                        f"Token store {self.path} ({split.name}/{name}): {array.shape[0]} "
                        f"elements, its manifest says {length}. {_PREPARE}"
                    )
                for start in range(0, length, _SHARD):
                    span = np.array([start], np.int64), np.array([min(start + _SHARD, length)])
                    split._ranges(array, *span)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raises DataError unless the store was built with the tokenizer of this fingerprint."""
        built = self.manifest["tokenizer_fingerprint"]
        if built != fingerprint:
            raise DataError(
                f"Token store {self.path} was built with the tokenizer {built[:12]}, the tokenizer "
                f"in use is {fingerprint[:12]}. Use that tokenizer, or {_PREPARE[0].lower()}"
                f"{_PREPARE[1:]}"
            )
