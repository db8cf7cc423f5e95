"""GPTQ directories as frozen models: codes as stored, logits of the dequantised weights."""

import json

import gptqs
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.gptq import import_gptq, read_settings
from t5x_llm.hf.import_ import import_model
from t5x_llm.models.base_storage import abstract_stored, stored_kernels
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.nn.fewbit.gptq import GptqKernel
from t5x_llm.nn.fewbit.stored import Matrix, is_stored

FORMS = {
    "4 bits": dict(bits=4, group=8),
    "4 bits, act order": dict(bits=4, group=8, desc_act=True),
    "8 bits, v2": dict(bits=8, group=8, form="gptq_v2", desc_act=True),
    "8 bits, one group": dict(bits=8, group=0),
}
TOKENS = np.random.default_rng(0).integers(0, 90, (2, 12)).astype(np.int32)


def directory(tmp_path, **form):
    """(a GPTQ directory, a plain one of its dequantised weights)."""
    plain = models.write(tmp_path / "plain", models.tensors())
    whole = gptqs.write(plain, tmp_path / "gptq", **form)
    save_file(whole, plain / "model.safetensors")
    return tmp_path / "gptq", plain


def imported(path, check=False):
    storage = read_settings(path)[1].storage
    family = import_model(path.parent / "plain", check=False).family
    model = Model(family.decoder(), Policy(compute="float32"), adapter=LoRA(rank=2))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: one, abstract_stored(model, storage))
    return model, import_gptq(path, model, shardings, check), storage


@pytest.mark.parametrize("form", list(FORMS))
def test_the_model_is_that_of_the_dequantised_weights(tmp_path, form):
    path, plain = directory(tmp_path, **FORMS[form])
    model, found, storage = imported(path, check=form == "4 bits, act order")
    assert found.report is None or found.report.passed
    held, whole = flatten(found.params), flatten(import_model(plain, check=False).params)
    assert {p for p, x in held.items() if is_stored(x)} == set(stored_kernels(model, storage))
    abstract = flatten(abstract_stored(model, storage))
    for name, x in held.items():
        assert [(a.shape, a.dtype) for a in jax.tree.leaves(x)] == [
            (a.shape, a.dtype) for a in jax.tree.leaves(abstract[name])
        ]
        if is_stored(x):
            np.testing.assert_array_equal(x[...], whole[name])
    # The backward pass goes through the dequantised weights, to adapters alone.
    adapter = model.adapted(found.params, jax.random.key(1))[roots.ADAPTER]
    adapter = jax.tree.map(lambda x: x + 0.03, adapter)

    def loss(adapter, base):
        params = roots.merge({roots.BASE: base, roots.ADAPTER: adapter})
        hidden, _ = model.apply(params, TOKENS)
        return jnp.mean(jnp.square(model.logits(params, hidden)))

    step = jax.jit(jax.value_and_grad(loss))
    same = {p: jnp.asarray(whole[p]) if is_stored(x) else x for p, x in held.items()}
    few, wide = step(adapter, found.params), step(adapter, unflatten(same))
    np.testing.assert_allclose(few[0], wide[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(few[1]), jax.tree.leaves(wide[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


def test_a_kernel_rounded_here_has_the_same_form():
    matrix = Matrix((16,), (24,), ("embed", "mlp"))
    kernel = np.random.default_rng(2).normal(size=(3, 16, 24)).astype(np.float32)
    for bits, error in ((4, 0.6 / 15), (8, 0.6 / 255)):
        stored = GptqKernel.rounded(jnp.asarray(kernel), matrix, bits, 8)
        spread = kernel.max(1, keepdims=True) - kernel.min(1, keepdims=True)
        assert (np.abs(stored[...] - kernel) <= error * spread + 1e-3).all()
        assert stored.nbytes == 3 * (16 * 24 * bits // 8 + 2 * 24 * (2 + 1) + 16 * 4)
        np.testing.assert_array_equal(stored[1], stored[...][1])


def changed(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


LAYER = "model.layers.1.mlp.up_proj"


def test_what_is_no_gptq_directory(tmp_path):
    path, plain = directory(tmp_path)
    with pytest.raises(ConfigError, match=r"quantization_config.*no GPTQ directory"):
        read_settings(plain)
    config = json.loads((path / "config.json").read_text())
    for field, value, match in (
        ("bits", 3, "bits of"),
        ("group_size", 0, "bits of"),
        ("quant_method", "awq", "quant_method = 'gptq'"),
        ("checkpoint_format", "marlin", "gptq_v2"),
    ):
        other = config | {"quantization_config": config["quantization_config"] | {field: value}}
        (path / "config.json").write_text(json.dumps(other))
        with pytest.raises(ConfigError, match=match):
            read_settings(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(f"{LAYER}.g_idx"), rf"{LAYER}: GPTQ's tensors g_idx are missing"),
        (lambda t: t.update({f"{LAYER}.scales": t[f"{LAYER}.scales"][:1]}), "groups of 8 inputs"),
        (lambda t: t.update({f"{LAYER}.g_idx": t[f"{LAYER}.g_idx"] + 9}), "not among its 2"),
        (
            lambda t: (
                [t.pop(f"{LAYER}.{p}") for p in ("qweight", "qzeros", "scales", "g_idx")]
                and t.update({f"{LAYER}.weight": np.ones((24, 16), np.float32)})
            ),
            r"up_proj.weight is not quantised",
        ),
    ],
)
def test_damaged_tensors_are_named(tmp_path, change, match):
    path, _ = directory(tmp_path)
    changed(path, change)
    with pytest.raises(CheckpointError, match=match):
        imported(path)
