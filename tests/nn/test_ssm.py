"""State-space layers against recurrences over tokens: float64 NumPy, and JAX's own gradients."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn import selective_scan as selective
from t5x_llm.nn import ssd as duality
from t5x_llm.nn.conv import ShortConv
from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.selective_scan import selective_scan
from t5x_llm.nn.ssd import ssd
from t5x_llm.nn.ssm import FRESH_STEPS, SelectiveConfig, SsdConfig
from t5x_llm.parallel import MeshConfig, make_mesh, use

INIT = InitConfig(kernel_std=0.4, embed_std=0.02, residual_scale=1.0, branch_scale=1.0)
RMS = NormConfig("rms", 1e-3, bias=False, scale="ones")
SELECTIVE = SelectiveConfig(
    d_inner=24, d_state=5, dt_rank=3, conv_width=4, conv_bias=True, bias=True, activation="silu",
    norm=RMS,
)  # fmt: skip
SSD = SsdConfig(
    n_heads=4, head_dim=6, n_groups=2, d_state=5, conv_width=4, conv_bias=True, bias=True,
    activation="silu", norm=RMS, dt_limit=(0.0, None),
)  # fmt: skip
ROWS, LENGTH, D = 2, 21, 16


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Several chunks and a rest of every length, in little time."""
    monkeypatch.setattr(selective, "CHUNK", 8)
    monkeypatch.setattr(duality, "CHUNK", 8)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cuts(length):
    """Segments that begin within chunks, at their edges, and one token after another."""
    starts = np.zeros((ROWS, max(length, LENGTH)), bool)
    starts[0, [3, 8, 9, 13]] = True
    starts[1, [0, 15, 16, 18]] = True
    return starts[:, :length]


def selective_inputs(length=LENGTH):
    steps = np.log1p(np.exp(draw(1, ROWS, length, 24) - 2))
    rates = -np.exp(draw(2, 5, 24))
    b, c = draw(3, ROWS, length, 5), draw(4, ROWS, length, 5)
    return draw(0, ROWS, length, 24), steps, rates, b, c, cuts(length), draw(5, ROWS, 5, 24)


def ssd_inputs(length=LENGTH):
    steps = np.log1p(np.exp(draw(1, ROWS, length, 4) - 2))
    rates = -np.exp(draw(2, 4))
    b, c = draw(3, ROWS, length, 2, 5), draw(4, ROWS, length, 2, 5)
    return draw(0, ROWS, length, 4, 6), steps, rates, b, c, cuts(length), draw(5, ROWS, 4, 6, 5)


def selective_token(h, a, x, dt, b, c, start, np=np):
    """Equation 2 of Mamba with its discretisation, for one token: the state and the output."""
    h = np.where(start[:, None, None], 0, h) * np.exp(dt[:, None] * a)
    h = h + b[:, :, None] * (dt * x)[:, None]
    return h, (h * c[:, :, None]).sum(1)


