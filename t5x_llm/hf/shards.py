"""Finds the files of a model's directory that may be read: shards of an index, links."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf.mistaken import instead

MAX_INDEX = 100_000_000
MAX_JSON = 10_000_000


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
        found = instead(text[:1000].encode() if isinstance(text, str) else text[:1000])
        raise CheckpointError(f"{path}: {found or f'not valid JSON ({e}).'}") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def read_json(directory: pathlib.Path, name: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """Returns the JSON object in the file ``name`` of a directory.

    Raises:
      CheckpointError: it is missing, larger than ``limit`` bytes, a link that leads out, or no
        JSON object.
    """
    path = inside(directory, name, ".json")
    if path.stat().st_size > limit:
        raise CheckpointError(f"{path}: larger than {limit} bytes.")
    return parse_json(path, path.read_bytes())


def read_index(index: pathlib.Path, suffix: str) -> dict[str, str]:
    """{tensor: file} of an index; every file is there and plainly named.

    Raises:
      CheckpointError: the index is malformed, or names what it may not.
    """
    weight_map = read_json(index.parent, index.name, MAX_INDEX).get("weight_map")
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
    target = path.resolve()
    if not target.is_file():
        if path.is_symlink():
            raise CheckpointError(
                f"{path}: is a link to {target}, and there is no such file. Download it again, or "
                "put the file where the link points."
            )
        raise CheckpointError(f"{directory}: shard {name!r} is missing.")
    if not any(target.is_relative_to(home) for home in _homes(directory)) and not _is_blob(target):
        raise CheckpointError(
            f"{path}: is a link that leaves its directory, to {target}. A model from elsewhere "
            "could name any file of this machine so, therefore it is not followed. If the link is "
            "yours, link the whole directory instead (config.json beside the weights), or put the "
            f"file itself here: cp --remove-destination '{target}' '{path}'."
        )
    return path


def _homes(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the directories that files of ``directory`` may resolve into.

    The hub's download cache keeps ``snapshots/<revision>/x.safetensors`` as links to ``blobs``
    beside ``snapshots``; so does a copy of one of its repositories, whatever that is called.
    """
    real = directory.resolve()
    return [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]


def _is_blob(target: pathlib.Path) -> bool:
    """Returns True for a file of the hub's download cache.

    It is a direct child of ``models--<name>/blobs``. Earlier versions of huggingface_hub filled a
    directory of the user's with links to such files.
    """
    blobs = target.parent
    return blobs.name == "blobs" and blobs.parent.name.startswith("models--")
