"""Latent attention against the semantics of transformers' DeepseekV2/V3Attention, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.cache import CacheRows
from t5x_llm.nn.latent_attention import LatentAttentionConfig
from t5x_llm.nn.layer import Context, starts_of
from t5x_llm.nn.norm import NormConfig
from t5x_llm.nn.param import InitConfig
from t5x_llm.nn.positions import RotaryConfig, RotaryScaling, rotary_tables
from t5x_llm.parallel import MeshConfig, make_mesh, use

INIT = InitConfig(kernel_std=0.3, embed_std=0.02, residual_scale=1.0, branch_scale=1.0)
D, N, NOPE, ROPE, VALUE, RANK = 24, 4, 8, 4, 6, 10
YARN = RotaryScaling("yarn", 40.0, 64, low=1.0, high=32.0, attention_factor=1.0)


def config(**changes):
    scaling, interleaved = changes.pop("scaling", None), changes.pop("interleaved", True)
    base = dict(
        n_heads=N,
        q_rank=14,
        kv_rank=RANK,
        nope_dim=NOPE,
        value_dim=VALUE,
        rotary=RotaryConfig(100.0, ROPE, interleaved=interleaved, scaling=scaling, two_d=False),
        norm=NormConfig("rms", 1e-6, bias=False, scale="ones"),
        bias=False,
        scale=None,
    )
    return LatentAttentionConfig(**base | changes)


def make(config):
    """The layer, with norms and biases that are not ones and zeros."""
    layer = config.make(D, INIT, nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    keys = iter(jax.random.split(jax.random.key(3), 40))
    state = jax.tree.map(
        lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape) if p.ndim == 1 else p, state
    )
    return nnx.merge(graphdef, state)


def context(config, positions, segment_ids, **cached):
    tables = rotary_tables(config.rotary, positions)
    return Context(
        positions, segment_ids, starts_of(segment_ids), {config.rotary: tables}, **cached
    )


def packed(b=2, t=13):
    """Tokens, positions and segments: two documents a row, padding at the end of the second."""
    x = jax.random.normal(jax.random.key(1), (b, t, D))
    segments = np.ones((b, t), np.int32)
    segments[:, 5:] = 2
    segments[1, 10:] = 0
    positions = np.where(segments == 1, np.arange(t), np.arange(t) - 5)
    return x, jnp.asarray(positions, jnp.int32), jnp.asarray(segments)


def rms(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def yarn_frequencies(scaling, dim, base):
    """transformers' _compute_yarn_parameters with truncation."""
    plain = base ** -(np.arange(0, dim, 2) / dim)
    if scaling is None:
        return plain

    def correction(turns):
        return dim * np.log(scaling.original_length / (turns * 2 * np.pi)) / (2 * np.log(base))

    low = max(np.floor(correction(scaling.high)), 0)
    high = min(np.ceil(correction(scaling.low)), dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def reference(layer, x, positions, segments, mscale_all_dim=0.0):
    """DeepseekV3Attention.forward, token by token, in float64."""
    c = layer.config
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(layer)))
    x = np.asarray(x, np.float64)

    def dense(name, y):
        return np.tensordot(y, p[name]["kernel"], 1) + p[name].get("bias", 0.0)

    if c.q_rank is None:
        q = dense("query", x)
    else:
        q = dense("query_up", rms(dense("query_down", x), p["query_norm"]["scale"]))
    latent = rms(dense("kv_down", x), p["kv_norm"]["scale"])
    k_nope, v = dense("key_up", latent), dense("value_up", latent)
    angle = np.asarray(positions)[..., None] * yarn_frequencies(c.rotary.scaling, ROPE, 100.0)

    def turn(y, angle):  # view_as_complex of neighbours, or rotate_half
        if c.rotary.interleaved:
            z = (y[..., ::2] + 1j * y[..., 1::2]) * np.exp(1j * angle)
            return np.stack([z.real, z.imag], -1).reshape(y.shape)
        half = y.shape[-1] // 2
        z = (y[..., :half] + 1j * y[..., half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    q_rope = turn(q[..., NOPE:], angle[:, :, None])
    k_rope = turn(dense("key_rotary", x), angle)
    scale = (NOPE + ROPE) ** -0.5
    if mscale_all_dim:
        scale *= (0.1 * mscale_all_dim * np.log(c.rotary.scaling.factor) + 1.0) ** 2
    out = np.zeros((*x.shape[:2], N, VALUE))
    for b, t in np.ndindex(*x.shape[:2]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        for n in range(N):
            logits = k_nope[b, seen, n] @ q[b, t, n, :NOPE] + k_rope[b, seen] @ q_rope[b, t, n]
            weights = np.exp(logits * scale - np.max(logits * scale))
            out[b, t, n] = weights / weights.sum() @ v[b, seen, n]
    return np.tensordot(out, p["out"]["kernel"], 2) + p["out"].get("bias", 0.0)


VARIANTS = {
    "v3": (config(), 0.0),
    "v2_lite": (config(q_rank=None), 0.0),
    "halves": (config(interleaved=False), 0.0),
    "bias": (config(bias=True), 0.0),
    "yarn": (
        config(scaling=YARN, scale=(NOPE + ROPE) ** -0.5 * (0.1 * 0.7 * np.log(40.0) + 1) ** 2),
        0.7,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_formulas(variant):
    c, mscale = VARIANTS[variant]
    layer = make(c)
    x, positions, segments = packed()
    y, cache, aux = layer(x, context(c, positions, segments), None)
    assert cache is None and aux == {}
    real = np.asarray(segments) != 0
    expected = reference(layer, x, positions, np.asarray(segments), mscale)
    np.testing.assert_allclose(y[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("value_dim", "rank", "first"), [(VALUE, RANK, 4), (20, RANK, 4), (6, 30, 10)]
)
def test_cached_decoding_equals_the_full_pass(value_dim, rank, first):
    c = config(value_dim=value_dim, kv_rank=rank)
    assert c.absorbs(1) and c.absorbs(first) == (rank == RANK)
    layer = make(c)
    length = 12
    x = jax.random.normal(jax.random.key(2), (2, length, D))
    segments = np.ones((2, length), np.int32)
    segments[1, :2] = 0  # padding before a text takes places and is not seen
    positions = jnp.asarray(np.maximum(np.cumsum(segments, 1) - 1, 0), jnp.int32)
    segments = jnp.asarray(segments)
    full, _, _ = layer(x, context(c, positions, segments), None)
    cache = layer.init_cache(2, 16, jnp.float32)
    assert {k: v.shape for k, v in cache.items()} == {"latent": (2, 16, rank), "key": (2, 16, ROPE)}

    @jax.jit
    def call(x, cache, positions, segments, key_positions, key_segments, index):
        lengths = jnp.full(2, x.shape[1])
        rows = CacheRows(jnp.full(2, index), lengths, key_positions, key_segments)
        y, cache, _ = layer(x, context(c, positions, segments, rows=rows), cache)
        return y, cache

    outs = []
    for a, b in [(0, first), *((i, i + 1) for i in range(first, length))]:
        keys = jnp.arange(16) < b
        key_segments = jnp.where(keys, jnp.pad(segments, ((0, 0), (0, 4))), 0)
        key_positions = jnp.where(keys, jnp.pad(positions, ((0, 0), (0, 4))), 0)
        now = x[:, a:b], cache, positions[:, a:b], segments[:, a:b]
        y, cache = call(*now, key_positions, key_segments, jnp.int32(a))
        outs.append(y)
    got = jnp.concatenate(outs, 1)
    real = np.asarray(segments) != 0
    np.testing.assert_allclose(got[real], full[real], rtol=1e-4, atol=1e-5)


def test_a_changed_neighbour_changes_nothing():
    c = config()
    layer = make(c)
    x, positions, segments = packed()
    other = x.at[:, :5].add(3.0)
    y, _, _ = layer(x, context(c, positions, segments), None)
    z, _, _ = layer(other, context(c, positions, segments), None)
    np.testing.assert_array_equal(y[0, 5:], z[0, 5:])
    assert np.abs(y - z)[:, :5].max() > 0.01


def test_eight_devices_equal_one_and_bfloat16_is_close():
    c = config()
    graphdef, state = nnx.split(make(c))
    x, positions, segments = packed(4, 16)

    def loss(state, x):
        y, _, _ = nnx.merge(graphdef, state)(x, context(c, positions, segments), None)
        y = jnp.where(segments[..., None] != 0, y.astype(jnp.float32), 0)
        return jnp.sum(jnp.sin(y)), y

    both = jax.value_and_grad(loss, has_aux=True)
    expected = jax.jit(both)(state, x)
    mesh_config = MeshConfig(fsdp=2, data=2, tensor=2)
    mesh, rules = make_mesh(mesh_config), mesh_config.rules()

    def sharded(state, x):
        with use(mesh, rules):
            return both(state, x)

    got = jax.jit(sharded)(state, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)
    (_, y), _ = jax.jit(both)(state, x.astype(jnp.bfloat16))
    z = expected[0][1]
    assert jnp.linalg.norm(y - z) / jnp.linalg.norm(z) < 0.03


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="LatentAttentionConfig.kv_rank = 0"):
        config(kv_rank=0)
    with pytest.raises(ConfigError, match="LatentAttentionConfig.q_rank"):
        config(q_rank=0)
    with pytest.raises(ConfigError, match="LatentAttentionConfig.scale"):
        config(scale=-1.0)
    with pytest.raises(ConfigError, match="LatentAttentionConfig.rotary"):
        config(rotary=None)
