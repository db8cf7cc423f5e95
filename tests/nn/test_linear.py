"""One product: the plain form wherever there is more than one CPU, the same numbers everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.nn.kernels import linear
from t5x_llm.nn.kernels import products as module

FORMS = [
    ((2, 6, 8), (8, 24), 1, "btd,df->btf"),
    ((2, 6, 24), (24, 8), 1, "btd,df->btf"),
    ((2, 6, 8), (8, 4, 5), 1, "btd,dnh->btnh"),
    ((2, 6, 4, 5), (4, 5, 8), 2, "btnh,nhd->btd"),
]


def _arrays(dtype: jnp.dtype, *shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("x", "kernel", "n_inputs", "form"), FORMS)
def test_values_and_gradients_are_those_of_einsum(x, kernel, n_inputs, form, dtype):
    x, kernel = _arrays(jnp.dtype(dtype), x, kernel)
    dy = jnp.cos(jnp.arange(jnp.einsum(form, x, kernel).size, dtype=jnp.float32))

    def run(f):
        def loss(x, kernel):
            return jnp.sum(f(x, kernel).astype(jnp.float32).ravel() * dy)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

    def exact(x, kernel):
        return jnp.einsum(form, x.astype(jnp.float32), kernel.astype(jnp.float32))

    tolerance = 1e-5 if dtype == "float32" else 2e-2
    ours, reference = run(lambda x, k: linear(x, k, n_inputs)), run(exact)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("x", "kernel", "n_inputs", "form"), FORMS)
def test_accelerators_see_the_plain_product(x, kernel, n_inputs, form, platform, monkeypatch):
    name = "gpu" if platform == "cuda" else platform
    monkeypatch.setattr(module, "platform", lambda: name)
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (x, kernel)]

    def text(f):
        def both(x, kernel):
            return jax.vjp(f, x, kernel)[1](f(x, kernel))

        return jax.jit(both).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()

    plain = text(lambda x, kernel: jnp.tensordot(x, kernel, n_inputs))
    assert text(lambda x, kernel: linear(x, kernel, n_inputs)) == plain


def test_one_cpu_uses_no_product_with_a_transposed_operand():
    """The form that decides bfloat16 speed on this backend, see docs/benchmarks.md."""
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((2, 128, 64), (64, 256)))

    def both(x, kernel):
        return jax.vjp(linear, x, kernel)[1](linear(x, kernel))

    lines = jax.jit(both).lower(x, kernel).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) == 3
    for line in products:
        assert "contracting_dims = [1] x" in line
        assert "tensor<f32>" in line or "xf32>" in line.rsplit("->", 1)[1]
