"""seqio: sources as Tasks, their rates as a Mixture, and users' own. Training never imports this.

A source ``s`` of the Data called ``d`` is the seqio Task ``t5x_llm.d.s``, with the features
``text``, ``file`` and ``line``; the mixture is ``t5x_llm.d``. Text and jsonl are read by the same
functions that store jobs call (``reading``), tfds by seqio itself.

Run as a program it resolves rates: pickled (Data, sizes) on stdin, JSON on stdout. ``prepare``
starts it early, so that seqio is imported on another core while text is tokenized, and training
that follows in the same process is spared TensorFlow.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import seqio
import tensorflow as tf

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.instruct.reading import texts
from t5x_llm.data.reading import SourceDocument, find_files, is_cut, plan_jobs, read, scan
from t5x_llm.data.record import Record, split_of
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.data.stretch import Stretch

Rate = float | Callable[[seqio.Task], float]
# Rank 0 and no vocabulary: the text itself, tokenized by us.
TEXT_FEATURES = {
    "text": seqio.Feature(
        seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0, required=True
    )
}


class DocumentSource(seqio.DataSource):
    """A text or jsonl ``Source`` for seqio; its shards are our store jobs.

    Args:
      source: what to read.
      held_out: share of documents in the split ``validation``.
    """

    def __init__(self, source: Source, held_out: float):
        super().__init__(splits=("train", "validation"))
        self._source, self._held_out = source, held_out

    @functools.cached_property
    def _jobs(self) -> list[tuple[Stretch, ...]]:
        paths = find_files(self._source)
        return plan_jobs(scan(path, is_cut(self._source, path)) for path in paths)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Always false, as shards are jobs."""
        return False

    def list_shards(self, split: str) -> list[str]:
        """Returns one name for each job."""
        return [f"{job[0].path}:{job[0].line}" for job in self._jobs]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: object,
    ) -> tf.data.Dataset:
        """Returns the documents of a split, by file and line; ``shuffle`` shuffles the shards."""
        jobs = list(self._jobs)
        if shard_info:
            jobs = jobs[shard_info.index :: shard_info.num_shards]
        if shuffle:
            order = np.random.default_rng(seed).permutation(len(jobs))
            jobs = [jobs[i] for i in order]

        def documents() -> Iterator[dict[str, Any]]:
            found = texts if self._source.kind == "chat" else read
            for job in jobs:
                for document in found(self._source, job):
                    digest = Record(document.text, document.file, document.line).digest()
                    if split_of(digest, self._held_out) == split:
                        yield as_example(document)

        signature = {
            "text": tf.TensorSpec((), tf.string),
            "file": tf.TensorSpec((), tf.int32),
            "line": tf.TensorSpec((), tf.int64),
        }
        return tf.data.Dataset.from_generator(documents, output_signature=signature)


def as_example(document: SourceDocument) -> dict[str, Any]:
    """Returns a ``SourceDocument`` as a seqio example."""
    return {"text": document.text, "file": document.file, "line": document.line}


