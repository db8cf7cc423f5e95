"""Factors of every family's linear maps in Hugging Face's layout, against sums of whole kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

import zoo
from zoo_cases import CASES

from t5x_llm.hf.import_ import family_of
from t5x_llm.hf.peft.adapter import PlainAdapter, Site
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.numpy_reader import AdaptedTensors
from t5x_llm.hf.peft.read import PeftAdapter, from_peft
from t5x_llm.hf.peft.write import to_peft
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, from_hf

RANK, SCALE = 2, 1.5
FIRST = list({config["model_type"]: name for name, config in reversed(CASES.items())}.values())


def random_site(shape, count, lead, rng):
    """A site whose kernel has ``lead`` stacked axes and ``count`` input axes."""
    heads, inner = shape[:lead], shape[lead:]
    a = rng.normal(size=(*heads, *inner[:count], RANK)).astype(np.float32)
    b = rng.normal(size=(*heads, RANK, *inner[count:])).astype(np.float32)
    return Site(a=a, b=b, scale=SCALE)


def product(site, lead, count):
    """What a site adds to its kernel, by a plain sum."""
    a, b = site.a.astype(np.float64), site.b.astype(np.float64)
    heads, ins, outs = a.shape[:lead], a.shape[lead:-1], b.shape[lead + 1 :]
    a = a.reshape(-1, int(np.prod(ins)), RANK)
    b = b.reshape(-1, RANK, int(np.prod(outs)))
    return site.scale * (a @ b).reshape(*heads, *ins, *outs)


def made(name):
    """(family, layers, base tensors by name, an adapter of all linear layers of a few)."""
    family = family_of(CASES[name])
    layers = linear_layers(family)
    rng = np.random.default_rng(0)
    sites, sides = {}, {}
    transposed = [m.transposed for m in layers.modules.values()]
    usual = max(set(transposed), key=transposed.count)
    for module in layers.modules.values():
        for slot in module.slots:
            # peft has one fan_in_fan_out, so GPT-2's head is left out; and so is what it cannot.
            if slot.path in sites or slot.part_of_inputs or module.transposed != usual:
                continue
            shape = layers.kernel(slot.path)
            lead = len(shape) - len(slot.kernel_shape)
            sides[slot.path] = (lead, slot.count)
            sites[slot.path] = random_site(shape, slot.count, lead, rng)
    shapes = zoo.hf_shapes(family)
    return family, layers, shapes, PlainAdapter("LORA", sites), sides


@pytest.mark.parametrize("name", FIRST)
def test_every_linear_map_lands_where_its_kernel_does(name):
    family, layers, shapes, adapter, sides = made(name)
    config, tensors = to_peft(adapter, layers, None, None, "CAUSAL_LM", loadable=False)
    found = check_fits(PeftAdapter(config, tensors), layers, shapes)
    assert found.config == config
    abstract = Model(family.decoder()).abstract_params()
    base = lambda n: zoo.array(n, shapes[n])  # noqa: E731
    changed = AdaptedTensors(found, base)
    plain = flatten(from_hf(family.weight_map(), abstract, base))
    merged = flatten(from_hf(family.weight_map(), abstract, changed.read))
    assert adapter.sites
    for path, value in merged.items():
        wanted = plain[path].astype(np.float64)
        site = adapter.sites.get(path.removesuffix(".kernel"))
        if site is not None:
            wanted = wanted + product(site, *sides[path.removesuffix(".kernel")])
        np.testing.assert_allclose(value, wanted, atol=2e-6, rtol=2e-6, err_msg=path)


@pytest.mark.parametrize("name", FIRST)
def test_what_is_written_reads_back_as_it_was(name):
    _, layers, _, adapter, _ = made(name)
    config, tensors = to_peft(adapter, layers, None, None, "CAUSAL_LM", loadable=False)
    back = from_peft(PeftAdapter(config, tensors), layers)
    assert back.sites.keys() == adapter.sites.keys()
    for path, site in adapter.sites.items():
        assert back.sites[path].scale == pytest.approx(site.scale, rel=1e-12)
        np.testing.assert_array_equal(back.sites[path].a, site.a, err_msg=path)
        np.testing.assert_array_equal(back.sites[path].b, site.b, err_msg=path)


@pytest.mark.parametrize("name", FIRST)
def test_targets_name_the_adapted_modules_and_no_others(name):
    """As peft reads them: a whole name, or an end of one after a dot."""
    _, layers, shapes, adapter, _ = made(name)
    half = dict(list(adapter.sites.items())[::2])
    config, tensors = to_peft(
        PlainAdapter("LORA", half), layers, None, None, "CAUSAL_LM", loadable=False
    )
    adapted = {k.removeprefix("base_model.model.").rpartition(".lora_")[0] for k in tensors}
    every = {n.rpartition(".")[0] for n in shapes}
    named = {n for n in every if any(n == t or n.endswith(f".{t}") for t in config.targets)}
    assert named == adapted