def ssd_token(h, a, x, dt, b, c, start, np=np):
    """The same with one rate a head, section 2 of Mamba-2."""
    b, c = (np.repeat(v, x.shape[1] // v.shape[1], axis=1)[:, :, None] for v in (b, c))
    h = np.where(start[:, None, None, None], 0, h) * np.exp(dt * a)[..., None, None]
    h = h + (dt[..., None] * x)[..., None] * b
    return h, (h * c).sum(-1)


KINDS = {
    "selective": (selective_scan, selective_inputs, selective_token),
    "ssd": (ssd, ssd_inputs, ssd_token),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("length", [1, 8, LENGTH])
def test_a_scan_equals_the_recurrence(kind, length):
    scan, inputs, token = KINDS[kind]
    args = inputs(length)
    with jax.default_matmul_precision("highest"):
        y, h = jax.jit(scan)(*args)
    x, dt, a, b, c, starts, after = (v if v.dtype == bool else v.astype(np.float64) for v in args)
    for t in range(length):
        after, expected = token(after, a, *(v[:, t] for v in (x, dt, b, c, starts)))
        np.testing.assert_allclose(y[:, t], expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(h, after, atol=1e-5, rtol=1e-5)


@kinds
def test_gradients_are_those_of_the_recurrence(kind):
    scan, inputs, token = KINDS[kind]
    x, dt, a, b, c, starts, h = inputs()
    weights = draw(6, *x.shape), draw(7, *h.shape)

    def loss(run):
        def of(x, dt, a, b, c, h):
            y, after = run(x, dt, a, b, c, starts, h)
            return jnp.sum(y * weights[0]) + jnp.sum(after * weights[1])

        return jax.jit(jax.grad(of, argnums=range(6)))

    def plain(x, dt, a, b, c, starts, h):
        tokens = [jnp.moveaxis(v, 1, 0) for v in (x, dt, b, c, starts)]
        h, y = jax.lax.scan(lambda h, xs: token(h, a, *xs, np=jnp), h, tokens)
        return jnp.moveaxis(y, 0, 1), h

    with jax.default_matmul_precision("highest"):
        found, expected = (loss(run)(x, dt, a, b, c, h) for run in (scan, plain))
    # Through every token and back, then summed over rows, tokens and channels.
    assert_close(found, expected, 2 * LENGTH + x.size)


@kinds
def test_a_neighbour_changes_not_one_bit(kind):
    scan, inputs, _ = KINDS[kind]
    args = inputs()
    changed = [v if i in (2, 5) else v.copy() for i, v in enumerate(args)]
    for i in (0, 1, 3, 4):  # the tokens before the last segment of the first row
        changed[i][0, :13] *= 1.7
    changed[6] *= 3.0
    (y, h), (other, after) = jax.jit(scan)(*args), jax.jit(scan)(*changed)
    np.testing.assert_array_equal(y[0, 13:], other[0, 13:])
    np.testing.assert_array_equal(h[0], after[0])
    assert np.any(y[0, :13] != other[0, :13])


def largest(jaxpr):
    """Elements of the largest array that a computation makes, loops' insides included."""
    sizes = [math.prod(v.aval.shape) for e in jaxpr.eqns for v in e.outvars]
    inner = [
        largest(getattr(p, "jaxpr", p))
        for e in jaxpr.eqns
        for p in jax.tree.leaves(list(e.params.values()), is_leaf=lambda p: hasattr(p, "eqns"))
        if hasattr(getattr(p, "jaxpr", p), "eqns")
    ]
    return max(sizes + inner, default=0)


@kinds
def test_states_of_all_tokens_are_nowhere(kind):
    scan, inputs, _ = KINDS[kind]
    x, dt, a, b, c, starts, h = inputs(16 * 8)

    def loss(*args):
        y, after = scan(*args[:5], starts, args[5])
        return jnp.sum(y**2) + jnp.sum(after**2)

    made = largest(jax.make_jaxpr(jax.grad(loss, argnums=range(6)))(x, dt, a, b, c, h).jaxpr)
    assert made < h.size * 16 * 8 / 2
    assert made >= x.size


def test_a_mesh_changes_nothing():
    x, dt, a, b, c, starts, h = selective_inputs()
    config = MeshConfig(data=2, fsdp=1, tensor=4)
    mesh, rules = make_mesh(config), config.rules()

    def loss(x, dt, a, b, c, h):
        y, after = selective_scan(x, dt, a, b, c, starts, h)
        return jnp.sum(y**2) + jnp.sum(after**2)

    def meshed(*args):
        with use(mesh, rules):
            return loss(*args)

    one, eight = (
        jax.jit(jax.value_and_grad(f, argnums=range(6)))(x, dt, a, b, c, h) for f in (loss, meshed)
    )
    for ours, theirs in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width, bias", [(4, True), (1, False)])
def test_convolution_equals_its_sum_and_continues(width, bias):
    conv = ShortConv(width, 6, "inner", bias=bias, rngs=nnx.Rngs(0))
    if bias:
        conv.bias[...] = draw(1, 6)
    x, starts = draw(0, ROWS, LENGTH, 6), cuts(LENGTH)
    segment = np.cumsum(starts, axis=1)
    kernel = np.asarray(conv.kernel[...], np.float64)
    expected = np.zeros(x.shape) + (np.asarray(conv.bias[...]) if bias else 0.0)
    for t in range(LENGTH):
        for back in range(min(width, t + 1)):
            same = segment[:, t] == segment[:, t - back]
            expected[:, t] += same[:, None] * x[:, t - back] * kernel[width - 1 - back]
    whole, taps = conv(jnp.asarray(x), starts, None)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    found, after = [], conv.init_cache(ROWS, jnp.float32)
    for first, last in [(0, 5), *((i, i + 1) for i in range(5, 12)), (12, LENGTH)]:
        y, after = conv(jnp.asarray(x[:, first:last]), starts[:, first:last], after)
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
    np.testing.assert_array_equal(after, taps)


@pytest.mark.parametrize("config", [SELECTIVE, SSD], ids=["selective", "ssd"])
def test_decoding_equals_the_full_pass_within_segments(config):
    """Left padding in one row, three documents in the other."""
    graphdef, weights = nnx.split(config.make(D, INIT, nnx.Rngs(0)))
    ids = np.ones((ROWS, LENGTH), np.int32)
    ids[0, :3] = 0
    ids[1, 11:], ids[1, 17:] = 2, 3
    x = draw(0, ROWS, LENGTH, D)

    @jax.jit
    def run(weights, x, ids, before, cache):
        context = Context(ids, ids, starts_of(ids, before), {})
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graphdef, weights)(x, context, cache)[:2]

    none = np.full(ROWS, -1)
    full, nothing = run(weights, x, ids, none, None)
    assert nothing is None
    cache = config.make(D, INIT, nnx.Rngs(0)).init_cache(ROWS, LENGTH, jnp.float32)
    sizes = jax.tree.map(jnp.shape, cache)
    found = []
    for first, last in [(0, 9), (9, 10), (10, 11), (11, 12), (12, LENGTH)]:
        before = ids[:, first - 1] if first else none
        y, cache = run(weights, x[:, first:last], ids[:, first:last], before, cache)
        assert jax.tree.map(jnp.shape, cache) == sizes  # of no length
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), full, atol=2e-5)


def test_fresh_rates_and_steps_are_the_papers():
    layer = dataclasses.replace(SELECTIVE, d_inner=4096).make(D, INIT, nnx.Rngs(0))
    rates = np.exp(layer.a_log[...])
    assert_close(rates, np.broadcast_to(np.arange(1.0, 6)[:, None], (5, 4096)), 0)
    steps = np.log(jax.nn.softplus(layer.step_bias[...]))
    low, high = map(math.log, FRESH_STEPS)
    assert low - 1e-3 < steps.min() < low + 0.01 and high - 0.01 < steps.max() < high + 1e-3
    np.testing.assert_allclose(np.mean(steps), (low + high) / 2, atol=0.1)
    assert np.all(layer.skip[...] == 1)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"SsdConfig.n_groups = 3.*divisor of n_heads = 4"):
        dataclasses.replace(SSD, n_groups=3)
    with pytest.raises(ConfigError, match=r"SsdConfig.dt_limit\[1\] = 0.1.*above 0.2"):
        dataclasses.replace(SSD, dt_limit=(0.2, 0.1))
    with pytest.raises(ConfigError, match=r"SelectiveConfig.d_state"):
        dataclasses.replace(SELECTIVE, d_state=0)
    with pytest.raises(ConfigError, match="Did you mean 'silu'"):
        dataclasses.replace(SELECTIVE, activation="sliu")
