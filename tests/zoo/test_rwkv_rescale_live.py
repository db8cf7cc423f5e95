"""transformers halves RWKV's stream every few layers at inference; ours computes the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import zoo  # noqa: E402
from make_golden import make_model  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_the_rescaled_model_is_the_same_but_for_epsilons():
    theirs = make_model(zoo.CASES["rwkv"] | {"rescale_every": 1})
    # A stream divided by 2^i has a variance divided by 4^i.
    blocks = theirs.rwkv.blocks
    for i, block in enumerate(blocks):
        block.ln1.eps = block.ln2.eps = block.ln1.eps / 4**i
    theirs.rwkv.ln_out.eps /= 4 ** len(blocks)
    ids = zoo.tokens()[None]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids.astype(np.int64))).logits[0].numpy()
    assert theirs.rwkv.layers_are_rescaled
    _, model, params = zoo.model("rwkv")
    found = zoo.run(model)(params, ids)
    np.testing.assert_allclose(found, expected, atol=zoo.tolerance("rwkv"), rtol=0)
