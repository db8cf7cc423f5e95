"""A GGUF model in one file, or in the parts that llama.cpp's gguf-split makes."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf.gguf_file import GgufFile, GgufTensor
from t5x_llm.hf.shards import inside

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_SPLIT = ("split.no", "split.count", "split.tensors.count")


class GgufModel:
    """The tensors of all parts as one; any part may be given.

    Attributes:
      path: the first part.
      fields: metadata of the first part, which alone has the model's.
      tensors: of all parts, by ggml's names.

    Raises:
      CheckpointError: a part is missing, damaged, or of another model.
    """

    def __init__(self, path: str | os.PathLike[str]):
        given = pathlib.Path(path)
        parts = [GgufFile(given)]
        count = parts[0].fields.get("split.count", 1)
        if not isinstance(count, int) or not 0 <= count <= 99_999:
            raise CheckpointError(f"{given}: split.count = {count!r} is no number of files.")
        if count > 1:
            parts = _parts(given, parts[0], count)
        self.path, self.fields = parts[0].path, parts[0].fields
        self.tensors: dict[str, GgufTensor] = {}
        self._in: dict[str, GgufFile] = {}
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(f"{part.path}: tensor {name} is in another part too.")
                self.tensors[name], self._in[name] = tensor, part
        wanted = self.fields.get("split.tensors.count", len(self.tensors))
        if count > 1 and wanted != len(self.tensors):
            raise CheckpointError(
                f"{self.path}: its {count} parts have {len(self.tensors)} tensors, and it says "
                f"{wanted}."
            )

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        """Reads one tensor; see ``GgufFile.read``."""
        return self._in[name].read(name, index)


def _parts(given: pathlib.Path, opened: GgufFile, count: int) -> list[GgufFile]:
    """Returns the parts in order, opened.

    Args:
      given: the one that the user names.
      opened: the same.
      count: how many there are.
    """
    named = _PART.fullmatch(given.name)
    if named is None or int(named[3]) != count:
        raise CheckpointError(
            f"{given}: is a part of {count}, and its name is not *-00001-of-{count:05d}.gguf, by "
            "which the others would be found. Give the parts their first names again, or join them "
            "with llama.cpp's gguf-split --merge."
        )
    parts = []
    for number in range(count):
        name = f"{named[1]}-{number + 1:05d}-of-{count:05d}.gguf"
        if name == given.name:
            part = opened
        elif not os.path.lexists(given.parent / name):
            raise CheckpointError(
                f"{given.parent}: part {number + 1} of {count} is missing: {name}. Download it too."
            )
        else:
            part = GgufFile(inside(given.parent, name, ".gguf"))
        found: list[Any] = [part.fields.get(key) for key in _SPLIT[:2]]
        if found != [number, count]:
            raise CheckpointError(
                f"{part.path}: says split.no, split.count = {found}, expected {[number, count]}."
            )
        parts.append(part)
    return parts
