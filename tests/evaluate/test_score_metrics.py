"""Figures of classification and regression against those that scikit-learn 1.9.1 gave."""

from __future__ import annotations

import numpy as np
import pytest

from t5x_llm.evaluate.score_metrics import classification, regression, roc_auc

SKLEARN = {
    2: {
        "accuracy": 0.45,
        "f1_micro": 0.45,
        "precision_macro": 0.4680306905370844,
        "recall_macro": 0.4666666666666667,
        "f1_macro": 0.44862155388471175,
        "precision": 0.5882352941176471,
        "recall": 0.4,
        "f1": 0.47619047619047616,
        "roc_auc": 0.5373333333333333,
    },
    3: {
        "accuracy": 0.5,
        "f1_micro": 0.5,
        "precision_macro": 0.48648247177658943,
        "recall_macro": 0.48648247177658943,
        "f1_macro": 0.48648247177658943,
        "roc_auc": 0.7295252933757211,
    },
}


def test_classification_and_regression_are_sklearns():
    draw = np.random.default_rng(3)
    for classes in (2, 3):
        scores = draw.normal(size=(40, classes))
        scores = np.round(scores, 1) if classes == 2 else scores  # with ties
        labels = draw.integers(0, classes, 40)
        scores[np.arange(40), labels] += 0.5
        assert classification(scores, labels) == pytest.approx(SKLEARN[classes], abs=1e-12)
    scores, labels = draw.normal(size=30), draw.normal(size=30)
    assert regression(scores, labels) == pytest.approx(
        {"mse": 1.7434621881751613, "mae": 1.0369365745704096, "r2": -1.0003179636283397}
    )


def test_what_cannot_be_told_is_left_out():
    assert roc_auc(np.array([0.1, 0.2]), np.array([True, True])) is None
    assert "roc_auc" not in classification(np.eye(2), np.array([1, 1]))
    assert "r2" not in regression(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
