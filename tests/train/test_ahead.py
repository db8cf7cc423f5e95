"""Compiling in a thread, and keeping what was compiled."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import ToyStream, init, one_mesh, step

from t5x_llm.parallel import global_batch
from t5x_llm.train import ahead
from t5x_llm.train.ahead import Ahead, cut_down, keep_compiled


def test_the_same_step():
    mesh, rules = one_mesh()
    batch = global_batch(lambda rows: ToyStream().batch(0, 4, rows), 4, mesh, rules)
    state = jax.eval_shape(init)
    wanted, found = step(init(), batch), Ahead(step, state, batch)(init(), batch)
    jax.tree.map(np.testing.assert_array_equal, wanted, found)


def test_what_cannot_be_traced_fails_where_it_is_called():
    def wrong(x):
        raise ValueError("no such layer")

    waiting = Ahead(jax.jit(wrong), jnp.ones(2))
    with pytest.raises(ValueError, match="no such layer"):
        waiting(jnp.ones(2))


def keep(monkeypatch, tmp_path, given=None, processes=1, **environ):
    """(where ``keep_compiled`` says, the options it sets)."""
    options = {}
    kept = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    jax.config.update("jax_compilation_cache_dir", given)
    try:
        environ = {"XDG_CACHE_HOME": str(tmp_path)} | environ
        return keep_compiled("gs://bucket/run", environ, options.__setitem__), options
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)


def test_where_it_is_kept(monkeypatch, tmp_path):
    place, options = keep(monkeypatch, tmp_path)
    assert place == options["jax_compilation_cache_dir"] == str(tmp_path / "t5x_llm" / "compiled")
    assert options["jax_persistent_cache_min_compile_time_secs"] == ahead._SECONDS
    _, options = keep(monkeypatch, tmp_path, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="3")
    assert "jax_persistent_cache_min_compile_time_secs" not in options
    assert keep(monkeypatch, tmp_path, processes=2)[0] == "gs://bucket/run/compiled"
    assert keep(monkeypatch, tmp_path, given=str(tmp_path)) == (None, {})
    with monkeypatch.context() as off:
        jax.config.update("jax_enable_compilation_cache", False)
        try:
            assert keep(off, tmp_path) == (None, {})
        finally:
            jax.config.update("jax_enable_compilation_cache", True)


def test_the_oldest_go_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    cut_down(str(tmp_path), 30)
    assert len(list(tmp_path.iterdir())) == 3
    cut_down(str(tmp_path), 20)
    assert {p.name for p in tmp_path.iterdir()} == {"new", "middle"}
    cut_down(str(tmp_path), 9)
    cut_down(str(tmp_path / "absent"), 0)
    assert not list(tmp_path.iterdir())
