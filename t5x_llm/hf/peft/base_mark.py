"""Mark of the base that an adapter was trained on, to tell it from another of the same shapes."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable

import ml_dtypes
import numpy as np

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf.shards import read_json

FILE = "t5x_llm_base.json"
_VALUES = 64


def base_mark(read: Callable[[str], np.ndarray], names: Iterable[str]) -> str:
    """Computes a SHA-256 of the first values of every tensor, rounded to bfloat16.

    It is the same for a model in float32 and in bfloat16, in one file or in several.

    Args:
      read: a tensor by Hugging Face name.
      names: of all tensors.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        values = np.asarray(read(name)).reshape(-1)[:_VALUES]
        rounded = values.astype(np.float32).astype(ml_dtypes.bfloat16)
        whole.update(name.encode() + rounded.view(np.uint16).astype("<u2").tobytes())
    return whole.hexdigest()


def write_mark(directory: pathlib.Path, mark: str, base: str | None) -> None:
    """Writes the mark into an adapter's directory."""
    (directory / FILE).write_text(json.dumps({"base": base, "mark": mark}, indent=2) + "\n")


def check_mark(
    directory: str | os.PathLike[str],
    read: Callable[[str], np.ndarray],
    names: Iterable[str],
    where: str,
) -> None:
    """Checks a base against the mark in an adapter's directory; without one there is no check.

    Args:
      directory: of the adapter.
      read: as of ``base_mark``, of the base at hand.
      names: as of ``base_mark``.
      where: what the base at hand is called.

    Raises:
      CheckpointError: the base has other weights than the one that the adapter was trained on.
    """
    path = pathlib.Path(directory).expanduser()
    if not os.path.lexists(path / FILE):
        return
    said = read_json(path, FILE)
    if said.get("mark") == base_mark(read, names):
        return
    raise CheckpointError(
        f"The adapter {path} is of another base: it was trained on {said.get('base')!r}, whose "
        f"weights are not those of {where}. If you mean to put it on this one all the same, remove "
        f"{path / FILE}."
    )
