"""Store jobs: each turns one shard of a source into token ids, as a pure function of its input.

A job writes one file of arrays and returns its counts; ``building`` joins the files in the order of
the jobs. Within a job documents are ordered by the hash of their text, which shuffles them in the
same way wherever they stood.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from t5x_llm.core.errors import DataError
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.instruct.encoding import ChatTally, token_records
from t5x_llm.data.instruct.reading import texts
from t5x_llm.data.reading import read
from t5x_llm.data.record import Record, split_of
from t5x_llm.data.sources import Data, Source
from t5x_llm.data.store import SPLITS
from t5x_llm.data.stretch import Stretch
from t5x_llm.text import Tokenizer, load_tokenizer

_ENCODE_CHARS = 1 << 20


@dataclasses.dataclass(frozen=True)
class StoreJob:
    """Job of one shard of a source.

    Attributes:
      source: name of the source.
      index: number of the shard.
      held_out: share of documents held out.
      text: the Source, for text and jsonl.
      stretches: what to read of its files.
      data: for a seqio task, the configuration that registers it.
      task: name of the seqio task.
      shards: number of the task's shards.
      chat: of a source of conversations, how they become tokens.
    """

    source: str
    index: int
    held_out: float
    text: Source | None = None
    stretches: tuple[Stretch, ...] = ()
    data: Data | None = None
    task: str = ""
    shards: int = 1
    chat: Chat | None = None

    @property
    def scored(self) -> bool:
        """True if its documents have scores."""
        return self.text is not None and bool(self.text.score)

    @property
    def size(self) -> int:
        """Bytes of input; 0 if they are not known."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)

    def records(self, progress: Callable[[int], object] = int) -> Iterator[Record]:
        """Yields the job's documents, in the order of the input; conversations as plain text."""
        if self.text is not None:
            found = texts if self.text.kind == "chat" else read
            for document in found(self.text, self.stretches, progress):
                yield Record(document.text, document.file, document.line, score=document.score)
        else:
            from t5x_llm.data import tasks

            assert self.data is not None
            yield from tasks.records(self.data, self.task, self.index, self.shards)

    def token_records(
        self, tokenizer: Tokenizer, tally: ChatTally, progress: Callable[[int], object] = int
    ) -> Iterator[Record]:
        """Yields the job's documents, conversations as token ids, which are counted in a tally."""
        if self.chat is None or self.text is None:
            yield from self.records(progress)
            return
        yield from token_records(self.text, self.chat, self.stretches, tokenizer, tally, progress)


@dataclasses.dataclass(frozen=True)
class JobResult:
    """Result of a job: path of its file, whether it has a loss mask, and counts by split.

    Of conversations also what became of them, and the tokens of each code by split.
    """

    path: str
    masked: bool
    documents: dict[str, int]
    tokens: dict[str, int]
    bytes: dict[str, int]
    tally: ChatTally | None = None
    codes: dict[str, list[int]] = dataclasses.field(default_factory=dict)


def training_texts(jobs: Iterable[StoreJob], tokenizer_made_elsewhere: str) -> Iterator[str]:
    """Yields the texts of the training split, from which a tokenizer is trained.

    Args:
      jobs: jobs of all sources.
      tokenizer_made_elsewhere: remedy for a user whose source has token ids in place of text.

    Raises:
      DataError: a source gives token ids.
    """
    for job in jobs:
        for record in job.records():
            if not isinstance(record.content, str):
                raise DataError(
                    f"Source {job.source!r} gives token ids. {tokenizer_made_elsewhere}"
                )
            if split_of(record.digest(), job.held_out) == "train":
                yield record.content


