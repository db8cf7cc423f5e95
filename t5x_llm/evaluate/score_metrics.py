"""Figures of classification and regression, as scikit-learn defines them; NumPy alone."""

from __future__ import annotations

import numpy as np


def classification(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes accuracy, precision, recall, F1 and ROC-AUC.

    Of two classes ``precision``, ``recall`` and ``f1`` are those of the second, the positive one,
    and ``roc_auc`` that of its score less the first's. Of more, ``roc_auc`` is the mean over the
    classes, each against the rest by its probability. What would be divided by no document is 0;
    ``roc_auc`` is left out where a class has none.

    Args:
      scores: [n, classes] float32 logits.
      labels: [n] int, the true class.

    Returns:
      The figures; also ``precision_macro``, ``recall_macro``, ``f1_macro`` (the means over the
      classes that occur in the labels or the predictions) and ``f1_micro``, which is the accuracy.
    """
    guessed, count = np.argmax(scores, -1), scores.shape[-1]
    each = np.array([_of_class(guessed == c, labels == c) for c in range(count)])
    occurs = np.array([np.any(guessed == c) or np.any(labels == c) for c in range(count)])
    macro = each[occurs].mean(0)
    accuracy = float(np.mean(guessed == labels))
    found = {"accuracy": accuracy, "f1_micro": accuracy}
    names = ("precision", "recall", "f1")
    found |= {f"{name}_macro": float(x) for name, x in zip(names, macro, strict=True)}
    if count == 2:
        found |= {name: float(x) for name, x in zip(names, each[1], strict=True)}
        area = roc_auc(scores[:, 1].astype(np.float64) - scores[:, 0], labels == 1)
    else:
        wide = scores.astype(np.float64)
        odds = np.exp(wide - wide.max(-1, keepdims=True))
        odds /= odds.sum(-1, keepdims=True)
        areas = [roc_auc(odds[:, c], labels == c) for c in range(count)]
        known = [a for a in areas if a is not None]
        area = float(np.mean(known)) if len(known) == count else None
    return found if area is None else found | {"roc_auc": area}


def _of_class(guessed: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    hits = float(np.sum(guessed & true))
    precision = hits / max(float(np.sum(guessed)), 1.0)
    recall = hits / max(float(np.sum(true)), 1.0)
    return precision, recall, 2 * hits / max(float(np.sum(guessed) + np.sum(true)), 1.0)


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Computes the area under the ROC curve: the share of pairs in order, half of those that tie.

    It is None where there are no positive documents, or no others.
    """
    yes = int(np.sum(positive))
    no = len(positive) - yes
    if not yes or not no:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of equal scores the mean rank
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def regression(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes mean squared error, mean absolute error and R2 of predictions [n].

    R2 is left out where all labels are equal.
    """
    error = scores.astype(np.float64) - labels
    spread = float(np.sum(np.square(labels - np.mean(labels, dtype=np.float64))))
    found = {"mse": float(np.mean(np.square(error))), "mae": float(np.mean(np.abs(error)))}
    return found if not spread else found | {"r2": 1 - float(np.sum(np.square(error))) / spread}
