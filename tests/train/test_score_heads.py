"""The task of a head of scores: packing changes nothing, padding is told by segments alone."""

from __future__ import annotations

import jax
import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.data.batch import Batch
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer
from t5x_llm.train.scoring import SCORE, Classification, Regression, ScoringTask

MODEL = Model(
    FAMILIES["llama"](
        vocab_size=32, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=24
    ).decoder(),
    Policy(compute="float32"),
)
DOCUMENTS = [([3, 9, 4, 7], 1.0), ([5, 0], 0.0), ([8, 2, 2], 2.0)]
LABELS = ("a", "b", "c")


def rows(layout, length=12):
    """A Batch with the documents of each row one after another."""
    shape = (len(layout), length)
    tokens, segments, places = (np.zeros(shape, np.int32) for _ in range(3))
    labels, mask = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, documents in enumerate(layout):
        at = 0
        for number, (ids, label) in enumerate(documents, 1):
            end = at + len(ids)
            tokens[row, at:end], segments[row, at:end] = ids, number
            places[row, at:end] = range(len(ids))
            labels[row, end - 1], mask[row, end - 1], at = label, 1.0, end
    source = np.zeros(shape[0], np.int32)
    return Batch(tokens, tokens, places, segments, mask, source, {"labels": labels})


def test_packing_changes_neither_loss_nor_gradient():
    packed, apart = rows([DOCUMENTS]), rows([[d] for d in DOCUMENTS])
    for scoring in (Classification(LABELS), Regression()):
        task = ScoringTask(MODEL, scoring, 12, ("s",), label_smoothing=0.1)
        params = task.init(jax.random.key(0))
        step = jax.jit(jax.value_and_grad(lambda p, b, t=task: t.loss(p, b, None), has_aux=True))
        (a, sums), grads = step(params, packed)
        (b, others), expected = step(params, apart)
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert sums["examples"] == others["examples"] == task.total(packed) == 3
        for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)
        assert ("accuracy" in sums) == ("smoothing" in sums) == isinstance(scoring, Classification)


def test_the_head_over_the_vocabulary_is_left_out_and_parts_freeze_by_path():
    task = ScoringTask(MODEL, Classification(LABELS), 12, ("s",))
    params = task.abstract_params()
    assert "head" not in params and params[SCORE]["kernel"].shape == (16, 3)
    chosen = Optimizer(trained=(SCORE, "final_norm")).trained_mask(params)
    assert chosen[SCORE]["kernel"] and not any(jax.tree.leaves(chosen["embed"]))
