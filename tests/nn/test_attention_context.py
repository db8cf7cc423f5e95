"""Attention over a sequence in pieces equals attention over the whole of it, gradients too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.nn.kernels import attend, attention_ring
from t5x_llm.nn.positions import AlibiConfig, alibi_bias
from t5x_llm.nn.relative import RelativeBiasConfig, relative_bias
from t5x_llm.parallel import MeshConfig, make_mesh, use

B, T, N, H = 2, 32, 4, 8
ALIBI = AlibiConfig(factor=1.0, max_exponent=8.0, rounded=False)
RELATIVE = RelativeBiasConfig(n_heads=N, n_buckets=8, max_distance=20, bidirectional=True)
CASES = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 9, "softcap": 2.0},
    "narrow": {"window": 3},
    "sinks": {"sinks": np.linspace(-1, 1, N, dtype=np.float32)},
    "alibi": {"bias": functools.partial(alibi_bias, ALIBI, n_heads=N)},
    "prefix": {"kv_prefix": np.arange(T)[None] % T < 12},
}


def inputs(kv=2, values=H):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d = (
        jax.random.normal(key, (B, T, heads, size))
        for key, heads, size in zip(keys, (N, kv, kv, N), (H, H, values, values), strict=True)
    )
    # A segment that begins in the first piece and ends in the last, and padding.
    segments = np.ones((B, T), np.int32)
    segments[1, 5:], segments[1, 29:] = 2, 0
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    positions[1, 5:] -= 5
    return (q, k, v), np.where(segments[..., None, None] > 0, d, 0), segments, positions


def run(mesh_config, case, kv=2, values=H, devices=None):
    """The output, and gradients of q, k, v and what is learned besides."""
    qkv, d, segments, positions = inputs(kv, values)
    options = dict(CASES[case])
    if "kv_prefix" in options:
        options["kv_prefix"] = np.broadcast_to(options["kv_prefix"], (B, T))
    sinks = options.pop("sinks", None)
    mesh, rules = make_mesh(mesh_config, devices), mesh_config.rules()

    @jax.jit
    def both(qkv, sinks):
        def f(qkv, sinks):
            ids = dict(q_segment_ids=segments, kv_segment_ids=segments)
            places = dict(q_positions=positions, kv_positions=positions)
            arrays = jax.tree.map(jnp.asarray, ids | places)
            with use(mesh, rules):
                return attend(*qkv, **arrays, **options, sinks=sinks)

        out, pull = jax.vjp(f, qkv, sinks)
        return jnp.where(segments[..., None, None] > 0, out, 0), pull(d)

    return both(qkv, sinks), both.lower(qkv, sinks).compile().as_text()


@functools.cache
def expected(case, kv=2, values=H):
    return run(MeshConfig(fsdp=1), case, kv, values, jax.devices()[:1])[0]


def check(mesh_config, case, kv=2, values=H):
    got, text = run(mesh_config, case, kv, values)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
    jax.tree.map(close, got, expected(case, kv, values))
    return text


MESH = dict(fsdp=1, data=1, context=4, tensor=2)


@pytest.mark.parametrize("kind", ["ring", "ulysses"])
@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_pieces_equal_the_whole(case, kind):
    if kind == "ulysses":  # four heads for four devices
        check(MeshConfig(fsdp=2, context=4, context_attention=kind), case)
    else:
        check(MeshConfig(**MESH, context_attention=kind), case)


@pytest.mark.parametrize("kind", ["ring", "ulysses"])
def test_collectives(kind):
    """Neither gathers keys: a ring permutes, Ulysses exchanges."""
    text = check(MeshConfig(fsdp=1, data=2, context=4, context_attention=kind), "causal")
    assert (" collective-permute(" in text) == (kind == "ring")
    assert (" all-to-all(" in text) == (kind == "ulysses")
    assert " all-gather(" not in text


@pytest.mark.slow
@pytest.mark.parametrize("kv", [1, 4])
@pytest.mark.parametrize("kind", ["ring", "ulysses"])
def test_any_number_of_key_heads(kind, kv):
    check(MeshConfig(fsdp=1, tensor=2, context=2, data=2, context_attention=kind), "causal", kv)


@pytest.mark.slow
def test_values_of_another_size_and_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(attention_ring, "MAX_SCORES", 16)
    check(MeshConfig(fsdp=2, context=4), "causal", values=12)
    check(MeshConfig(fsdp=2, context=4), "full", values=12)


@pytest.mark.slow
def test_a_learned_bias_gathers_keys_and_is_right():
    table = jax.random.normal(jax.random.key(3), (8, N))
    qkv, d, segments, positions = inputs()

    def value(mesh_config, devices=None):
        mesh, rules = make_mesh(mesh_config, devices), mesh_config.rules()

        @jax.jit
        def f(table):
            bias = functools.partial(relative_bias, config=RELATIVE, table=table)
            places = dict(q_positions=positions, kv_positions=positions)
            ids = dict(q_segment_ids=segments, kv_segment_ids=segments)
            arrays = jax.tree.map(jnp.asarray, ids | places)
            with use(mesh, rules):
                return jnp.sum(attend(*qkv, **arrays, causal=False, bias=bias) * d)

        return jax.jit(jax.grad(f))(table)

    one = value(MeshConfig(fsdp=1), jax.devices()[:1])
    np.testing.assert_allclose(value(MeshConfig(fsdp=2, context=4)), one, rtol=1e-5, atol=1e-5)


def test_ulysses_needs_heads_for_all():
    with pytest.raises(ConfigError, match="does not divide the 4 heads"):
        run(MeshConfig(**MESH, context_attention="ulysses"), "causal")
