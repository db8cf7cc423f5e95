"""Plans of the stores, hashed by their inputs, without TensorFlow while nothing has changed.

Files of text and jsonl sources are hashed by content; ``.inputs.json`` remembers the hash of a file
until its size or modification time changes. What seqio and tfds read is known to them alone: the
hash covers the task's shards, the size and modification time of those that are files, and the
source code of ``Data.modules``; while all that is as the catalogue says, seqio is not imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from t5x_llm.core import filesystems
from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, shipped_name, write_json
from t5x_llm.data.building import StorePlan
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.jobs import StoreJob
from t5x_llm.data.reading import Scan, find_files, is_cut, plan_jobs, scan
from t5x_llm.data.sources import Data, Source

# Inputs of seqio tasks by source, as the catalogue keeps them.
SeqioInputs = dict[str, dict[str, Any]]


def content_hash(**parts: object) -> str:
    """Returns the SHA-256 of the parts as JSON, hex."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make_plans(
    data: Data, store_dir: str, remembered: SeqioInputs | None, force: bool = False
) -> tuple[list[StorePlan], SeqioInputs]:
    """Returns the plan of each source, in order, and the inputs of seqio tasks.

    Args:
      data: the configuration.
      store_dir: directory of ``.inputs.json``.
      remembered: inputs of seqio tasks found for this configuration before, if any.
      force: looks at those inputs again even if they seem unchanged.

    Raises:
      ConfigError, DataError: an input that is not there or cannot be read.
    """
    record: SeqioInputs = {}
    if data.mixture is None or any(s.kind == "tfds" for s in data.mixture.sources):
        modules = _module_hashes(data.modules)
        if remembered and not force and _unchanged(remembered, modules):
            record = remembered
        else:
            record = _ask_seqio(data, modules)
    if data.mixture is None:
        plans = [_seqio_plan(data, n, r, data.validation_fraction) for n, r in record.items()]
        return plans, record
    files = [s for s in data.mixture.sources if s.kind != "tfds"]
    scans = _scan_all(files, store_dir)
    return [
        _seqio_plan(data, s.name, record[s.name], data.held_out(s))
        if s.kind == "tfds"
        else _file_plan(s, scans[s.name], data.held_out(s), data.chat)
        for s in data.mixture.sources
    ], record


def _file_plan(
    source: Source, scans: list[Scan], held_out: float, chat: Chat | None = None
) -> StorePlan:
    talks = source.kind == "chat"
    jobs = tuple(
        StoreJob(source.name, i, held_out, source, stretches, chat=chat if talks else None)
        for i, stretches in enumerate(plan_jobs(scans))
    )
    if not any(s.size for s in scans):
        raise DataError(
            f"Source {source.name!r} is empty: {', '.join(source.paths)} hold no text. "
            "Check Source.files."
        )
    read: dict[str, object] = dict(kind=source.kind, field=source.field, unit=source.unit)
    if talks:
        read = dict(kind=source.kind, format=source.format, columns=source.columns)
        if source.prompts is not None:
            read["prompts"] = source.prompts.identity()
    if source.score:
        read["score"] = source.score
    if source.classes:
        read["classes"] = source.classes
    digest = content_hash(**read, files=[[shipped_name(s.path), s.sha256] for s in scans])
    texts = content_hash(**read, files=[s.sha256 for s in scans])
    return StorePlan(source.name, digest, jobs, tuple(s.path for s in scans), texts)


def _seqio_plan(data: Data, name: str, record: Mapping[str, Any], held_out: float) -> StorePlan:
    shards = record["shards"]
    jobs = tuple(
        StoreJob(name, i, held_out, data=data, task=record["task"], shards=len(shards))
        for i in range(len(shards))
    )
    source = (
        next((s for s in data.mixture.sources if s.name == name), None) if data.mixture else None
    )
    digest = content_hash(
        task=record["task"],
        shards=shards,
        files=record["files"],
        modules=record["modules"],
        field=source.field if source else "",
        split=source.tfds_split if source else "",
    )
    return StorePlan(name, digest, jobs, tuple(shards))


def _ask_seqio(data: Data, modules: dict[str, str]) -> SeqioInputs:
    from t5x_llm.data import tasks

    mixture = tasks.register(data, {})
    record: SeqioInputs = {}
    for name, task in tasks.source_names(data, mixture).items():
        own = (
            next((s for s in data.mixture.sources if s.name == name), None)
            if data.mixture
            else None
        )
        if own is not None and own.kind != "tfds":
            continue
        shards = tasks.shards(data, task)
        files = {path: _stat(path) for path in tasks.input_files(task, shards)}
        record[name] = {"task": task, "shards": shards, "files": files, "modules": modules}
    return record


def _unchanged(record: SeqioInputs, modules: dict[str, str]) -> bool:
    """Returns whether modules and files are the same as in the record."""
    return all(
        entry["modules"] == modules
        and all(os.path.exists(p) and _stat(p) == seen for p, seen in entry["files"].items())
        for entry in record.values()
    )


def _stat(path: str) -> list[int]:
    """Returns size and modification time of a local or remote file."""
    return list(filesystems.stat(path))


def _module_hashes(modules: Iterable[str]) -> dict[str, str]:
    """Hashes each module's source by SHA-256; imports no more than its parent packages."""
    hashes = {}
    for name in modules:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        origin = spec.origin if spec else None
        if origin is None or not os.path.isfile(origin):
            hashes[name] = ""
        else:
            hashes[name] = hashlib.sha256(as_path(origin).read_bytes()).hexdigest()
    return hashes


def _scan_all(sources: list[Source], store_dir: str) -> dict[str, list[Scan]]:
    """Returns the scans of every source's files, each file hashed now or remembered."""
    cache_path = as_path(store_dir) / ".inputs.json"
    try:
        cache = json.loads(cache_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cache = {}
    wanted: list[tuple[Source, str, str, list[int]]] = []
    for source in sources:
        for path in find_files(source):
            how = "lines" if is_cut(source, path) else "whole"
            wanted.append((source, path, f"{how} {path}", _stat(path)))
    new = {}
    scans: dict[str, list[Scan]] = {source.name: [] for source in sources}
    todo = [entry for entry in wanted if _cached(cache, entry[2], entry[3]) is None]
    total = sum(seen[0] for _, _, _, seen in todo)
    with tqdm(total=total or None, desc="reading inputs", unit="B", unit_scale=True,
              disable=None if todo else True) as bar:  # fmt: skip
        for source, path, key, seen in wanted:
            found = _cached(cache, key, seen)
            if found is None:
                found = scan(path, key.startswith("lines"), bar.update)
            scans[source.name].append(found)
            new[key] = json.loads(json.dumps([seen, dataclasses.asdict(found)]))
    if any(cache.get(key) != entry for key, entry in new.items()):
        with contextlib.suppress(OSError):  # a store that cannot be written may still be read
            write_json(cache_path, {**cache, **new})
    return scans


def _cached(cache: Mapping[str, Any], key: str, seen: list[int]) -> Scan | None:
    entry = cache.get(key)
    if entry is None or entry[0] != seen:
        return None
    found = entry[1]
    return Scan(found["path"], found["size"], found["sha256"], tuple(map(tuple, found["cuts"])))
