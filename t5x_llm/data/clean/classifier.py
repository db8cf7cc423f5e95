"""Classifiers of text, trained in place from seed files: quality, topics.

A model is a directory: ``classifier.json`` says what it is, ``classifier.npz`` holds its weights.
Neither is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_llm.core.errors import ConfigError, DataError, check_number
from t5x_llm.core.paths import as_path, write_atomic, write_json
from t5x_llm.data.clean.characters import HAN
from t5x_llm.data.clean.document import Answer, Document, Drop

FORMAT = "t5x_llm text classifier 1"
_JSON, _NPZ = "classifier.json", "classifier.npz"
# Chinese characters, English words, numbers as one kind of word.
_TOKEN = rf"[{HAN}]|[^\W\d_{HAN}]+|\d+"
_MOST_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class ClassifierTraining:
    """Options of training a classifier.

    Its features are words and pairs of words, of Chinese characters and pairs of them, hashed; its
    model is logistic regression with an L2 penalty.

    Attributes:
      features: weights for each label, a power of two.
      strength: inverse of the penalty, scikit-learn's C.
      characters: of each text that are read.
      held_out: share of the texts, by hash, that measure it.
    """

    features: int = 1 << 18
    strength: float = 10.0
    characters: int = 10_000
    held_out: float = 0.1

    def __post_init__(self) -> None:
        check_number("ClassifierTraining.features", self.features, low=2, high=1 << 24)
        if self.features & (self.features - 1):
            raise ConfigError("ClassifierTraining.features", self.features, "a power of two")
        check_number("ClassifierTraining.strength", self.strength, above=0)
        check_number("ClassifierTraining.characters", self.characters, low=1, integer=True)
        check_number("ClassifierTraining.held_out", self.held_out, low=0, high=0.5)


class Classifier:
    """Trained classifier, which gives a text a probability for each label."""

    def __init__(self, labels: Sequence[str], weights: np.ndarray, bias: np.ndarray, read: int):
        """Takes weights [features, labels] and bias [labels], float32.

        The first ``read`` characters of a text are looked at.
        """
        self.labels = tuple(labels)
        self.weights, self.bias, self.read = weights, bias, read
        self._vectorizer = _vectorizer(weights.shape[0])

    def scores(self, text: str) -> dict[str, float]:
        """Returns the probability of each label; they sum to 1."""
        row = self._vectorizer.transform([text[: self.read]])
        logits = (row.data @ self.weights[row.indices] + self.bias).astype(np.float64)
        odds = np.exp(logits - logits.max())
        return dict(zip(self.labels, map(float, odds / odds.sum()), strict=True))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the model, the description last."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, weights=self.weights, bias=self.bias)
        path = as_path(directory)
        write_atomic(path / _NPZ, buffer.getvalue())
        write_json(
            path / _JSON,
            {
                "format": FORMAT,
                "labels": list(self.labels),
                "features": self.weights.shape[0],
                "characters": self.read,
            },
        )


def load_classifier(field: str, directory: str | os.PathLike[str]) -> Classifier:
    """Loads a classifier from its directory.

    Raises:
      ConfigError: naming ``field``, if there is no model or it is incomplete.
    """
    path = as_path(directory)
    try:
        about = json.loads((path / _JSON).read_text(encoding="utf-8"))
        labels, features = tuple(map(str, about["labels"])), int(about["features"])
        if about["format"] != FORMAT or not 2 <= features <= 1 << 24 or len(set(labels)) < 2:
            raise ValueError("it is of another format")
        if 4 * features * len(labels) > _MOST_BYTES:
            raise ValueError("its size is absurd")
        raw = io.BytesIO((path / _NPZ).read_bytes())
        with zipfile.ZipFile(raw) as packed:
            if sum(part.file_size for part in packed.infolist()) > 4 * (features + 1000) * len(
                labels
            ):
                raise ValueError("its weights are larger than it says")
        with np.load(raw, allow_pickle=False) as arrays:
            weights, bias = arrays["weights"], arrays["bias"]
        if (
            weights.shape != (features, len(labels)) or bias.shape != (len(labels),)
            or weights.dtype != np.float32 or not np.isfinite(weights).all()
            or not np.isfinite(bias).all()
        ):  # fmt: skip
            raise ValueError("its weights do not fit its description")
        return Classifier(labels, weights, bias, int(about["characters"]))
    except Exception as e:
        raise ConfigError(
            field,
            os.fspath(directory),
            f"the directory of a trained classifier ({type(e).__name__}: {e})",
            "Train one: t5x_llm.data.clean.classifier.train_classifier.",
        ) from e


def train_classifier(
    seeds: Mapping[str, Iterable[str]], config: ClassifierTraining | None = None
) -> tuple[Classifier, dict[str, float]]:
    """Trains on texts by label: ``{"good": [...], "bad": [...]}``, or topics.

    Labels count alike, however many texts each has.

    Returns:
      The model, and on held-out texts ``accuracy``, and ``auc`` where there are two labels; nothing
      is measured where some label has no held-out text.

    Raises:
      DataError: if there are fewer than two labels, or one without a text.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, roc_auc_score

    config = config or ClassifierTraining()
    labels = sorted(seeds)
    if len(labels) < 2:
        raise DataError(f"A classifier needs two labels at least; there is {labels}.")
    texts: list[str] = []
    targets: list[int] = []
    for at, label in enumerate(labels):
        found = [text[: config.characters] for text in seeds[label] if text.strip()]
        if not found:
            raise DataError(f"No text is labelled {label!r}: nothing to learn from.")
        texts += found
        targets += [at] * len(found)
    held = np.array([_hash(text) < config.held_out for text in texts])
    goal = np.array(targets)
    if any(not (goal[~held] == at).any() for at in range(len(labels))):
        held[:] = False
    rows = _vectorizer(config.features).transform(texts)
    model = LogisticRegression(C=config.strength, class_weight="balanced", max_iter=500)
    model.fit(rows[~held], goal[~held])
    weights, bias = model.coef_.T, model.intercept_
    if len(labels) == 2:  # scikit-learn holds the second label's alone
        weights = np.concatenate([np.zeros_like(weights), weights], 1)
        bias = np.concatenate([np.zeros_like(bias), bias])
    trained = Classifier(
        labels, weights.astype(np.float32), bias.astype(np.float32), config.characters
    )
    measured: dict[str, float] = {}
    if all((goal[held] == at).any() for at in range(len(labels))):
        odds = model.predict_proba(rows[held])
        measured["accuracy"] = float(accuracy_score(goal[held], odds.argmax(1)))
        if len(labels) == 2:
            measured["auc"] = float(roc_auc_score(goal[held], odds[:, 1]))
    return trained, measured


