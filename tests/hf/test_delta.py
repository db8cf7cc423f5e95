"""Deltas give back what they say they give back."""

from __future__ import annotations

import json

import ml_dtypes
import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf import delta
from t5x_llm.hf.import_ import import_model
from t5x_llm.hf.safetensors_io import SafetensorsReader

UNIT = {np.float16: 2.0**-11, ml_dtypes.bfloat16: 2.0**-8, np.float32: 2.0**-24}


@pytest.fixture(params=list(UNIT), ids=lambda d: np.dtype(d).name)
def pair(request, tmp_path):
    """A base, and one tuned from it: some values nearby, some far, and 3 rows more."""
    base = models.tensors(dtype=request.param)
    rng = np.random.default_rng(1)
    tuned = {}
    for name, array in base.items():
        wide = array.astype(np.float32)
        moved = wide * (1 + 0.1 * rng.normal(size=array.shape)) + 0.02 * rng.normal(
            size=array.shape
        )
        if array.shape[0] == 90:
            moved = np.concatenate([moved, rng.normal(size=(3, 16))])
        tuned[name] = moved.astype(request.param)
    config = models.CONFIG | {"vocab_size": 93}
    models.write(tmp_path / "base", base)
    (models.write(tmp_path / "tuned", tuned, config) / "tokenizer_config.json").write_text("{}")
    return tmp_path, base, tuned


def read(directory):
    reader = SafetensorsReader(directory)
    return {name: reader.read(name) for name in reader.names()}


def test_bits_come_back_and_nobody_takes_the_delta_for_a_model(pair):
    path, _, tuned = pair
    made = delta.make(path / "base", path / "tuned", path / "delta", max_shard_bytes=2000)
    assert made.inexact == 0
    assert delta.apply(path / "base", path / "delta", path / "out")
    for name, array in read(path / "out").items():
        assert array.dtype == tuned[name].dtype and array.tobytes() == tuned[name].tobytes()
    assert json.loads((path / "out/config.json").read_text())["vocab_size"] == 93
    assert (path / "out/tokenizer_config.json").exists()
    import_model(path / "out", check=False)
    with pytest.raises(CheckpointError, match="no config.json"):
        import_model(path / "delta")


def test_sums_come_back_within_the_stated_bound(pair):
    path, base, tuned = pair
    made = delta.make(path / "base", path / "tuned", path / "delta", "sum")
    proved = delta.apply(path / "base", path / "delta", path / "out")
    unit = UNIT[tuned["lm_head.weight"].dtype.type]
    inexact = 0
    for name, array in read(path / "out").items():
        t, found = tuned[name].astype(np.float64), array.astype(np.float64)
        b = np.zeros_like(t)
        b[: len(base[name])] = base[name].astype(np.float64)
        assert np.all(np.abs(found - t) <= 1.01 * unit * (np.abs(t - b) + np.abs(t)))
        near = (t * b > 0) & (np.abs(t) <= 2 * np.abs(b)) & (np.abs(b) <= 2 * np.abs(t))
        assert near.any() and np.array_equal(found[near], t[near])
        assert np.array_equal(found[len(base[name]) :], t[len(base[name]) :])
        inexact += np.count_nonzero(found != t)
    assert made.inexact == inexact and proved == (inexact == 0)
    assert made.values == sum(x.size for x in tuned.values())


def test_vicunas_way(pair):
    """FastChat subtracts and adds state dicts in float16; torch rounds each sum once."""
    path, base, tuned = pair
    if tuned["lm_head.weight"].dtype != np.float16:
        return
    theirs = {}
    for name, array in tuned.items():
        theirs[name] = array.copy()
        theirs[name][: len(base[name])] -= base[name]
    models.write(path / "theirs", theirs, models.CONFIG | {"vocab_size": 93})
    delta.make(path / "base", path / "tuned", path / "ours", "sum")
    for name, array in read(path / "ours").items():
        assert array.tobytes() == theirs[name].tobytes()
    assert not delta.apply(path / "base", path / "theirs", path / "out")
    for name, array in read(path / "out").items():
        expected = theirs[name].copy()
        expected[: len(base[name])] += base[name]
        assert array.tobytes() == expected.tobytes()
    delta.apply(path / "base", path / "theirs", path / "mean", grown="mean")
    mean = base["lm_head.weight"].mean(0, dtype=np.float64).astype(np.float16)
    found = read(path / "mean")["lm_head.weight"][90:]
    np.testing.assert_array_equal(found, theirs["lm_head.weight"][90:] + mean)


def test_another_base_a_damaged_delta_and_other_shapes(tmp_path):
    base, tuned = (models.tensors(seed=s, dtype=np.float16) for s in (0, 1))
    models.write(tmp_path / "base", base)
    models.write(tmp_path / "tuned", tuned)
    delta.make(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    other = models.write(
        tmp_path / "other", base | {"model.norm.weight": base["model.norm.weight"] * 2}
    )
    with pytest.raises(CheckpointError, match="model.norm.weight is not what the delta"):
        delta.apply(other, tmp_path / "delta", tmp_path / "out")
    file = tmp_path / "delta" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        delta.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    record = tmp_path / "delta" / "delta.json"
    for text in ("{}", "[", '{"kind": "bits", "checksums": {"a": 3}, "dtypes": {}}'):
        record.write_text(text)
        with pytest.raises(CheckpointError, match="delta.json"):
            delta.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    small = models.CONFIG | {"hidden_size": 32}
    models.write(tmp_path / "wide", models.tensors(small, dtype=np.float16), small)
    with pytest.raises(ConfigError, match="lm_head.*or fewer rows"):
        delta.make(tmp_path / "base", tmp_path / "wide", tmp_path / "out")
    save_file({"x": np.zeros(3, np.float16)}, tmp_path / "wide" / "model.safetensors")
    with pytest.raises(ConfigError, match="base x.*the base model has none"):
        delta.make(tmp_path / "base", tmp_path / "wide", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_any_bits(a, b):
    """NaNs and infinities too: the arithmetic is on integers."""
    x, y = (np.frombuffer(v, np.int16) for v in (a, b))
    assert np.array_equal(x + (y - x), y)
