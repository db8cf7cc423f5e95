"""Merged models are the averages they claim to be."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import models
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import merge as room
from t5x_llm.hf import reference
from t5x_llm.hf.export import export_hf
from t5x_llm.hf.import_ import family_of, import_model
from t5x_llm.hf.merge import merge, slerp
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.models.weight_map import flatten


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


def read(directory):
    reader = SafetensorsReader(directory)
    return {name: reader.read(name).copy() for name in reader.names()}


def test_linear(tmp_path):
    parts = [models.tensors(seed=s, dtype=ml_dtypes.bfloat16) for s in range(3)]
    paths = [models.write(tmp_path / str(i), p) for i, p in enumerate(parts)]
    report = merge(paths, tmp_path / "out", weights=[0.5, 0.2, 0.3], max_shard_bytes=3000)
    assert report.passed and report.dtype == "bfloat16"
    for name, array in read(tmp_path / "out").items():
        wide = sum(
            w * p[name].astype(np.float64) for w, p in zip([0.5, 0.2, 0.3], parts, strict=True)
        )
        assert array.tobytes() == wide.astype(np.float32).astype(ml_dtypes.bfloat16).tobytes()
    merge([paths[0]] * 3, tmp_path / "same")
    for name, array in read(tmp_path / "same").items():
        assert array.tobytes() == parts[0][name].tobytes()
    assert "0.333333 0 + 0.333333 0" in (tmp_path / "same" / "README.md").read_text()


def test_slerp_of_unit_quaternions_is_scipys():
    pair = Rotation.random(2, random_state=0)
    a, b = pair.as_quat()
    b = b if a @ b > 0 else -b
    for share in (0.0, 0.25, 0.5, 1.0):
        theirs = Slerp([0, 1], pair)(share).as_quat()
        found = slerp(a, b, share)
        np.testing.assert_allclose(found * np.sign(found @ theirs), theirs, atol=1e-6)
    np.testing.assert_array_equal(slerp(a, a, 0.3), a.astype(np.float32))
    zero = np.zeros(4, np.float32)
    np.testing.assert_array_equal(slerp(zero, zero, 0.5), zero)


def test_slerp_of_models(tmp_path):
    paths = [models.write(tmp_path / str(s), models.tensors(seed=s)) for s in range(2)]
    assert merge(paths, tmp_path / "out", weights=[1.0, 0.0], method="slerp").passed
    for name, array in read(tmp_path / "out").items():
        np.testing.assert_array_equal(array, models.tensors(seed=0)[name])
    with pytest.raises(ConfigError, match="slerp is of two"):
        merge([*paths, paths[0]], tmp_path / "out", method="slerp")


@pytest.mark.parametrize(
    ("field", "value"), [("rms_norm_eps", 1e-3), ("rope_theta", 500.0), ("vocab_size", 91)]
)
def test_configs_that_differ_are_named(tmp_path, field, value):
    config = models.CONFIG | {field: value}
    paths = [models.write(tmp_path / "a", models.tensors())]
    paths.append(models.write(tmp_path / "b", models.tensors(config), config))
    with pytest.raises(ConfigError, match=f"b config.json ({field}|rope_parameters)"):
        merge(paths, tmp_path / "out")


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [float("nan"), 1.0], [0.2, 0.3, 0.5]])
def test_weights_that_do_not_fit(tmp_path, weights):
    paths = [models.write(tmp_path / str(s), models.tensors(seed=s)) for s in range(2)]
    with pytest.raises(ConfigError, match="weights"):
        merge(paths, tmp_path / "out", weights=weights)


def test_checkpoints_are_averaged_from_disk(tmp_path):
    """Slices of TensorStore arrays go through the average and the export."""
    import jax

    from t5x_llm.models.model import Model

    family = family_of(models.CONFIG)
    model = Model(family.decoder())
    trees = [model.init(jax.random.key(i)) for i in range(3)]
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    for step, tree in enumerate(trees):
        checkpointer.save(step, {"params": tree, "other": np.zeros(3, np.float32)}, {})
    checkpointer.wait()
    lazy = [checkpointer.open_params(step) for step in range(3)]
    checkpointer.close()
    flat = flatten(lazy[1])
    assert {k: v.shape for k, v in flat.items()} == {
        k: v.shape for k, v in flatten(trees[1]).items()
    }
    for path, array in flatten(trees[1]).items():
        np.testing.assert_array_equal(np.asarray(flat[path]), array)
        np.testing.assert_array_equal(flat[path][0], array[0])
    shares = [0.2, 0.3, 0.5]
    export_hf(room.averaged(lazy, shares), family, None, tmp_path / "out")
    found = flatten(import_model(tmp_path / "out").params)
    for path in flat:
        parts = [np.asarray(flatten(t)[path], np.float64) for t in trees]
        expected = sum(s * p for s, p in zip(shares, parts, strict=True)).astype(np.float32)
        np.testing.assert_array_equal(found[path], expected)
    wider = dataclasses.replace(family, d_ff=32)
    with pytest.raises(ConfigError, match="one shape"):
        room.averaged([lazy[0], Model(wider.decoder()).abstract_params()], [0.5, 0.5])
