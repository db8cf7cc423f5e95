"""Chunked cross entropy against optax on whole logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_llm.objectives.lm import Pieces, cross_entropy

B, T, D, V = 2, 10, 16, 40


def _inputs(dtype, transposed):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D), dtype)
    kernel = 0.3 * jax.random.normal(keys[1], (V, D) if transposed else (D, V), jnp.float32)
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    mask = jax.random.uniform(keys[3], (B, T)) * (jnp.arange(T) % 4 != 1)
    return hidden, kernel.astype(dtype), targets, mask


def _optax(hidden, kernel, targets, mask, z_loss, softcap, logit_scale, transposed):
    kernel = kernel.astype(jnp.float32)
    logits = hidden.astype(jnp.float32) @ (kernel.T if transposed else kernel)
    logits = logits * (logit_scale or 1.0)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    nll = mask * optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    z = z_loss * jnp.sum(mask * jax.nn.logsumexp(logits, -1) ** 2)
    return jnp.sum(nll) + z, {"nll": nll, "z_loss": z}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("one_cpu", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("chunk", "z_loss", "softcap", "logit_scale"),
    [(None, 0.0, None, None), (5, 1e-2, None, None), (4, 1e-2, 3.0, 0.5), (1, 0.0, None, 2.0)],
)
def test_values_and_gradients(chunk, z_loss, softcap, logit_scale, transposed, one_cpu, dtype):
    hidden, kernel, targets, mask = _inputs(jnp.dtype(dtype), transposed)
    static = dict(z_loss=z_loss, softcap=softcap, logit_scale=logit_scale, transposed=transposed)

    def ours(hidden, kernel):
        value, aux = cross_entropy(
            hidden, kernel, targets, mask, **static, chunk=chunk, one_cpu=one_cpu
        )
        return 0.7 * value, aux

    def reference(hidden, kernel):
        value, aux = _optax(hidden, kernel, targets, mask, **static)
        return 0.7 * value, aux

    a = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, kernel)
    b = jax.jit(jax.value_and_grad(reference, (0, 1), has_aux=True))(hidden, kernel)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1, np.abs(y).max()))
    # Without gradients the same value comes from a forward pass alone.
    np.testing.assert_allclose(jax.jit(ours)(hidden, kernel)[0], a[0][0], rtol=1e-6)


def test_full_logits_never_exist():
    b, t, d, v = 4, 2048, 16, 4096
    shapes = [
        jax.ShapeDtypeStruct(s, dtype)
        for s, dtype in (
            ((b, t, d), jnp.bfloat16),
            ((d, v), jnp.bfloat16),
            ((b, t), jnp.int32),
            ((b, t), jnp.float32),
        )
    ]
    for one_cpu in (False, True):

        def loss(*a, one_cpu=one_cpu):
            return cross_entropy(*a, one_cpu=one_cpu)[0]

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.75 * b * t * v * 4
        assert f"f32[{b},{t},{v}]" not in compiled.as_text()


def test_sharded_over_batch_and_vocabulary_gives_the_same():
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(auto, auto))
    spec = jax.sharding.PartitionSpec
    hidden, kernel, targets, mask = _inputs(jnp.float32, False)
    hidden, targets, mask = (jnp.concatenate([a, a]) for a in (hidden, targets, mask))
    arguments = (hidden, kernel, targets, mask)

    def loss(*a):
        return cross_entropy(*a, z_loss=1e-2, chunk=5)[0]

    whole = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
    places = (spec("data"), spec(None, "tensor"), spec("data"), spec("data"))
    placed = [
        jax.device_put(a, jax.sharding.NamedSharding(mesh, s))
        for a, s in zip(arguments, places, strict=True)
    ]
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for x, y in zip(jax.tree.leaves(step(*placed)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    text = step.lower(*placed).compile().as_text()
    assert "f32[4,5,40]" not in text  # neither the batch nor the vocabulary is gathered


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_gradient_in_pieces_is_the_same_to_the_bit(transposed, blocks):
    """No device holds the whole sum; of the bits nothing changes where XLA sums every chunk."""
    auto, spec = jax.sharding.AxisType.Auto, jax.sharding.PartitionSpec
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(auto,))
    hidden, kernel, targets, mask = _inputs(jnp.bfloat16, transposed)
    rows = [jnp.concatenate([a] * 4) for a in (hidden, targets, mask)]

    def place(x, *axes):
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec(*axes)))

    def lay_out(x):
        cut = spec(None, "fsdp") if transposed else spec("fsdp", None)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, cut))

    hidden, targets, mask = (place(a, "fsdp") for a in rows)
    arguments = (hidden, place(kernel), targets, mask)

    def compiled(pieces):
        def loss(*a):
            options = dict(z_loss=1e-2, chunk=5, transposed=transposed, pieces=pieces)
            return cross_entropy(*a, **options)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()

    whole, cut = compiled(None), compiled(Pieces(lay_out, blocks))
    for x, y in zip(*map(jax.tree.leaves, (whole(*arguments), cut(*arguments))), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    carried = f"f32[{V},{D // 8}]" if transposed else f"f32[{D // 8},{V}]"
    assert carried in cut.as_text() and carried not in whole.as_text()


@pytest.mark.parametrize("one_cpu", [False, True])
@pytest.mark.parametrize(
    ("epsilon", "z_loss", "softcap"), [(0.1, 0.0, None), (0.3, 1e-2, 3.0), (1.0, 0.0, None)]
)
def test_label_smoothing_is_that_of_optax(epsilon, z_loss, softcap, one_cpu):
    """``optax.smooth_labels`` defines it; ``nll`` stays the one without."""
    hidden, kernel, targets, mask = _inputs(jnp.float32, False)
    options = dict(z_loss=z_loss, softcap=softcap, logit_scale=None, transposed=False)

    def ours(hidden, kernel):
        smoothed = options | dict(label_smoothing=epsilon, chunk=4, one_cpu=one_cpu)
        return cross_entropy(hidden, kernel, targets, mask, **smoothed)

    def reference(hidden, kernel):
        logits = hidden @ kernel
        logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
        goal = optax.smooth_labels(jax.nn.one_hot(targets, V), epsilon)
        smoothed = jnp.sum(mask * optax.softmax_cross_entropy(logits, goal))
        plain = _optax(hidden, kernel, targets, mask, **options)[1]
        return smoothed + plain["z_loss"], plain | {"smoothing": smoothed - jnp.sum(plain["nll"])}

    a = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, kernel)
    b = jax.jit(jax.value_and_grad(reference, (0, 1), has_aux=True))(hidden, kernel)
    assert set(a[0][1]) == {"nll", "z_loss", "smoothing"}
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5 * max(1.0, np.abs(y).max()))
    np.testing.assert_allclose(jax.jit(ours)(hidden, kernel)[0], a[0][0], rtol=1e-6)


def test_label_smoothing_is_the_value_of_torch():
    """torch 2.13: CrossEntropyLoss(label_smoothing=0.1, reduction="sum") of these logits."""
    logits = jnp.asarray([[[1.0, 2.0, 0.5, -1.0], [0.0, -2.0, 3.0, 0.25]]])
    targets, mask = jnp.asarray([[1, 3]]), jnp.ones((1, 2))
    value, aux = cross_entropy(logits, jnp.eye(4), targets, mask, label_smoothing=0.1)
    np.testing.assert_allclose(value, 3.4901648557474, rtol=1e-6)
    np.testing.assert_allclose(value, aux["nll"].sum() + aux["smoothing"], rtol=1e-6)


def test_label_smoothing_on_eight_devices():
    auto, spec = jax.sharding.AxisType.Auto, jax.sharding.PartitionSpec
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(auto, auto))
    hidden, kernel, targets, mask = _inputs(jnp.float32, False)
    arguments = [jnp.concatenate([a, a]) for a in (hidden, targets, mask)]
    arguments.insert(1, kernel)

    def loss(*a):
        return cross_entropy(*a, chunk=5, label_smoothing=0.2)[0]

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    places = (spec("data"), spec(None, "tensor"), spec("data"), spec("data"))
    placed = [
        jax.device_put(a, jax.sharding.NamedSharding(mesh, s))
        for a, s in zip(arguments, places, strict=True)
    ]
    whole = jax.tree.leaves(step(*arguments))
    for x, y in zip(jax.tree.leaves(step(*placed)), whole, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