def import_modules(modules: tuple[str, ...]) -> None:
    """Imports the modules that register tasks, mixtures and tfds builders.

    Raises:
      ConfigError: naming the module that is not there.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name and not name.startswith(e.name):
                raise
            raise ConfigError(
                "Data.modules", name, "a module that can be imported",
                "Run from its directory, or put that on PYTHONPATH.",
            ) from e  # fmt: skip


def _field_as_text(dataset: tf.data.Dataset, field: str, name: str) -> tf.data.Dataset:
    spec = dataset.element_spec
    if field not in spec or spec[field].dtype != tf.string or spec[field].shape.rank != 0:
        strings = [k for k, v in spec.items() if getattr(v, "dtype", None) == tf.string]
        raise DataError(
            f"Source {name!r}: tfds examples have no string {field!r} (Source.field); "
            f"there are {', '.join(sorted(strings)) or 'no strings at all'}."
        )
    return dataset.map(lambda example: {"text": example[field]})


def _task(data: Data, source: Source) -> seqio.Task:
    name = f"t5x_llm.{data.name}.{source.name}"
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    if source.kind != "tfds":
        return seqio.TaskRegistry.add(
            name,
            source=DocumentSource(source, data.held_out(source)),
            preprocessors=[],
            output_features=TEXT_FEATURES,
        )
    preprocess = functools.partial(_field_as_text, field=source.field, name=source.name)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(
            tfds_name=source.tfds,
            tfds_data_dir=source.tfds_data_dir or None,
            splits={"train": source.tfds_split},
        ),
        preprocessors=[preprocess],
        output_features=TEXT_FEATURES,
    )


def register(data: Data, sizes: Mapping[str, float]) -> seqio.Mixture:
    """Registers the seqio Mixture of a configuration with its tasks, again if they were there.

    Args:
      data: the configuration.
      sizes: what ``mixed_sizes`` gives by source, looked up when a rate is asked for.

    Raises:
      ConfigError: a seqio mixture that no module registers.
    """
    import_modules(data.modules)
    if data.mixture is None:
        return _registered(data)
    tasks = [_task(data, source) for source in data.mixture.sources]
    name = f"t5x_llm.{data.name}"
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    rates = [_rate(data.mixture, i, sizes) for i in range(len(tasks))]
    return seqio.MixtureRegistry.add(name, list(zip(tasks, rates, strict=True)))


def _registered(data: Data) -> seqio.Mixture:
    name = data.seqio_mixture
    if name in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.get(name)
    if name in seqio.TaskRegistry.names():
        return seqio.Mixture(name, [(name, 1.0)])
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    raise ConfigError(
        "Data.seqio_mixture",
        name,
        "" if known else "a mixture or task registered with seqio (there is none)",
        "Name the module that registers it in Data.modules.",
        choices=known,
    )


def _rate(mixture: Mixture, index: int, sizes: Mapping[str, float]) -> Rate:
    if not isinstance(mixture.rates, str):
        return float(mixture.rates[index])
    name = mixture.sources[index].name
    power = 1.0 / mixture.temperature if mixture.rates == "temperature" else 1.0
    return lambda task: float(sizes[name]) ** power


def source_names(data: Data, mixture: seqio.Mixture) -> dict[str, str]:
    """Returns source name -> task name, in the order of the configuration or of the mixture."""
    if data.mixture is not None:
        return {s.name: f"t5x_llm.{data.name}.{s.name}" for s in data.mixture.sources}
    return {re.sub(r"\W", "_", task.name): task.name for task in mixture.tasks}


def planned_sources(data: Data) -> tuple[str, ...]:
    """Names of the sources that the stores of a seqio mixture will have, in their order."""
    import_modules(data.modules)
    return tuple(source_names(data, _registered(data)))


def rates(data: Data, sizes: Mapping[str, float]) -> dict[str, float]:
    """Returns the share of each source as seqio resolves it; the shares add up to 1."""
    mixture = register(data, sizes)
    names = source_names(data, mixture)
    found = {
        name: float(mixture.get_rate(seqio.TaskRegistry.get(task))) for name, task in names.items()
    }
    total = sum(found.values())
    if not total > 0 or any(rate < 0 for rate in found.values()):
        raise ConfigError(
            "Mixture.rates" if data.mixture else "Data.seqio_mixture",
            found,
            "rates of at least 0, one of them above 0",
        )
    return {name: rate / total for name, rate in found.items()}


def shards(data: Data, task_name: str) -> list[str]:
    """Returns the input shards of a task's train split.

    Raises:
      DataError: the task has no such split, or its input is not there.
    """
    register(data, {})
    task = seqio.TaskRegistry.get(task_name)
    try:
        if "train" not in task.splits:
            raise DataError(
                f"seqio task {task_name!r} has no split 'train'; it has {sorted(task.splits)}."
            )
        found = list(task.source.list_shards("train"))
    except (OSError, ValueError, AssertionError, ImportError) as e:  # whatever tfds makes of it
        raise DataError(f"seqio task {task_name!r}: its input cannot be opened: {e}") from e
    if not found:
        raise DataError(f"seqio task {task_name!r}: its input has no shards.")
    return found


def input_files(task_name: str, names: list[str]) -> list[str]:
    """Returns the shards of a registered task that are files of this machine."""
    source = seqio.TaskRegistry.get(task_name).source
    folders = [""]
    if isinstance(source, seqio.TfdsDataSource):
        folders.append(str(source.tfds_dataset.builder.data_dir))
    paths = [os.path.join(folder, name) for name in names for folder in folders]
    return sorted({path for path in paths if os.path.isfile(path)})


def records(data: Data, task_name: str, shard: int, count: int) -> Iterator[Record]:
    """Yields the documents of one shard of a task, after its preprocessors.

    Raises:
      DataError: examples with neither a string ``text`` nor integer ``targets``.
    """
    register(data, {})
    task = seqio.TaskRegistry.get(task_name)
    dataset = task.get_dataset(
        sequence_length=None,
        split="train",
        shuffle=False,
        shard_info=seqio.ShardInfo(shard, count) if count > 1 else None,
        num_epochs=1,
    )
    for number, example in enumerate(dataset.as_numpy_iterator(), start=1):
        yield from _record(example, task_name, shard, number)


def _record(example: Mapping[str, Any], task: str, shard: int, number: int) -> Iterator[Record]:
    where = f"seqio task {task!r}, shard {shard}, example {number}"
    text = example.get("text", example.get("targets"))
    if isinstance(text, bytes):
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as e:
            raise DataError(f"{where}: not UTF-8 at byte {e.start} of the text.") from e
        if decoded:
            yield Record(decoded, shard, number)
        return
    ids = example.get("targets")
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected a string 'text' or a list of token ids 'targets', found "
            f"{', '.join(f'{k} ({np.asarray(v).dtype})' for k, v in sorted(example.items()))}."
        )
    mask = example.get("loss_mask")
    if mask is not None and np.shape(mask) != ids.shape:
        raise DataError(f"{where}: loss_mask has shape {np.shape(mask)}, targets {ids.shape}.")
    if len(ids):
        yield Record(ids, shard, number, None if mask is None else np.asarray(mask, np.uint8))


def vocabulary_fingerprint(data: Data, task_name: str) -> str | None:
    """Returns the SHA-256 of the SentencePiece model of a task's ``targets``, if there is one."""
    register(data, {})
    feature = seqio.TaskRegistry.get(task_name).output_features.get("targets")
    vocabulary = getattr(feature, "vocabulary", None)
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return None
    return hashlib.sha256(vocabulary.sp_model).hexdigest()


if __name__ == "__main__":
    json.dump(rates(*pickle.load(sys.stdin.buffer)), sys.stdout)
