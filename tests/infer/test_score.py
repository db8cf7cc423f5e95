"""Scores of continuations, against a pass over each request alone in float64; and on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditioned import assert_near, conditioned
from test_sampler import GPT, LLAMA, make

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.infer.score import Request, Scorer, _batch, score
from t5x_llm.models.families.bert import Bert
from t5x_llm.models.families.rwkv import RWKV
from t5x_llm.models.families.t5 import T5
from t5x_llm.models.model import Model
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings

LENGTH = 32
FAMILIES = {
    "llama": LLAMA,
    "rwkv": RWKV(vocab_size=258, d_model=32, n_layers=2, d_ff=48),
    "t5": T5(vocab_size=258, d_model=32, n_layers=2, n_heads=4, head_dim=8, d_ff=48, start_id=7),
}


def requests(seed=0, sizes=((1, 1), (5, 3), (2, 12), (20, 1), (1, 31), (3, 0), (9, 9))):
    rng = np.random.default_rng(seed)
    return [Request(rng.integers(0, 256, a).tolist(), rng.integers(0, 256, b)) for a, b in sizes]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return conditioned(FAMILIES[request.param])


def alone(model, params, request):
    """(log-probabilities in float64, ids of the likeliest tokens) of one request, unpadded rows."""
    context, scored = (list(map(int, x)) for x in request)
    encoder, ids, first = {}, [*context, *scored], len(context)
    if model.config.kind == "encoder_decoder":
        read = np.zeros((2, LENGTH), np.int32)
        read[0, : len(context)], read[1, : len(context)] = context, 1
        encoder = {"encoder_tokens": read[:1], "encoder_segment_ids": read[1:]}
        ids, first = [model.config.start, *scored], 1
    row = np.zeros((1, LENGTH + 1), np.int32)
    row[0, : len(ids)] = ids
    hidden, _ = forward(model)(params, row, **encoder)
    logits = np.asarray(hidden, np.float64)[0, first - 1 : len(ids) - 1]
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probs[np.arange(len(scored)), scored], logits.argmax(-1)


_COMPILED = {}


def forward(model):
    if model not in _COMPILED:

        def run(params, ids, **encoder):
            hidden, cache = model.apply(params, ids, **encoder)
            return model.logits(params, hidden), cache

        _COMPILED[model] = jax.jit(run)
    return _COMPILED[model]


def test_scores_are_those_of_each_request_alone(model):
    net, params = model
    asked = requests()
    found = score(net, params, asked, batch_size=2, length=LENGTH)
    for request, got in zip(asked, found, strict=True):
        expected, best = alone(net, params, request)
        assert got.log_probs.dtype == np.float32 and got.log_probs.shape == expected.shape
        assert_near(got.log_probs, expected)
        np.testing.assert_array_equal(got.greedy, best == request.continuation)
        assert got.total == pytest.approx(expected.sum(), rel=1e-5, abs=1e-6)
    assert any(s.greedy.any() for s in score(net, params, [_likeliest(net, params)]))


def _likeliest(net, params):
    """A request whose token is the argmax."""
    request = requests()[1]
    _, best = alone(net, params, request)
    return Request(request.context, [int(best[0])])


def test_order_batch_and_neighbours_do_not_matter(model):
    net, params = model
    asked = requests(1)
    found = score(net, params, asked, length=LENGTH)
    backwards = score(net, params, asked[::-1], length=LENGTH, batch_size=3)[::-1]
    for one, other in zip(found, backwards, strict=True):
        assert_near(other.log_probs, one.log_probs)


def test_eight_devices_equal_one(model):
    net, params = model
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    mesh, rules = make_mesh(config, jax.devices()[:8]), config.rules()
    placed = jax.device_put(
        params, param_shardings(net.logical_axes(), net.abstract_params(), mesh, rules)
    )
    asked = requests(2)
    one = score(net, params, asked, length=LENGTH)
    eight = score(net, placed, asked, length=LENGTH, mesh=mesh, rules=rules)
    for a, b in zip(one, eight, strict=True):
        assert_near(b.log_probs, a.log_probs)
        np.testing.assert_array_equal(a.greedy, b.greedy)


def test_bfloat16_is_near():
    net, params = conditioned(LLAMA)
    narrow = Model(net.config, Policy(compute="bfloat16"))
    for a, b in zip(score(net, params, requests()), score(narrow, params, requests()), strict=True):
        assert b.log_probs.dtype == np.float32
        assert_near(b.log_probs, a.log_probs, jnp.bfloat16)


def test_rows_hold_requests_as_segments():
    scorer = Scorer(make(LLAMA)[0], 8)
    row = [
        scorer._segment(i, Request(*r)) for i, r in enumerate([([10, 11], [12, 13]), ([20], [21])])
    ]
    batch = _batch([row], 2, 8)
    assert batch.tokens[0].tolist() == [10, 11, 12, 20, 0, 0, 0, 0]
    assert batch.targets[0].tolist() == [11, 12, 13, 21, 0, 0, 0, 0]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 2, 0, 0, 0, 0]
    assert batch.loss_mask[0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    assert not batch.segment_ids[1].any() and not batch.loss_mask[1].any()


def test_refusals_name_the_request():
    net, params = make(LLAMA)
    assert score(net, params, []) == []
    with pytest.raises(ConfigError, match=r"requests\[1\] = '9 tokens to read'.*length = 8"):
        score(net, params, [([1], [2]), ([1] * 5, [2] * 5)], length=8)
    with pytest.raises(ConfigError, match=r"requests\[0\] = 'no context'"):
        score(net, params, [([], [2])])
    gpt, its = make(GPT)
    with pytest.raises(ConfigError, match=r"requests\[0\].*length = 48"):
        score(gpt, its, [([1] * 30, [2] * 20)])
    with pytest.raises(ConfigError, match="length = 49.*at most 48"):
        Scorer(gpt, 49)
    with pytest.raises(ConfigError, match="an encoder"):
        Scorer(make(Bert(vocab_size=258, d_model=32, n_layers=1, n_heads=4))[0], 8)
    with pytest.raises(ConfigError, match="rules"):
        score(net, params, [], mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
