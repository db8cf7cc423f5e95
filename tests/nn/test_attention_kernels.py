"""Every path of ``attend`` against a dense softmax, and segments never see each other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.nn import attention_cpu, attention_kernels
from t5x_llm.nn.attention_kernels import attend
from t5x_llm.nn.attention_tpu import splash_attend, splash_fits
from t5x_llm.parallel import MeshConfig, make_mesh, use

H = 16


def _qkv(b, t, n, k, dtype="float32", s=None, h=H):
    keys = jax.random.split(jax.random.key(1), 3)
    q = jax.random.normal(keys[0], (b, t, n, h), dtype)
    return q, *(jax.random.normal(x, (b, s or t, k, h), dtype) for x in keys[1:])


def _packed(lengths: list[list[int]], t: int) -> tuple[jax.Array, jax.Array]:
    """Segment ids and positions of rows that hold documents of these lengths, then padding."""
    segments, positions = (np.zeros((len(lengths), t), np.int32) for _ in range(2))
    for row, documents in enumerate(lengths):
        start = 0
        for i, n in enumerate(documents):
            segments[row, start : start + n] = i + 1
            positions[row, start : start + n] = np.arange(n)
            start += n
    return jnp.asarray(segments), jnp.asarray(positions)


def _dense(q, k, v, seg, pos, *, causal=True, window=None, softcap=None, scale=None, sinks=None):
    """Written out in float32, one mask, no blocks."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
    k, v = (jnp.repeat(a, group, axis=2) for a in (k, v))
    logits = jnp.einsum("btnh,bsnh->bnts", q, k) * (scale or q.shape[-1] ** -0.5)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    seen = (seg[:, :, None] == seg[:, None]) & (seg[:, :, None] > 0)
    ahead = pos[:, None] - pos[:, :, None]
    if causal:
        seen &= ahead <= 0
    if window:
        seen &= ahead > -window
    logits = jnp.where(seen[:, None], logits, -1e30)
    if sinks is not None:
        column = jnp.broadcast_to(sinks[:, None, None], (*logits.shape[:3], 1))
        logits = jnp.concatenate([logits, column], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)[..., : k.shape[1]]
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def _call(q, k, v, seg, pos, **kwargs):
    return attend(
        *(q, k, v),
        q_segment_ids=seg,
        kv_segment_ids=seg,
        q_positions=pos,
        kv_positions=pos,
        **kwargs,
    )


def _compare(f, q, k, v, seg, pos, **kwargs):
    """Values and gradients on rows that are not padding."""
    real = (seg > 0)[..., None, None]

    def run(f):
        def loss(q, k, v):
            out = jnp.where(real, f(q, k, v, seg, pos, **kwargs).astype(jnp.float32), 0.0)
            weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    # Logits, values and the gradients of both; in bfloat16 sums are of float32, and only what
    # goes in and comes out is rounded.
    terms = 2 * (k.shape[-1] + k.shape[1]) if q.dtype == jnp.float32 else 0
    for a, b in zip(jax.tree.leaves(run(f)), jax.tree.leaves(run(_dense)), strict=True):
        assert_close(a, b, terms, dtype=q.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("t", "heads", "kwargs"),
    [
        (24, (4, 4), {}),
        (256, (4, 2), {}),
        (384, (4, 1), {}),
        (384, (2, 2), {"window": 70}),
        (384, (2, 2), {"window": 200, "scale": 0.3}),
        (1000, (1, 1), {}),
        (64, (4, 2), {"causal": False}),
        (64, (4, 2), {"softcap": 5.0}),
        (64, (4, 2), {"sinks": jnp.array([0.5, -1.0, 2.0, 0.0])}),
    ],
)
def test_against_a_dense_softmax(t, heads, kwargs, dtype):
    seg, pos = _packed([[t // 3, t // 4], [t]], t)
    _compare(_call, *_qkv(2, t, *heads, dtype), seg, pos, **kwargs)


def test_the_cpu_path_and_the_general_path_are_both_covered(monkeypatch):
    q, k, _ = _qkv(1, 256, 2, 2)
    assert attention_cpu.fits(q, k) and not attention_cpu.fits(*_qkv(1, 1000, 2, 2)[:2])
    monkeypatch.setattr(attention_kernels, "one_cpu", lambda: False)
    seg, pos = _packed([[100, 120], [256]], 256)
    _compare(_call, *_qkv(2, 256, 4, 2), seg, pos)


@pytest.mark.parametrize("t", [1024, 8192])
def test_no_square_of_the_length_is_held(t):
    """At T = 8192 the scores of one head in float32 are 256 MB."""
    row = jax.ShapeDtypeStruct((1, t, 2, H), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, t), jnp.int32)

    def loss(q, k, v, seg, pos):
        return jnp.sum(_call(q, k, v, seg, pos))

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(row, row, row, ids, ids).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64e6


_compiled = functools.partial(jax.jit, static_argnames="window")(_call)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 254), st.integers(0, 100), st.sampled_from([None, 3, 150]))
def test_what_happens_in_one_segment_stays_there(cut, padding, window):
    t = 256
    seg, pos = _packed([[cut, max(0, t - cut - padding)]], t)
    q, k, v = _qkv(1, t, 2, 1)
    first = np.asarray(seg[0] == 1)

    def change(a):
        return jnp.where(first[None, :, None, None], a + 3.0, a)

    before = np.asarray(_compiled(q, k, v, seg, pos, window=window))
    after = np.asarray(_compiled(change(q), change(k), change(v), seg, pos, window=window))
    second = np.asarray(seg[0] == 2)
    np.testing.assert_array_equal(before[:, second], after[:, second])
    assert np.isfinite(after).all()
    padded = np.where(first, seg, 0)
    alone = np.asarray(_compiled(q, k, v, padded, pos, window=window))
    np.testing.assert_array_equal(before[:, :cut], alone[:, :cut])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cut", [1, 100, 254])