def _hash(text: str) -> float:
    raw = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(raw) / 2**64


def _vectorizer(features: int) -> Any:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as e:
        raise ConfigError(
            "QualityClassifier", "scikit-learn", "an installed package",
            "Install the extra: pip install 't5x-llm[clean]'.",
        ) from e  # fmt: skip
    return HashingVectorizer(
        token_pattern=_TOKEN,
        ngram_range=(1, 2),
        n_features=features,
        alternate_sign=False,
        dtype=np.float32,
    )


@dataclasses.dataclass(frozen=True)
class QualityClassifier:
    """Drops documents that a trained classifier finds bad; writes ``quality`` into ``meta``.

    Attributes:
      model: its directory.
      threshold: least probability of ``good``.
      good: the label that is wanted.
      language: whose documents are judged; empty judges all.
    """

    model: str
    threshold: float = 0.5
    good: str = "good"
    language: str = ""

    def __post_init__(self) -> None:
        check_number("QualityClassifier.threshold", self.threshold, low=0, high=1)
        labels = load_classifier("QualityClassifier.model", self.model).labels
        if self.good not in labels:
            raise ConfigError("QualityClassifier.good", self.good, choices=labels)

    @property
    def name(self) -> str:
        return f"quality classifier {self.language}".strip()

    def open(self) -> Callable[[Document], Answer]:
        model = load_classifier("QualityClassifier.model", self.model)

        def step(document: Document) -> Answer:
            if not document.concerns(self.language):
                return document
            score = round(model.scores(document.text)[self.good], 4)
            if score < self.threshold:
                return Drop("low quality", f"{score:.2f}", {"quality": score})
            return document.with_meta(quality=score)

        return step


@dataclasses.dataclass(frozen=True)
class Label:
    """Writes a trained classifier's label and its probability into ``meta``; drops nothing.

    Attributes:
      model: its directory.
      key: in ``meta``: ``topic`` gives ``topic`` and ``topic_score``.
      least: probability below which the label is left empty.
      language: whose documents are labelled; empty labels all.
    """

    model: str
    key: str = "topic"
    least: float = 0.0
    language: str = ""

    def __post_init__(self) -> None:
        if not self.key.isidentifier():
            raise ConfigError("Label.key", self.key, "letters, digits and underscores")
        check_number("Label.least", self.least, low=0, high=1)
        load_classifier("Label.model", self.model)

    @property
    def name(self) -> str:
        return f"label {self.key} {self.language}".strip()

    def open(self) -> Callable[[Document], Answer]:
        model = load_classifier("Label.model", self.model)

        def step(document: Document) -> Answer:
            if not document.concerns(self.language):
                return document
            scores = model.scores(document.text)
            best = max(scores, key=lambda label: scores[label])
            score = round(scores[best], 4)
            label = best if score >= self.least else ""
            return document.with_meta(**{self.key: label, f"{self.key}_score": score})

        return step
