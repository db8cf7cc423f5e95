"""A frozen model in few bits beside its adapters: the same as with its dequantised kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.models.base_storage import (
    STORAGE,
    Storing,
    abstract_stored,
    linear_kernels,
    store,
    stored_axes,
)
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import Assembly, flatten, to_hf, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.nn.fewbit.stored import dequantise, is_stored
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings, use

SIZES = dict(vocab_size=61, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=128)
FAMILIES = {
    "llama": Llama(**SIZES, max_length=32),
    "mixtral": Mixtral(**SIZES, max_length=32, n_experts=4, top_k=2),
}
TOKENS = np.random.default_rng(0).integers(0, 61, (4, 16)).astype(np.int32)


def adapted(name, remat="save_projections"):
    family = FAMILIES[name]
    model = Model(family.decoder(), Policy(compute="float32"), remat, adapter=LoRA(rank=2))
    return family, model, model.bare.init(jax.random.key(0))


def loss(model, base, adapter):
    params = roots.merge({roots.BASE: base, roots.ADAPTER: adapter})
    hidden, _ = model.apply(params, TOKENS)
    return jnp.mean(jnp.square(model.logits(params, hidden)))


def moved(adapter):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), adapter)


@pytest.mark.parametrize(("name", "storage"), [("llama", "nf4"), ("mixtral", "int8")])
def test_adapters_train_as_on_the_dequantised_model(name, storage):
    _, model, params = adapted(name)
    stored = store(params, model, storage)
    adapter = moved(model.adapted(params, jax.random.key(1))[roots.ADAPTER])
    step = jax.jit(jax.value_and_grad(lambda a, base: loss(model, base, a)))
    few, whole = step(adapter, stored), step(adapter, dequantise(stored))
    np.testing.assert_allclose(few[0], whole[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(few[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())
    assert abs(few[0] - step(adapter, params)[0]) > 1e-7  # not the model before it was stored


@pytest.mark.parametrize("storage", STORAGE)
def test_what_is_stored_how(storage):
    _, model, params = adapted("mixtral")
    stored = flatten(store(params, model, storage))
    few = {path for path, x in stored.items() if is_stored(x)}
    expected = {f"group_0.block_0.attention.{n}.kernel" for n in ("query", "key", "value", "out")}
    expected |= {f"group_0.block_0.mlp.experts.{n}" for n in ("gate", "up", "down")}
    assert few == (expected if storage in ("nf4", "int8") else set())
    assert set(linear_kernels(model.bare)) == expected
    rest = {x.dtype.name for path, x in stored.items() if path not in few}
    assert rest == {"float32" if storage == "float32" else "bfloat16"}
    abstract, axes = flatten(abstract_stored(model, storage)), flatten(stored_axes(model, storage))
    for path, x in stored.items():
        leaves = jax.tree.leaves(x)
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract[path])]
        names = jax.tree.leaves(axes[path], is_leaf=lambda n: isinstance(n, tuple))
        assert [len(n) for n in names] == [leaf.ndim for leaf in leaves], path
    if storage == "nf4":
        up = axes["group_0.block_0.mlp.experts.up"]
        assert up.codes == ("layers", "experts", "embed", "mlp")
        assert up.scales == ("layers", "experts", "embed", "mlp")
        kernels = [stored[path] for path in few]
        bits = 8 * sum(x.nbytes for x in kernels) / sum(np.prod(x.shape) for x in kernels)
        assert bits == pytest.approx(4.127, abs=0.06)  # groups of these small kernels are not full


def test_a_model_is_stored_while_it_is_read_one_repeat_at_a_time():
    family, model, params = adapted("llama")
    tensors = {name: make() for name, make in to_hf(family.weight_map(), params)}
    abstract = model.bare.abstract_params()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: one, abstract_stored(model, "nf4"))
    asked = []

    class Watched(Assembly):
        def make(self, path, repeat=None):
            asked.append((path, repeat))
            return super().make(path, repeat)

    storing = Storing(model, "nf4", shardings)
    assembly = Watched(family.weight_map(), abstract, tensors.__getitem__)
    found = unflatten({path: storing(path, assembly) for path in assembly.leaves})
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(store(params, model, "nf4")), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    kernel = "group_0.block_0.mlp.up.kernel"
    assert [repeat for path, repeat in asked if path == kernel] == [0, 1]


def test_eight_devices_compute_what_one_does():
    _, model, params = adapted("llama")
    stored = store(params, model, "nf4")
    adapter = moved(model.adapted(params, jax.random.key(1))[roots.ADAPTER])
    step = jax.value_and_grad(lambda a, base: loss(model, base, a))
    alone = jax.jit(step)(adapter, stored)
    config = MeshConfig(data=2, fsdp=2, tensor=2, strategy="fsdp")
    mesh, rules = make_mesh(config), config.rules()
    axes = stored_axes(model, "nf4")
    shardings = param_shardings(axes, abstract_stored(model, "nf4"), mesh, rules)
    up = shardings["group_0"]["block_0"]["mlp"]["down"]["kernel"]
    assert "tensor" in str(up.codes.spec) and "tensor" in str(up.scales.spec)
    placed = jax.device_put(stored, shardings)

    def sharded(adapter, base):
        with use(mesh, rules):
            return step(adapter, base)

    many = jax.jit(sharded)(adapter, placed)
    np.testing.assert_allclose(many[0], alone[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(many[1]), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * np.abs(b).max())