def run_job(job: StoreJob, tokenizer: Tokenizer, out: str, threads: int = 1,
        progress: Callable[[int], object] = int) -> JobResult:  # fmt: skip
    """Tokenizes the documents of a job and writes them to ``out``.npz.

    Args:
      job: the job.
      tokenizer: tokenizer of the texts.
      out: local path, without suffix.
      threads: threads of the tokenizer.
      progress: called with the bytes read.
    """
    columns: dict[str, dict[str, list[Any]]] = {
        split: {c: [] for c in ("digest", "ids", "bytes", "file", "line", "mask", "score")}
        for split in SPLITS
    }
    dtype = token_dtype(tokenizer)
    tally = ChatTally()
    for records in _groups(job.token_records(tokenizer, tally, progress)):
        texts = [r.content for r in records if isinstance(r.content, str)]
        encoded = iter(tokenizer.encode_batch(texts, threads=threads))
        for record in records:
            digest = record.digest()
            column = columns[split_of(digest, job.held_out)]
            if isinstance(record.content, str):
                ids, size = np.array(next(encoded), np.int64), len(record.content.encode())
            elif record.size is not None:
                ids, size = record.content, record.size
            else:
                _check_ids(job, record, tokenizer)
                ids = record.content.astype(np.int64)
                size = len(tokenizer.decode(ids.tolist()).encode())
            framed, mask = ids, record.mask
            if record.size is None:
                framed, mask = frame(ids, record.mask, tokenizer)
            column["digest"].append(digest)
            column["ids"].append(framed.astype(dtype))
            column["bytes"].append(size)
            column["file"].append(record.file)
            column["line"].append(record.line)
            column["mask"].append(mask)
            column["score"].append(record.score)
    masked = any(m is not None for column in columns.values() for m in column["mask"])
    arrays: dict[str, np.ndarray] = {}
    made = JobResult(f"{out}.npz", masked, {}, {}, {}, tally if job.chat else None)
    for split, column in columns.items():
        digests = column["digest"]
        order = sorted(range(len(digests)), key=lambda i: (digests[i], i))
        ids = [column["ids"][i] for i in order]
        lengths = np.array([len(x) for x in ids], np.int64)
        arrays[f"{split}/tokens"] = np.concatenate(ids) if ids else np.empty(0, dtype)
        arrays[f"{split}/lengths"] = lengths
        kinds = [("bytes", np.int64), ("file", np.int32), ("line", np.int64)]
        for name, kind in [*kinds, ("score", np.float32)] if job.scored else kinds:
            arrays[f"{split}/{name}"] = np.array([column[name][i] for i in order], kind)
        if masked:
            masks = [column["mask"][i] for i in order]
            parts = [
                np.ones(n, np.uint8) if m is None else m
                for n, m in zip(lengths.tolist(), masks, strict=True)
            ]
            arrays[f"{split}/mask"] = np.concatenate(parts) if parts else np.empty(0, np.uint8)
            if job.chat:
                counts = np.bincount(arrays[f"{split}/mask"], minlength=4)
                made.codes[split] = counts.tolist()
        made.documents[split] = len(order)
        made.tokens[split] = int(lengths.sum())
        made.bytes[split] = int(arrays[f"{split}/bytes"].sum())
    np.savez(made.path, **arrays)
    return made


def frame(
    ids: np.ndarray, mask: np.ndarray | None, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray | None]:
    """Adds the tokenizer's begin and end tokens to ids [n] and their mask, unless there."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    head = [] if bos is None or (len(ids) and ids[0] == bos) else [bos]
    tail = [] if eos is None or (len(ids) and ids[-1] == eos) else [eos]
    framed = np.concatenate([np.array(head, np.int64), ids, np.array(tail, np.int64)])
    if mask is not None:
        mask = np.concatenate([np.zeros(len(head)), mask, np.ones(len(tail))]).astype(np.uint8)
    return framed, mask


def token_dtype(tokenizer: Tokenizer) -> type[np.uint16] | type[np.uint32]:
    """Returns uint16 if every id of the tokenizer fits, else uint32."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def run_job_in_worker(job: StoreJob, tokenizer_path: str, out: str) -> JobResult:
    """Runs a job in a worker process, which loads the tokenizer once."""
    return run_job(job, _tokenizer(tokenizer_path), out)


@functools.cache
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)


def _groups(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Groups records of a million characters, which are encoded in one call."""
    group: list[Record] = []
    held = 0
    for record in records:
        group.append(record)
        held += len(record.content)
        if held >= _ENCODE_CHARS:
            yield group
            group, held = [], 0
    if group:
        yield group


def _check_ids(job: StoreJob, record: Record, tokenizer: Tokenizer) -> None:
    ids = record.content
    assert isinstance(ids, np.ndarray)
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise DataError(
            f"Task {job.task!r}, record {record.line} of shard {job.index}: token ids from "
            f"{ids.min()} to {ids.max()}, but the tokenizer has {tokenizer.vocab_size}. Give "
            "Data.tokenizer the vocabulary that the task uses."
        )