def test_a_segment_in_a_row_is_what_it_is_in_one_of_its_length(cut, window):
    seg, pos = _packed([[cut, 256 - cut]], 256)
    q, k, v = _qkv(1, 256, 2, 1)
    packed = _compiled(q, k, v, seg, pos, window=window)
    alone = _compiled(*(a[:, :cut] for a in (q, k, v, seg, pos)), window=window)
    assert_close(packed[:, :cut], alone, H + cut)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_decoding_one_token_at_a_time_is_the_last_row(heads):
    t = 40
    q, k, v = _qkv(2, t, *heads)
    seg, pos = _packed([[t], [t]], t)
    whole = _call(q, k, v, seg, pos)
    room = 24
    k, v = (jnp.pad(a, ((0, 0), (0, room), (0, 0), (0, 0)), constant_values=7.0) for a in (k, v))
    one = attend(
        *(q[:, -1:], k, v),
        q_segment_ids=seg[:, -1:],
        kv_segment_ids=jnp.pad(seg, ((0, 0), (0, room))),
        q_positions=pos[:, -1:],
        kv_positions=jnp.pad(pos, ((0, 0), (0, room))),
    )
    np.testing.assert_allclose(one, whole[:, -1:], atol=1e-5)


@pytest.mark.parametrize("kwargs", [{}, {"window": 70}, {"softcap": 5.0}, {"causal": False}])
def test_splash_attention_interpreted(kwargs):
    """The TPU kernel's arithmetic, run by Pallas' interpreter: forward values."""
    t = 256
    q, k, v = _qkv(2, t, 4, 2, h=64)
    seg, pos = _packed([[100, 120], [t]], t)
    assert splash_fits(q, k)
    full = dict(causal=True, window=None, softcap=None, scale=0.125, sinks=None) | kwargs
    out = splash_attend(q, k, v, seg, seg, **full, interpret=True)
    real = np.asarray(seg > 0)
    np.testing.assert_allclose(
        np.asarray(out)[real], np.asarray(_dense(q, k, v, seg, pos, **full))[real], atol=2e-3
    )


@pytest.mark.slow
def test_splash_attention_where_key_heads_are_fewer_than_devices():
    """Four heads on four ways, two key heads: each device has the keys of its own head."""
    t, config = 128, MeshConfig(fsdp=2, tensor=4)
    q, k, v = _qkv(2, t, 4, 2, h=64)
    seg, pos = _packed([[60, 50], [t]], t)
    full = dict(causal=True, window=None, softcap=None, scale=0.125, sinks=None)

    @jax.jit
    def sharded(q, k, v):
        with use(make_mesh(config), config.rules()):
            return splash_attend(q, k, v, seg, seg, **full, interpret=True)

    real = np.asarray(seg > 0)
    np.testing.assert_allclose(
        np.asarray(sharded(q, k, v))[real],
        np.asarray(_dense(q, k, v, seg, pos, **full))[real],
        atol=2e-3,
    )


def test_tpu_lowering_holds_the_splash_kernel(monkeypatch):
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    shapes = [jax.ShapeDtypeStruct((2, 512, 4, 128), jnp.bfloat16) for _ in range(3)]
    ids = jax.ShapeDtypeStruct((2, 512), jnp.int32)

    def grads(q, k, v, seg):
        loss = lambda *a: jnp.sum(_call(*a, seg, seg).astype(jnp.float32))  # noqa: E731
        return jax.grad(loss, (0, 1, 2))(q, k, v)

    text = jax.jit(grads).trace(*shapes, ids).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 3
