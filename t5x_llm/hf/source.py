"""A model as it lies on disk, whatever it is stored in: config, tensors by name, tokenizer."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import torch_bin
from t5x_llm.hf.card import front_matter
from t5x_llm.hf.generation import read_generation
from t5x_llm.hf.mistaken import check_quantised, why_no_model, why_no_weights
from t5x_llm.hf.safetensors_io import INDEX, SINGLE, SafetensorsReader
from t5x_llm.hf.shards import MAX_JSON, read_json

if TYPE_CHECKING:
    from t5x_llm.text import Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
MAX_CONFIG = MAX_JSON


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

    def generation(self) -> dict[str, Any]:
        """Returns the fields of generation_config.json, or what stands for it."""
        if self.kind != "gguf":
            return read_generation(self.path, self.config)
        from t5x_llm.hf.gguf_io import GgufReader

        assert isinstance(self.weights, GgufReader)
        return self.weights.generation()

    def card(self) -> dict[str, Any]:
        """Returns the front matter of its model card that holds for a conversion too."""
        return front_matter(self.path) if self.kind != "gguf" else {}

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
        return any((path / name).exists() for name in names)

    kind = "safetensors"
    if not any(os.path.lexists(path / name) for name in (SINGLE, INDEX)):
        if not there(torch_bin.FILE, torch_bin.INDEX):
            raise CheckpointError(f"{path}: no {SINGLE} and no {INDEX}. {why_no_weights(path)}")
        kind = "bin"
    weights: Weights = torch_bin.TorchBinReader(path) if kind == "bin" else SafetensorsReader(path)
    check_quantised(path, config, weights.names())
    return ModelSource(path, kind, config, weights)


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a directory."""
    path = pathlib.Path(directory)
    if not os.path.lexists(path / "config.json"):
        raise CheckpointError(
            f"{directory}: no config.json; not a Hugging Face model directory. {why_no_model(path)}"
        )
    return read_json(path, "config.json", MAX_CONFIG)


def tokenizer_of(directory: pathlib.Path) -> Tokenizer | None:
    """Loads the tokenizer of a Hugging Face directory; None where it has none.

    Raises:
      DataError: its files are damaged, or of a kind that is not known.
    """
    from t5x_llm.text.load import has_tokenizer, load_tokenizer

    return load_tokenizer(directory) if has_tokenizer(directory) else None
