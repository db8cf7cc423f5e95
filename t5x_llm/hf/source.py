"""A model as it lies on disk, whatever it is stored in: config, tensors by name, tokenizer."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import torch_bin
from t5x_llm.hf.safetensors_io import INDEX, SINGLE, SafetensorsReader
from t5x_llm.hf.shards import parse_json

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

MAX_CONFIG = 10_000_000


class Weights(Protocol):
    """Tensors by Hugging Face name, read one at a time."""

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> np.dtype[Any]: ...
    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """An opened model.

    Attributes:
      path: a Hugging Face directory or a ``.gguf`` file.
      kind: 'safetensors', 'bin' or 'gguf'.
      config: its config.json.
      weights: its tensors.
    """

    path: pathlib.Path
    kind: str
    config: dict[str, Any]
    weights: Weights

    def tokenizer(self) -> Tokenizer | None:
        """Loads the model's tokenizer; None where it has none.

        Raises:
          DataError: its files are damaged, or of a kind that is not known.
          CheckpointError: a GGUF file's tokenizer is damaged.
        """
        if self.kind != "gguf":
            return tokenizer_of(self.path)
        from t5x_llm.hf.gguf_io import GgufReader
        from t5x_llm.hf.gguf_tokenizer import read_tokenizer

        assert isinstance(self.weights, GgufReader)
        return read_tokenizer(self.weights)


def open_source(path: str | os.PathLike[str], kind: str | None = None) -> ModelSource:
    """Opens a model; only headers are read.

    Args:
      path: a Hugging Face directory with safetensors or ``pytorch_model.bin``, or a ``.gguf`` file.
      kind: 'hf' or 'gguf' where the user says which it is to be.

    Raises:
      ConfigError: it is of another kind, or cannot be read here.
      CheckpointError: missing, damaged or malicious files.
    """
    path = pathlib.Path(path).expanduser()
    gguf = path.suffix == ".gguf"
    if kind is not None and gguf != (kind == "gguf"):
        expected = "a .gguf file" if kind == "gguf" else "a Hugging Face directory"
        raise ConfigError("path", str(path), expected)
    if gguf:
        from t5x_llm.hf.gguf_io import GgufReader

        reader = GgufReader(path)
        return ModelSource(path, "gguf", reader.config, reader)
    config = read_config(path)

    def there(*names: str) -> bool:
        return any((path / name).is_file() for name in names)

    if not there(SINGLE, INDEX) and there(torch_bin.FILE, torch_bin.INDEX):
        return ModelSource(path, "bin", config, torch_bin.TorchBinReader(path))
    return ModelSource(path, "safetensors", config, SafetensorsReader(path))


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a directory."""
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json; not a Hugging Face model directory.")
    if path.stat().st_size > MAX_CONFIG:
        raise CheckpointError(f"{path}: larger than {MAX_CONFIG} bytes.")
    return parse_json(path, path.read_bytes())


def tokenizer_of(directory: pathlib.Path) -> Tokenizer | None:
    """Loads the tokenizer of a Hugging Face directory; None where it has none.

    Raises:
      DataError: its files are damaged, or of a kind that is not known.
    """
    from t5x_llm.text.load import has_tokenizer, load_tokenizer

    return load_tokenizer(directory) if has_tokenizer(directory) else None
