"""Training with 8-bit products: as well as without, and the same on eight devices as on one."""

import collections
import functools
import re

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from strategy_runs import FAMILIES, VOCAB, make_batch, prepared, train

from t5x_llm.core.dtypes import Policy
from t5x_llm.data.batch import Batch
from t5x_llm.models.model import Model
from t5x_llm.nn.quantized import quantized_product
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, constrain, make_mesh, use

AXES = ("embed", "heads", "head")
STEPS = 160
ADAMW = Optimizer("adamw", Schedule("constant", 4e-3, warmup_steps=0))


def policy(kind):
    return Policy(compute="float32", quantized=kind)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_product_on_eight_devices_is_the_same_number(kind):
    """Scales are of whole slices, wherever they lie; sums of int8 are exact in any order."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, dy = (
        jax.random.normal(k, s)
        for k, s in zip(keys, ((4, 16, 32), (32, 4, 8), (4, 16, 4, 8)), strict=True)
    )

    def three(config, devices):
        mesh, rules = make_mesh(config, devices), config.rules()

        def f(x, kernel, dy):
            with use(mesh, rules):
                x = constrain(x, ("batch", "length", "embed"))
                kernel = constrain(kernel, AXES, "params")
                y, back = jax.vjp(lambda x, k: quantized_product(x, k, AXES, 1, kind), x, kernel)
                return y, *back(constrain(dy, ("batch", "length", "heads", "head")))

        compiled = jax.jit(f).lower(x, kernel, dy).compile()
        return compiled(x, kernel, dy), compiled.as_text()

    expected, _ = three(MeshConfig(), jax.devices()[:1])
    got, text = three(MeshConfig(fsdp=2, context=2, tensor=2), None)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if kind == "int8" and i < 2:
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(b).max()))
    # XLA's CPU backend widens float8 before anything else.
    assert kind == "fp8" or re.search(r"s8\[32,2,8\]\S* all-gather", text)


def eighths(jaxpr, kinds, found):
    """Counts products of 8-bit numbers by their types, in all that a jaxpr calls."""
    for eqn in jaxpr.eqns:
        types = tuple(str(x.aval.dtype) for x in eqn.invars if hasattr(x.aval, "dtype"))
        if eqn.primitive.name == "dot_general":
            found["all"] += 1
            if set(types) <= set(kinds):
                found[types] += 1
        for inner in jaxprs_in_params(eqn.params):
            eighths(inner, kinds, found)
    return found


@pytest.mark.parametrize(
    ("kind", "types", "products"),
    [("int8", ("int8", "int8"), 2), ("fp8", ("float8_e4m3fn", "float8_e5m2"), 3)],
)
def test_what_of_a_model_is_quantised(kind, types, products):
    """Seven kernels of a block, two or three products of each; not attention, head, embedding."""
    given, counts = make_batch(), {}
    for name in ("", kind):
        model = Model(FAMILIES["dense"].decoder(), policy(name))
        grad = jax.grad(lambda params, model=model: model.loss(params, given)[0])
        jaxpr = jax.make_jaxpr(grad)(model.abstract_params()).jaxpr
        counts[name] = eighths(jaxpr, types, collections.Counter())
    found = counts[kind]
    assert found["all"] == counts[""]["all"] and set(counts[""]) == {"all"}
    assert sum(found.values()) - found["all"] == 7 * products
    assert kind == "int8" or (found[types[:1] * 2], found[types] + found[types[::-1]]) == (7, 14)
    assert len(model.quantized_kernels()) == 7


def error(got, expected):
    """The largest relative error, in the 2-norm, of a parameter's gradient."""
    flat = zip(jax.tree.leaves(got.moments), jax.tree.leaves(expected.moments), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in flat)


@functools.cache
def one_device(kind):
    return train(MeshConfig(), FAMILIES["dense"], jax.devices()[:1], policy=policy(kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("int8", MeshConfig(fsdp=4, tensor=2, sequence_sharded=True)),
        ("fp8", MeshConfig(fsdp=2, context=2, tensor=2)),
    ],
)
def test_eight_devices_train_as_one(kind, mesh):
    """A sum in another order rounds another way sometimes, and the next layer more often.

    So models agree to what rounding to 8 bits does, no better; their losses are means of it.
    """
    got = train(mesh, FAMILIES["dense"], policy=policy(kind), remat="full")
    expected, exact = one_device(kind), one_device("")
    np.testing.assert_allclose(got.metrics["loss"], expected.metrics["loss"], rtol=1e-4)
    assert 1e-3 < error(expected, exact) < 0.1
    assert error(got, expected) < error(expected, exact)


def copying(step):
    """Rows that repeat a random word of eight tokens: what comes is known from the second on."""
    rng = np.random.default_rng(step)
    words = rng.integers(1, VOCAB, (8, 8), dtype=np.int32)
    text = np.tile(words, (1, 9))[:, :65]
    given = make_batch()
    ones = np.ones_like(text[:, 1:])
    place = np.broadcast_to(np.arange(64, dtype=np.int32), ones.shape)
    return Batch(text[:, :-1], text[:, 1:], place, ones, ones.astype(np.float32), given.source)


def losses(given):
    parts = prepared(
        MeshConfig(), FAMILIES["dense"], jax.devices()[:1], optimizer=ADAMW, policy=given
    )
    state, found = parts.init(), []
    for i in range(STEPS):
        state, metrics = parts.step(state, copying(i % 8))
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.slow
def test_losses_fall_as_in_bfloat16():
    """Means of the last two rounds over the eight batches."""
    found = {kind: losses(Policy(quantized=kind)) for kind in ("", "int8", "fp8")}
    last = {kind: np.mean(values[-16:]) for kind, values in found.items()}
    assert last[""] < 0.7 * found[""][0], last
    np.testing.assert_allclose([last["int8"], last["fp8"]], last[""], rtol=0.03)
    assert len({values[-1] for values in found.values()}) == 3
