"""Routers' losses against the papers' formulas, and configs that cannot work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.router import GroupLimitConfig, RouterConfig, balance_loss, z_loss


def test_balance_loss_is_one_at_uniform_routing_and_e_at_collapse():
    valid = np.ones((2, 8), bool)
    uniform = jnp.full((2, 8, 4), 0.25)
    experts = jnp.arange(32).reshape(2, 8, 2) % 4
    np.testing.assert_allclose(balance_loss(uniform, experts, valid), 1.0, rtol=1e-6)
    collapsed = jax.nn.one_hot(jnp.full((2, 8), 3), 4)
    np.testing.assert_allclose(
        balance_loss(collapsed, jnp.full((2, 8, 1), 3), valid), 4.0, rtol=1e-6
    )
    valid[0, :] = False  # the other row alone: its choices are as uniform
    garbage = uniform.at[0].set(9.0)
    np.testing.assert_allclose(balance_loss(garbage, experts, valid), 1.0, rtol=1e-6)
    # Switch Transformer's formula, term by term.
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (1, 10))
    choice = p.argmax(-1)
    f = np.bincount(choice[0], minlength=4) / 10
    np.testing.assert_allclose(
        balance_loss(jnp.asarray(p), jnp.asarray(choice)[..., None], np.ones((1, 10), bool)),
        4 * np.sum(f * p[0].mean(0)),
        rtol=1e-5,
    )


def test_z_loss_is_its_formula():
    logits = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32) * 3
    valid = np.ones((2, 5), bool)
    valid[1, 2:] = False
    expected = np.mean(np.log(np.exp(logits[valid].astype(np.float64)).sum(-1)) ** 2)
    np.testing.assert_allclose(z_loss(jnp.asarray(logits), jnp.asarray(valid)), expected, rtol=1e-5)


def router(**changes):
    base = dict(n_experts=8, top_k=2, scoring="softmax", correction=False, groups=None)
    base |= dict(normalise=None, scale=1.0, balance_weight=0.01, z_weight=0.001)
    return RouterConfig(**base | changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: router(top_k=9), "RouterConfig.top_k = 9.*at most 8"),
        (lambda: router(scoring="softmin"), "Did you mean 'softmax'"),
        (lambda: router(normalise=0.0), "RouterConfig.normalise"),
        (lambda: router(scale=-1.0), "RouterConfig.scale"),
        (lambda: router(groups=GroupLimitConfig(3, 2, "max")), "n_groups = 3.*divisor"),
        (lambda: router(top_k=5, groups=GroupLimitConfig(4, 2, "max")), "top_k = 5.*at most 4"),
        (lambda: router(groups=GroupLimitConfig(8, 2, "top2")), "'max' for groups of one"),
        (lambda: GroupLimitConfig(4, 4, "max"), "top_groups = 4.*no limit"),
    ],
)
def test_what_cannot_work_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        change()
