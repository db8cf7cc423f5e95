"""AdaLoRA's triplets: the base to the bit at first, equal to NumPy, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_models import adapter_leaves, gradients, hidden, made, shaken, some, tokens, without

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.optim.rank_allocation import triplets

FAMILIES = ("llama", "qwen2", "gpt2", "mixtral", "falcon", "mamba", "t5")


@pytest.mark.parametrize("family", some(FAMILIES, ("llama", "mixtral")))
def test_a_fresh_one_is_the_base_to_the_bit_and_all_of_a_trained_one_matters(family):
    targets = ("attention", "feed_forward") if family != "mamba" else "all_linear"
    model, params = made(family, AdaLoRA(rank=1 if family == "mamba" else 3, target_rank=1,
                                         targets=targets))  # fmt: skip
    ids = tokens(2, 8)
    base = hidden(family, without(params), ids)
    np.testing.assert_array_equal(hidden(family, params, ids, model), base)
    assert all(not np.any(found["e"]) for found in triplets(params).values())
    assert all(np.abs(x).max() < 0.2 for x in adapter_leaves(params).values())
    grads = adapter_leaves(gradients(model, shaken(params), family))
    assert len(grads) == 3 * len(triplets(params))
    assert all(np.abs(x).max() > 1e-6 for x in grads.values())


def test_change_equals_numpy():
    model, params = made("llama", AdaLoRA(rank=3, target_rank=1, alpha=6.0, targets="mlp.up"))
    params = shaken(params)
    ids = tokens(2, 8)
    found = hidden("llama", params, ids, model)
    plain = without(params)
    up = params["group_0"]["block_0"]["mlp"]["up"]
    a, e, b = (np.asarray(up["adapter"][name]) for name in ("a", "e", "b"))
    change = np.einsum("ldr,lr,lrf->ldf", a, e, b) * 6.0 / (3 + 1e-5)
    plain["group_0"]["block_0"]["mlp"]["up"] = {"kernel": up["kernel"] + jnp.asarray(change)}
    np.testing.assert_allclose(found, hidden("llama", plain, ids), atol=2e-5)


def test_values_depend_on_seed_and_path_alone():
    _, one = made("llama", AdaLoRA(rank=3, target_rank=1))
    _, other = made("llama", AdaLoRA(rank=3, target_rank=1, targets="attention.query"))
    query = other["group_0"]["block_0"]["attention"]["query"]["adapter"]
    same = one["group_0"]["block_0"]["attention"]["query"]["adapter"]
    jax.tree.map(np.testing.assert_array_equal, same, query)


def test_mistakes():
    with pytest.raises(ConfigError, match="AdaLoRA.target_rank = 9"):
        AdaLoRA(rank=8, target_rank=9)
    with pytest.raises(ConfigError, match="AdaLoRA.beta1 = 1"):
        AdaLoRA(beta1=1.0)
    with pytest.raises(ConfigError, match="AdaLoRA.rank = 33.*at most 16"):
        made("llama", AdaLoRA(rank=33, targets="attention"))
    with pytest.raises(ConfigError, match="AdaLoRA.dropout.*0 for experts"):
        made("mixtral", AdaLoRA(rank=3, target_rank=1, dropout=0.1))
    with pytest.raises(ConfigError, match="AdaLoRA.final = 5.*below Loop.steps = 10"):
        AdaLoRA(start=5, final=5).check(None, 10)
