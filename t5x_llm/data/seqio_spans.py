"""Span corruption as a seqio Task: the preprocessors of T5's ``span_corruption`` in TensorFlow.

They serve those who train or evaluate with seqio's own pipeline, and the tests, which compare the
stream with them. Training imports nothing of this module: the stream corrupts by position
(``row_objective``), which seqio's iterators cannot. The structure is that of the T5 paper's
released pipeline (arXiv 1910.10683; github.com/google-research/text-to-text-transfer-transformer):
documents are joined, cut into blocks, corrupted, and end with the end token on both sides.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import seqio
import tensorflow as tf

Features = Mapping[str, seqio.Feature]
_JOINED = 128  # documents joined before they are cut


def lengths(inputs_length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Returns the tokens of a block and of its targets, so that its inputs fill ``inputs_length``.

    End tokens of both sides are counted (t5's ``random_spans_helper``).
    """

    def both(tokens: int) -> tuple[int, int]:
        noise = int(round(tokens * density))
        spans = int(round(noise / mean_span))
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length - 1
    while both(tokens + 1)[0] <= inputs_length:
        tokens += 1
    inputs, targets = both(tokens)
    if density == 0.5 and targets > inputs:
        return tokens - 1, targets - 1
    return tokens, targets


def join_and_cut(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """Joins examples {targets: [n]} in order and cuts them every ``length`` tokens."""
    flat = dataset.map(lambda example: example["targets"]).ragged_batch(_JOINED)
    joined = flat.map(lambda rows: rows.flat_values).unbatch().batch(length)
    return joined.map(lambda tokens: {"targets": tokens})


def random_spans_noise_mask(
    length: tf.Tensor, seeds: tf.Tensor, density: float, mean_span: float
) -> tf.Tensor:
    """Draws a mask [length] bool of kept and noise spans by turns, a kept one first.

    Args:
      length: int32 scalar.
      seeds: [2, 2] int32.
      density: share of noise tokens.
      mean_span: tokens of a noise span.
    """
    size = tf.maximum(length, 2)
    noise = tf.cast(tf.round(tf.cast(size, tf.float32) * density), tf.int32)
    noise = tf.clip_by_value(noise, 1, size - 1)
    spans = tf.maximum(tf.cast(tf.round(tf.cast(noise, tf.float32) / mean_span), tf.int32), 1)

    def parts(items: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        begins = tf.cast(tf.range(items - 1) < spans - 1, tf.int32)
        begins = tf.pad(seqio.stateless_shuffle(begins, seed), [[1, 0]])
        number = tf.cumsum(begins)
        return tf.math.segment_sum(tf.ones_like(number), number)

    sizes = tf.stack([parts(size - noise, seeds[1]), parts(noise, seeds[0])], axis=1)
    turns = tf.range(2 * spans) % 2 == 1
    return tf.repeat(turns, tf.reshape(sizes, [-1]))[:length]


def spans_to_unique_sentinels(tokens: tf.Tensor, mask: tf.Tensor, first: int) -> tf.Tensor:
    """Replaces every run of True in ``mask`` by ``first``, ``first - 1``, ..."""
    before = tf.pad(mask[:-1], [[1, 0]])
    begins = tf.logical_and(mask, tf.logical_not(before))
    sentinel = first + 1 - tf.cumsum(tf.cast(begins, tokens.dtype))
    keep = tf.logical_not(tf.logical_and(mask, before))
    return tf.boolean_mask(tf.where(begins, sentinel, tokens), keep)


def denoise(
    dataset: tf.data.Dataset,
    output_features: Features,
    density: float,
    mean_span: float,
    sentinel: int | None = None,
) -> tf.data.Dataset:
    """Corrupts blocks {targets} to {inputs, targets}; sentinels go down from the vocabulary's end.

    ``sentinel`` gives another first sentinel than the last id of the vocabulary.
    """
    first = output_features["targets"].vocabulary.vocab_size - 1 if sentinel is None else sentinel

    @seqio.map_over_dataset(num_seeds=2)
    def corrupt(example: dict[str, tf.Tensor], seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = example["targets"]
        mask = random_spans_noise_mask(tf.size(tokens), seeds, density, mean_span)
        return {
            "inputs": spans_to_unique_sentinels(tokens, mask, first),
            "targets": spans_to_unique_sentinels(tokens, tf.logical_not(mask), first),
        }

    return corrupt(dataset)


def _span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Features,
    density: float,
    mean_span: float,
) -> tf.data.Dataset:
    tokens, targets = lengths(sequence_length["inputs"], density, mean_span)
    if sequence_length["targets"] < targets:
        raise ValueError(
            f"targets of {sequence_length['targets']} tokens are too short for inputs of "
            f"{sequence_length['inputs']}: they take {targets}"
        )
    return denoise(join_and_cut(dataset, tokens), output_features, density, mean_span)


def span_corruption_task(
    name: str,
    source: seqio.DataSource,
    vocabulary: seqio.Vocabulary,
    density: float = 0.15,
    mean_span: float = 3.0,
    field: str = "text",
) -> seqio.Task:
    """Registers a span-corruption task; ``Task.get_dataset`` takes the lengths of both sides.

    Args:
      name: of the task; one of that name is replaced.
      source: examples with a string ``field``, such as ``tasks.DocumentSource``.
      vocabulary: whose last ids are sentinels, e.g. ``SentencePieceVocabulary(path,
        extra_ids=100)``, or plain for a tokenizer trained with ``TokenizerTraining.extra_ids``.
      density: share of noise tokens.
      mean_span: tokens of a noise span.
      field: with the text.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    feature = seqio.Feature(vocabulary, add_eos=True)

    def text(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda example: {"targets": example[field]})

    corrupt: Any = functools.partial(_span_corruption, density=density, mean_span=mean_span)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            text,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            corrupt,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={"inputs": feature, "targets": feature},
    )
