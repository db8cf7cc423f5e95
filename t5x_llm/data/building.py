"""Builds one token store: runs its jobs, joins their files, puts the store in place whole."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from t5x_llm.core.errors import DataError
from t5x_llm.core.paths import as_path, write_json
from t5x_llm.data.instruct.encoding import check_dropped, summed
from t5x_llm.data.jobs import JobResult, StoreJob, run_job, run_job_in_worker, token_dtype
from t5x_llm.data.pool import Pool
from t5x_llm.data.reading import JOB_BYTES
from t5x_llm.data.store import FORMAT, SPLITS, ArrayWriter
from t5x_llm.text import Tokenizer

# A worker takes a second or two to start; it must have more to do than that.
_BYTES_A_WORKER = 4 * JOB_BYTES


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """Everything that one source's store is built from.

    Attributes:
      name: name of the source.
      digest: hash of the input and of how it is read.
      jobs: jobs of the store, in order.
      files: names that a document's provenance points to.
      texts: hash of the input's bytes and of how they are read, wherever the files lie; "" where
        the bytes are not known.
    """

    name: str
    digest: str
    jobs: tuple[StoreJob, ...]
    files: tuple[str, ...]
    texts: str = ""

    @property
    def size(self) -> int:
        """Bytes of input; 0 if not known."""
        return sum(job.size for job in self.jobs)


def is_remote(path: str) -> bool:
    """Returns whether ``path`` is in a bucket, which has no renames and no locks."""
    return "://" in path


@contextlib.contextmanager
def workspace(store_dir: str) -> Iterator[str]:
    """Makes a temporary directory, beside the stores if they are local, and removes it on exit."""
    parent = None if is_remote(store_dir) else str(as_path(store_dir))
    path = tempfile.mkdtemp(prefix=".tmp-", dir=parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def build_store(
    plan: StorePlan,
    target: str,
    store_dir: str,
    fingerprint: str,
    tokenizer: Tokenizer,
    tokenizer_path: str,
    workers: int,
) -> dict[str, Any]:
    """Runs the plan's jobs and puts the store at ``target``, all of it or nothing.

    Args:
      plan: what to build.
      target: directory of the store; not there yet, or a bucket's leftovers without a manifest.
      store_dir: where work in progress may lie.
      fingerprint: for the manifest.
      tokenizer: for the texts.
      tokenizer_path: where workers load it from.
      workers: processes; 0 chooses.

    Returns:
      The manifest.

    Raises:
      DataError: from the jobs; a source without a document to train on.
    """
    with workspace(store_dir) as temporary:
        made = _run_jobs(plan, temporary, tokenizer, tokenizer_path, workers)
        documents = sum(m.documents["train"] for m in made)
        if not documents:
            held = sum(m.documents["validation"] for m in made)
            tally = summed(m.tally for m in made if m.tally is not None)
            check_dropped(plan.name, tally.as_json(), 0.0)
            raise DataError(
                f"Source {plan.name!r} has no document to train on: "
                + (f"all {held} are held out; lower its validation_fraction." if held else
                   f"{', '.join(plan.files[:3])} hold no text.")
            )  # fmt: skip
        remote = is_remote(target)
        where = target if remote else os.path.join(temporary, "store")
        if remote and as_path(where).exists():
            as_path(where).rmtree()
        content = _join(made, where)
        manifest = {
            "format": FORMAT,
            "source": plan.name,
            "fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "token_dtype": np.dtype(token_dtype(tokenizer)).name,
            "masked": any(m.masked for m in made),
            "splits": {
                split: {
                    "documents": sum(m.documents[split] for m in made),
                    "tokens": sum(m.tokens[split] for m in made),
                    "bytes": sum(m.bytes[split] for m in made),
                }
                for split in SPLITS
            },
            "files": list(plan.files),
            "content": content,
        }
        if any(m.tally is not None for m in made):
            tally = summed(m.tally for m in made if m.tally is not None)
            codes = {
                split: np.sum([m.codes.get(split, [0] * 4) for m in made], axis=0).tolist()
                for split in SPLITS
            }
            manifest |= {"chat": tally.as_json(), "codes": codes}
        if any(job.scored for job in plan.jobs):
            manifest["scored"] = True
        write_json(f"{where}/manifest.json", manifest)
        if not remote:
            os.rename(where, target)
    return manifest


def _run_jobs(
    plan: StorePlan, directory: str, tokenizer: Tokenizer, tokenizer_path: str, workers: int
) -> list[JobResult]:
    """Runs the jobs here or on a pool and returns their results, in order."""
    cores = os.cpu_count() or 1
    count = workers or min(cores, plan.size // _BYTES_A_WORKER)
    count = min(count, len(plan.jobs))
    in_bytes = plan.size > 0
    bar = tqdm(
        total=plan.size if in_bytes else len(plan.jobs),
        desc=f"store: {plan.name}",
        unit="B" if in_bytes else " shards",
        unit_scale=in_bytes,
        disable=None,
    )
    outs = [os.path.join(directory, f"job-{job.index:06d}") for job in plan.jobs]
    with bar:
        if count <= 1:
            made = []
            for job, out in zip(plan.jobs, outs, strict=True):
                progress: Callable[[int], object] = bar.update if in_bytes else int
                made.append(run_job(job, tokenizer, out, cores, progress))
                if not in_bytes:
                    bar.update(1)
            return made
        return _on_pool(plan, outs, tokenizer_path, count, bar)


def _on_pool(
    plan: StorePlan, outs: list[str], tokenizer_path: str, count: int, bar: tqdm
) -> list[JobResult]:
    ended = (
        f"A worker process reading source {plan.name!r} was ended from outside, perhaps for "
        "want of memory. Set Data.workers = 1, or less than now."
    )
    calls = [(job, tokenizer_path, out) for job, out in zip(plan.jobs, outs, strict=True)]
    with Pool(count, ended) as pool:
        return pool.map(
            run_job_in_worker,
            calls,
            lambda i: bar.update(plan.jobs[i].size if plan.size else 1),
        )


# Arrays that decide what a model reads; where a document was read from is none of them.
_CONTENT = ("offsets", "tokens", "mask", "score")


def _join(made: list[JobResult], where: str) -> str:
    """Writes the store's arrays from the jobs' files; returns a SHA-256 (hex) of what they hold."""
    masked = any(m.masked for m in made)
    hashes: dict[str, Any] = {}
    for split in SPLITS:
        documents = sum(m.documents[split] for m in made)
        tokens = sum(m.tokens[split] for m in made)
        writers: dict[str, ArrayWriter] = {}

        def add(name: str, values: np.ndarray, length: int, split: str = split,
                writers: dict[str, ArrayWriter] = writers) -> None:  # fmt: skip
            if name not in writers:
                writers[name] = ArrayWriter(f"{where}/{split}/{name}", values.dtype, length)
            writers[name].write(values)
            if name in _CONTENT:
                held = hashes.setdefault(f"{split}/{name}", hashlib.sha256())
                held.update(np.ascontiguousarray(values).data)

        add("offsets", np.zeros(1, np.int64), documents + 1)
        end = 0
        for part in made:
            with np.load(part.path) as arrays:
                lengths = arrays[f"{split}/lengths"]
                add("offsets", end + np.cumsum(lengths), documents + 1)
                end += int(lengths.sum())
                flat = arrays[f"{split}/tokens"]
                add("tokens", flat, tokens)
                for name in ("bytes", "file", "line", "score"):
                    if f"{split}/{name}" in arrays:
                        add(name, arrays[f"{split}/{name}"], documents)
                if masked:
                    mask = arrays[f"{split}/mask"] if part.masked else np.ones(len(flat), np.uint8)
                    add("mask", mask, tokens)
        for writer in writers.values():
            writer.close()
    listed = sorted((name, held.hexdigest()) for name, held in hashes.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
