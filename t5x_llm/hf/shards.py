"""Sharded checkpoints: the index, and which files it may name."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from t5x_llm.core.errors import CheckpointError

MAX_INDEX = 100_000_000


def parse_json(path: pathlib.Path, text: str | bytes) -> dict[str, Any]:
    """A JSON object without repeated names.

    Raises:
      CheckpointError: naming ``path``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not valid JSON ({e}).") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def read_index(index: pathlib.Path, suffix: str) -> dict[str, str]:
    """{tensor: file} of an index; every file is there and plainly named.

    Raises:
      CheckpointError: the index is malformed, or names what it may not.
    """
    if index.stat().st_size > MAX_INDEX:
        raise CheckpointError(f"{index}: larger than {MAX_INDEX} bytes.")
    weight_map = parse_json(index, index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: has no weight_map.")
    checked: set[str] = set()
    for name in weight_map.values():
        if not isinstance(name, str) or name not in checked:
            inside(index.parent, name, suffix)
            checked.add(name)
    return weight_map


def inside(directory: pathlib.Path, name: object, suffix: str) -> pathlib.Path:
    """The file ``name`` of ``directory``.

    Raises:
      CheckpointError: it is no plain name, not there, or a link that leads out.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and name.endswith(suffix)
    if not isinstance(name, str) or not plain or any(sign in name for sign in "\0/\\"):
        raise CheckpointError(f"{directory}: shard {name!r} is not a plain *{suffix} file name.")
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{directory}: shard {name!r} is missing.")
    if not path.resolve().is_relative_to(_home(directory)):
        raise CheckpointError(f"{path}: is a link that leaves its directory.")
    return path


def _home(directory: pathlib.Path) -> pathlib.Path:
    """The directory that shards may resolve into.

    The hub's download cache keeps ``snapshots/<revision>/x.safetensors`` as links to ``blobs`` of
    the same repository, so there the repository is the home.
    """
    real = directory.resolve()
    in_cache = real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--")
    return real.parent.parent if in_cache else real
