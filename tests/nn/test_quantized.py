"""Products of 8-bit numbers: qwix's own quantised training, the same in NumPy, nothing when off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from flax import nnx

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.nn.dense import Dense
from t5x_llm.nn.quantized import quantized

TYPES = {
    "int8": ("int8", "int8"),
    "fp8": ("float8_e4m3fn", "float8_e5m2"),
}
LARGEST = {"int8": 127.5, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def arrays(*shapes, dtype=jnp.bfloat16):
    """Skewed numbers: what is largest in a slice is positive.

    The negative of the largest, -127.5 steps, is rounded to -128 or -127 as division rounds.
    """
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        (jnp.exp(jax.random.normal(k, s)) - 0.3).astype(dtype)
        for k, s in zip(keys, shapes, strict=True)
    ]


def dense(inputs, outputs, kernel, **options):
    axes = {1: ("embed",), 2: ("heads", "head")}
    layer = Dense(
        inputs, outputs, axes[len(inputs)], axes[len(outputs)], std=1.0, bias=False,
        rngs=nnx.Rngs(0), **options,
    )  # fmt: skip
    layer.kernel = nnx.Param(kernel)
    return layer


def ours(kind, inputs, outputs, x, kernel, dy):
    """y, dx and dk."""

    def f(x, kernel):
        with quantized(kind):
            return dense(inputs, outputs, kernel)(x)

    y, back = jax.vjp(jax.jit(f), x, kernel)
    return y, *back(dy)


@pytest.mark.parametrize("kind", TYPES)
def test_qwix_quantises_a_model_to_the_same(kind):
    x, kernel, dy = arrays((3, 16, 32), (32, 24), (3, 16, 24))
    forward, backward = TYPES[kind]
    options = {"drhs_grad_qtype": None} if kind == "int8" else None
    rule = qwix.QtRule(
        weight_qtype=forward,
        act_qtype=forward,
        bwd_qtype=backward,
        additional_qt_config=options,
    )
    layer = nnx.Linear(32, 24, use_bias=False, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer = qwix.quantize_model(layer, qwix.QtProvider([rule]), x)
    graphdef, state = nnx.split(layer)

    def theirs(x, kernel):
        return nnx.merge(graphdef, jax.tree.map(lambda _: kernel, state))(x)

    y, back = jax.vjp(jax.jit(theirs), x, kernel)
    expected = [y, *back(dy)]
    if kind == "int8":  # qwix takes the rounded x for it, which saves it nothing
        expected[2] = jax.lax.dot_general(x, dy, (((0, 1), (0, 1)), ((), ())))
    for a, b in zip(ours(kind, (32,), (24,), x, kernel, dy), expected, strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def rounded(a, kind, axes):
    """The nearest numbers of a type with one scale for each slice along ``axes``."""
    scale = np.abs(a).max(axis=axes, keepdims=True) / np.float32(LARGEST[kind])
    a = a / scale
    a = np.clip(np.round(a), -128, 127) if kind == "int8" else a.astype(getattr(ml_dtypes, kind))
    return a.astype(np.float64) * scale


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("inputs", "outputs", "form"),
    [((8,), (4, 6), "btd,dnh->btnh"), ((4, 6), (8,), "btnh,nhd->btd")],
)
def test_numpy_rounds_and_multiplies_to_the_same(inputs, outputs, form, kind):
    x, kernel, dy = arrays(
        (2, 5, *inputs), (*inputs, *outputs), (2, 5, *outputs), dtype=jnp.float32
    )
    got = ours(kind, inputs, outputs, x, kernel, dy)
    x, kernel, dy = (np.asarray(a) for a in (x, kernel, dy))
    forward, backward = TYPES[kind]
    ins, outs = tuple(range(len(inputs))), tuple(range(2, 2 + len(outputs)))
    qx = rounded(x, forward, tuple(range(2, x.ndim)))
    qk = rounded(kernel, forward, ins)
    # The scales of the other side are in dy while it is rounded, and out again afterwards.
    k_scale = np.abs(kernel).max(axis=ins) / np.float32(LARGEST[forward])
    x_scale = np.abs(x).max(axis=tuple(range(2, x.ndim))).reshape(2, 5, *(1 for _ in outputs))
    x_scale = x_scale / np.float32(LARGEST[forward])
    to_x = rounded(dy * k_scale, backward, outs) / k_scale
    to_k = rounded(dy * x_scale, backward, (0, 1)) / x_scale
    left, right = form.split("->")[0].split(",")
    out = form.split("->")[1]
    y = np.einsum(form, qx, qk)
    if kind == "int8":  # kernels' gradients are those of numbers that are not rounded
        qx, to_k = x, dy
    expected = (
        y,
        np.einsum(f"{out},{right}->{left}", to_x, qk),
        np.einsum(f"{left},{out}->{right}", qx, to_k),
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def test_off_and_exact_layers_are_as_before():
    x, kernel = jnp.ones((2, 5, 8), jnp.bfloat16), jnp.ones((8, 24))

    def text(kind, **options):
        def f(x, kernel):
            with quantized(kind):
                return dense((8,), (24,), kernel, **options)(x)

        def both(x, kernel):
            y, back = jax.vjp(f, x, kernel)
            return back(y)

        return jax.jit(both).lower(x, kernel).as_text()

    plain = text("")
    assert text("int8", exact=True) == plain and "i8" not in plain and "f8" not in plain
    assert "i8" in text("int8") and "f8E5M2" in text("fp8")


@pytest.mark.parametrize("value", ["int4", "INT8", None, True])
def test_a_type_that_is_none(value):
    with pytest.raises(ConfigError, match="Policy.quantized"):
        Policy(quantized=value)


def test_dots_keeps_products_as_narrow_as_activations():
    """int32 sums, four bytes each, are not what ``Run.remat`` = 'dots' saves."""
    layers, (b, t, f) = 3, (2, 16, 24)
    family = Llama(vocab_size=32, d_model=8, n_layers=layers, n_heads=2, d_ff=f)
    model = Model(family.decoder(), Policy(quantized="int8"), remat="dots")
    tokens = jnp.zeros((b, t), jnp.int32)

    def pulled(params):
        return jax.vjp(lambda params: jnp.sum(model.apply(params, tokens)[0]), params)[1]

    kept = jax.tree.leaves(jax.eval_shape(pulled, model.abstract_params()))
    wide = [x.dtype.itemsize for x in kept if x.shape == (layers, b, t, f)]
    assert wide == [2, 2]  # mlp.gate and mlp.up
    assert not [x.shape for x in kept if x.dtype in ("int8", "int32") and x.ndim > 3]
