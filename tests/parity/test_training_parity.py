"""Fifty AdamW steps from the same weights on the same batches: the losses of torch."""

from __future__ import annotations

import json

import jax
import numpy as np
import optax
import pytest
from cases import ADAMW, GOLDEN, batch_of, training_batches

from t5x_llm.core.dtypes import Policy
from t5x_llm.hf.import_ import import_model
from t5x_llm.models.model import Model


def our_losses(tx: optax.GradientTransformation) -> list[float]:
    """Mean next-token loss before each step."""
    family, params, *_ = import_model(GOLDEN / "llama_untied", check=False)
    model = Model(family.decoder(), Policy(compute="float32"))

    @jax.jit
    def step(params, opt_state, rows):
        def mean_loss(params):
            return model.loss(params, batch_of(rows))[0] / rows[:, 1:].size

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for rows in training_batches():
        params, opt_state, loss = step(params, opt_state, rows)
        losses.append(float(loss))
    return losses


def optimizer() -> optax.GradientTransformation:
    """torch's AdamW as ours: decay of every parameter, no clipping, constant rate."""
    from t5x_llm.optim import Optimizer, Schedule

    config = Optimizer(
        name="adamw",
        schedule=Schedule(name="constant", peak=ADAMW["lr"], warmup_steps=0),
        b1=ADAMW["betas"][0],
        b2=ADAMW["betas"][1],
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
        clip_norm=None,
        decay_mask="all",
    )
    return config.build(len(training_batches()))


@pytest.fixture(scope="module")
def ours():
    return our_losses(optimizer())


def test_against_golden_losses(ours):
    golden = json.loads((GOLDEN / "training.json").read_text())
    np.testing.assert_allclose(ours, golden, rtol=1e-4)
    assert golden[-1] < 0.6 * golden[0]


def test_against_torch_live(ours):
    pytest.importorskip("torch")
    import make_golden

    theirs = make_golden.train(make_golden.make_model(make_golden.CONFIGS["llama_untied"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
