"""Kernels in few bits: bitsandbytes' codes, the bits they take, and products with them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.nn.fewbit.int8 import Int8Kernel
from t5x_llm.nn.fewbit.nf4 import SCALES, TABLE, Nf4, flat_codes
from t5x_llm.nn.fewbit.stored import Matrix, dequantise, frozen_product
from t5x_llm.nn.kernels import linear

GOLDEN = np.load(pathlib.Path(__file__).parent / "fewbit_golden.npz")
AXES = ("embed", "heads", "head")
KINDS = {"nf4": Nf4, "int8": Int8Kernel}


def golden_kernel(split=None):
    """The golden weight [outputs, inputs] as a kernel of ours."""
    weight = GOLDEN["weight"].astype(np.float32)
    kernel = weight.T if split is None else weight.T.reshape(128, *split)
    return jnp.asarray(kernel), Matrix((128,), kernel.shape[1:], AXES[: kernel.ndim])


@pytest.mark.parametrize("split", [None, (24, 8)])
def test_nf4_is_bitsandbytes(split):
    stored = jax.jit(Nf4.quantise, static_argnums=1)(*golden_kernel(split))
    packed = GOLDEN["packed"]
    np.testing.assert_array_equal(
        flat_codes(stored), np.stack([packed >> 4, packed & 15], 1).reshape(-1)
    )
    np.testing.assert_array_equal(TABLE, GOLDEN["table"][:16])
    np.testing.assert_array_equal(SCALES, GOLDEN["scale_table"])
    scales = np.asarray(stored.scales).reshape(2, -1).T.reshape(-1)
    np.testing.assert_array_equal(scales, GOLDEN["scales"])
    np.testing.assert_array_equal(stored.groups, GOLDEN["groups"])
    np.testing.assert_allclose(stored.offset, GOLDEN["offset"], rtol=1e-7)
    whole = np.asarray(stored[...]).reshape(128, -1).T
    np.testing.assert_allclose(whole, GOLDEN["whole"], rtol=1e-6, atol=1e-9)


def test_int8_is_bitsandbytes():
    stored = Int8Kernel.quantise(*golden_kernel())
    np.testing.assert_array_equal(np.asarray(stored.codes).T, GOLDEN["rows"])
    np.testing.assert_array_equal(stored.scales, GOLDEN["row_scales"])
    expected = GOLDEN["rows"].astype(np.float64) * GOLDEN["row_scales"][:, None] / 127
    np.testing.assert_allclose(np.asarray(stored[...]).T, expected, rtol=3e-7)


def test_bits_of_a_weight():
    def bits(kind, inputs, outputs):
        matrix = Matrix((inputs,), (outputs,), ("embed", "mlp"))
        shape = jax.ShapeDtypeStruct((3, inputs, outputs), jnp.float32)
        stored = jax.eval_shape(lambda x: kind.quantise(x, matrix), shape)
        assert stored.shape == shape.shape and stored.leading == (3,)
        return 8 * stored.nbytes / shape.size

    assert bits(Nf4, 4096, 11008) == pytest.approx(4.127, abs=1e-4)
    assert bits(Int8Kernel, 4096, 11008) == pytest.approx(8 + 32 / 4096)


@pytest.mark.parametrize("kind", list(KINDS))
def test_leading_axes_are_matrices_of_their_own(kind):
    rng = np.random.default_rng(1)
    matrix = Matrix((6, 12), (5,), ("heads", "head", "embed"))  # 72 inputs: a block of 64, one of 8
    kernels = rng.normal(size=(2, 3, *matrix.shape)).astype(np.float32)
    stored = KINDS[kind].quantise(jnp.asarray(kernels), matrix)
    assert stored.shape == kernels.shape and stored.leading == (2, 3)
    alone = KINDS[kind].quantise(jnp.asarray(kernels[1, 2]), matrix)
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(stored), strict=True):
        np.testing.assert_array_equal(one, many[1, 2])
    np.testing.assert_array_equal(stored[1, 2], alone[...])
    np.testing.assert_array_equal(stored[..., 0], stored[...][..., 0])
    tree = {"a": stored, "b": jnp.ones(2)}
    np.testing.assert_array_equal(dequantise(tree)["a"], stored[...])
    # Halves of the widest gap of the table, of a scale that itself has 8 bits; of 1 in 127.
    largest = np.abs(kernels).max((2, 3), keepdims=True)
    assert (np.abs(stored[...] - kernels) <= (0.16 if kind == "nf4" else 0.004) * largest).all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_products_and_gradients_are_those_of_the_dequantised_kernel(kind):
    rng = np.random.default_rng(2)
    matrix = Matrix((4, 32), (8, 3), ("heads", "head", "embed", "rank"))
    kernel = jnp.asarray(rng.normal(size=matrix.shape), jnp.float32)
    stored = KINDS[kind].quantise(kernel, matrix)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 32)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(2, 5, 8, 3)), jnp.float32)
    y, pull = jax.vjp(lambda x: frozen_product(x, stored, matrix.axes), x)
    expected, pull_whole = jax.vjp(lambda x: linear(x, stored[...], 2), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pull(w)[0], pull_whole(w)[0])
    np.testing.assert_allclose(
        y, np.einsum("btnh,nhef->btef", x, stored[...]), rtol=2e-5, atol=2e-5
    )
    # The kernel is no residual: the backward pass dequantises once more.
    kept = jax.tree.leaves(pull)
    assert all(leaf.size < kernel.size or leaf.dtype.itemsize == 1 for leaf in kept)


def test_a_frozen_kernel_has_no_gradient():
    kernel, matrix = golden_kernel()
    stored = Int8Kernel.quantise(kernel, matrix)
    x = jnp.ones((2, 128))

    def loss(scales):
        held = Int8Kernel(stored.codes, scales, matrix)
        return frozen_product(x, held, matrix.axes).sum()

    assert not np.asarray(jax.grad(loss)(stored.scales)).any()
