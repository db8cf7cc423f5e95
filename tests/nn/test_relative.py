"""Biases by relative position: buckets against the scalar reference, and the table's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.references.t5 import bucket
from t5x_llm.nn.relative import RelativeBiasConfig, buckets, relative_bias


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "longest"), [(32, 128), (8, 20), (16, 64), (64, 1000)])
def test_buckets(count, longest, both_ways):
    """Borders that are whole numbers too, such as 16 and 64 of (32, 128)."""
    config = RelativeBiasConfig(2, count, longest, both_ways)
    offsets = np.arange(-1100, 1101)
    fields = {"relative_attention_num_buckets": count, "relative_attention_max_distance": longest}
    expected = [bucket(int(d), fields, both_ways) for d in offsets]
    np.testing.assert_array_equal(buckets(config, jnp.asarray(offsets)), expected)
    idle = {count // 2} if both_ways else set()  # of a later key at distance 0
    assert set(expected) == set(range(count)) - idle


def test_the_bias_is_a_row_of_the_table_and_its_gradient_comes_back_there():
    config = RelativeBiasConfig(3, 8, 20, bidirectional=True)
    table = jax.random.normal(jax.random.key(0), (8, 3)).astype(jnp.bfloat16)
    q, kv = jnp.asarray([[4, 9]]), jnp.asarray([[0, 4, 5, 60]])
    found = relative_bias(q, kv, config, table)
    rows = buckets(config, kv[:, None] - q[:, :, None])
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, jnp.moveaxis(table[rows], -1, 1).astype(jnp.float32))
    count = jax.grad(lambda t: relative_bias(q, kv, config, t).sum())(table.astype(jnp.float32))
    np.testing.assert_array_equal(count[:, 0], np.bincount(rows.ravel(), minlength=8))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ((0, 32, 128, True), "n_heads"),
        ((2, 30, 128, True), "n_buckets"),
        ((2, 33, 128, False), "n_buckets"),
        ((2, 32, 8, True), "max_distance"),
        ((2, 32, 16, False), "max_distance"),
    ],
)
def test_nonsense_is_refused(fields, name):
    with pytest.raises(ConfigError, match=f"RelativeBiasConfig.{name}"):
        RelativeBiasConfig(*fields)
