"""Against peft itself, both ways: `make parity`. Skipped where torch or peft is absent."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import peft_cases as cases
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import make_peft_golden as golden  # noqa: E402

from t5x_llm.hf import parity  # noqa: E402
from t5x_llm.hf.import_ import family_of  # noqa: E402
from t5x_llm.hf.peft.adapter import PlainAdapter, Site  # noqa: E402
from t5x_llm.hf.peft.fitting import check_fits  # noqa: E402
from t5x_llm.hf.peft.gate import BaseModel, adapted_reference  # noqa: E402
from t5x_llm.hf.peft.layout import linear_layers  # noqa: E402
from t5x_llm.hf.peft.numpy_reader import AdaptedTensors  # noqa: E402
from t5x_llm.hf.peft.ours import to_plain  # noqa: E402
from t5x_llm.hf.peft.read import from_peft, open_adapter  # noqa: E402
from t5x_llm.hf.peft.store import write_adapter  # noqa: E402
from t5x_llm.hf.peft.write import BYPASSED  # noqa: E402
from t5x_llm.models.model import Model  # noqa: E402
from t5x_llm.models.weight_map import flatten, from_hf, hf_shapes, unflatten  # noqa: E402
from t5x_llm.nn.adapters import roots  # noqa: E402
from t5x_llm.nn.adapters.prompting import Prefix, PTuning  # noqa: E402
from t5x_llm.run.adapters import given_adapter  # noqa: E402

TOLERANCE = 1e-5
WEIGHTS = [case for case in cases.CASES if case[1] not in ("prefix", "prompt", "ptuning")]
PROMPTS = [case for case in cases.CASES if case[1] in ("prompt", "ptuning") and case[0] != "t5"]


@functools.cache
def base(family):
    """(preset, its linear layers, shapes by name, weights by name, our parameters)."""
    preset = family_of(cases.config_of(family))
    abstract = Model(preset.decoder()).abstract_params()
    shapes = hf_shapes(preset.weight_map(), abstract)

    def read(name):
        return cases.draw(name, shapes[name])

    return preset, linear_layers(preset), shapes, read, from_hf(preset.weight_map(), abstract, read)


def ours(family, read):
    preset = base(family)[0]
    abstract = Model(preset.decoder()).abstract_params()
    return parity.our_logits(preset, from_hf(preset.weight_map(), abstract, read))


@pytest.mark.parametrize("case", WEIGHTS, ids="_".join)
def test_what_peft_saves_computes_the_same_here(case, tmp_path):
    family, method = case
    model = golden.adapted(family, method)
    wanted = golden.logits(model, family)
    model.float().save_pretrained(tmp_path)
    preset, layers, shapes, read, _ = base(family)
    found = check_fits(open_adapter(tmp_path), layers, shapes)
    np.testing.assert_allclose(
        ours(family, AdaptedTensors(found, read).read)(cases.prompt()), wanted, atol=TOLERANCE
    )
    again = tmp_path / "again"
    write_adapter(again, from_peft(found, layers), BaseModel(None, preset, read), None)
    np.testing.assert_allclose(loaded(family, again), wanted, atol=TOLERANCE)


def loaded(family, directory):
    """peft's logits with an adapter from disk; it must know every tensor of it."""
    model = peft.PeftModel.from_pretrained(
        golden.base_model(family, torch.float32), directory, ignore_mismatched_sizes=False
    )
    return golden.logits(model.double().eval(), family)


@pytest.mark.parametrize("case", PROMPTS, ids="_".join)
def test_virtual_tokens_both_ways(case, tmp_path):
    family, method = case
    model = golden.adapted(family, method)
    wanted = golden.logits(model, family)
    model.float().save_pretrained(tmp_path)
    preset, layers, shapes, read, _ = base(family)
    whole = BaseModel(None, preset, read)
    found = check_fits(open_adapter(tmp_path), layers, shapes)
    logits = adapted_reference(found, whole)[1]
    np.testing.assert_allclose(logits(cases.prompt()), wanted, atol=TOLERANCE)
    again = tmp_path / "again"
    write_adapter(again, from_peft(found, layers), whole, logits)
    np.testing.assert_allclose(loaded(family, again), wanted, atol=TOLERANCE)


GIVEN = [
    case
    for case in cases.CASES
    if case[1] in ("prefix", "prompt", "ptuning", "lora", "dora", "adalora", "ia3", "experts")
    and not (case[0] in ("mamba", "t5") and case[1] in ("prompt", "ptuning"))
    and case != ("falcon", "prefix")  # trained for every query head, where ours has groups
]


@pytest.mark.parametrize("case", GIVEN, ids="_".join)
def test_a_model_given_an_adapter_of_peft_computes_the_same(case, tmp_path):
    """The adapter beside the base, not in it."""
    family, method = case
    model = golden.adapted(family, method)
    wanted = golden.logits(model, family)
    model.float().save_pretrained(tmp_path)
    preset, _, _, _, params = base(family)
    given = given_adapter(tmp_path, preset)
    whole = roots.merge({roots.BASE: params, roots.ADAPTER: given.params})
    found = parity.our_logits(preset, whole, given.config)(cases.prompt())
    print(f"{family} {method}: {np.abs(found - wanted).max():.2g}")
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


@pytest.mark.parametrize(
    "config", [Prefix(3), PTuning("deep", 2, hidden=5)], ids=["prefix", "deep"]
)
@pytest.mark.parametrize("family", [f for f in cases.CONFIGS if f not in ("mamba", "t5")])
def test_prefixes_written_here_compute_the_same_in_peft(family, config, tmp_path):
    preset, _, _, read, params = base(family)
    model = Model(preset.decoder(), adapter=config)
    tree = jax.device_get(model.adapted(params, jax.random.key(0)))[roots.ADAPTER]
    tree = unflatten({p: v + cases.draw(p, v.shape, 0.5) for p, v in flatten(tree).items()})
    whole = roots.merge({roots.BASE: params, roots.ADAPTER: tree})
    wanted = parity.our_logits(preset, whole, config)(cases.prompt())
    out = tmp_path / "out"
    write_adapter(out, to_plain(config, tree), BaseModel(None, preset, read), None)
    found = loaded(family, out)
    print(f"{family} {config.method}: {np.abs(found - wanted).max():.2g}")
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    given = given_adapter(out, preset)
    whole = roots.merge({roots.BASE: params, roots.ADAPTER: given.params})
    again = parity.our_logits(preset, whole, given.config)(cases.prompt())
    np.testing.assert_allclose(again, wanted, atol=TOLERANCE)


RANK, SCALE = 2, 1.5
VARIANTS = ("lora", "rslora", "dora", "adalora", "ia3")


def drawn(family, kind):
    """A plain adapter of all linear maps of blocks, each with values of its own."""
    _, layers, _, read, params = base(family)
    flat, sites = flatten(params), {}
    for module in layers.modules.values():
        for slot in module.slots:
            skipped = slot.path in sites or "group_" not in slot.path or "router" in slot.path
            leaf = module.name.rpartition(".")[2]
            if skipped or leaf in BYPASSED.get(layers.model_type, ()):
                continue
            if "experts" in slot.path and kind not in ("lora", "rslora"):
                continue
            shape = layers.kernel(slot.path)
            lead = len(shape) - len(slot.kernel_shape)
            heads, ins = shape[:lead], shape[lead : lead + slot.count]
            outs = shape[lead + slot.count :]
            if kind == "ia3":
                feeds = slot.path.endswith("down")
                gain = 1 + cases.draw(slot.path, (*heads, *(ins if feeds else outs)))
                sites[slot.path] = Site(gain=gain, feeds=feeds)
                continue
            a = cases.draw(f"{slot.path}.a", (*heads, *ins, RANK))
            b = cases.draw(f"{slot.path}.b", (*heads, RANK, *outs))
            site = Site(a=a, b=b, scale=SCALE)
            if kind == "adalora":
                e = cases.draw(f"{slot.path}.e", (*heads, RANK), 1.0)
                site = dataclasses.replace(site, e=e)
            if kind == "dora":
                kernel = flat.get(f"{slot.path}.kernel", flat.get(slot.path))
                axes = tuple(range(lead, lead + slot.count))
                norm = np.sqrt((kernel**2).sum(axes))
                site = dataclasses.replace(site, magnitude=1.1 * norm)
            sites[slot.path] = site
    kinds = {"adalora": "ADALORA", "ia3": "IA3"}
    return PlainAdapter(kinds.get(kind, "LORA"), sites, rank_stabilised=kind == "rslora")


def summed(family, adapter):
    """Our parameters with an adapter in them, by plain sums in our own layout."""
    _, layers, _, _, params = base(family)
    flat = {k: np.asarray(v, np.float64) for k, v in flatten(params).items()}
    slots = {slot.path: slot for m in layers.modules.values() for slot in m.slots}
    for path, site in adapter.sites.items():
        name = f"{path}.kernel" if f"{path}.kernel" in flat else path
        kernel, slot = flat[name], slots[path]
        lead = kernel.ndim - len(slot.kernel_shape)
        ins = kernel.shape[lead : lead + slot.count]
        outs = kernel.shape[lead + slot.count :]
        matrix = kernel.reshape(*kernel.shape[:lead], int(np.prod(ins)), int(np.prod(outs)))
        head = matrix.shape[:-2]
        if site.gain is not None:
            gain = site.gain.astype(np.float64).reshape(*head, -1)
            matrix = matrix * (gain[..., :, None] if site.feeds else gain[..., None, :])
            if not site.feeds and f"{path}.bias" in flat:
                bias = flat[f"{path}.bias"]
                flat[f"{path}.bias"] = (bias.reshape(*head, -1) * gain).reshape(bias.shape)
        else:
            a = site.a.astype(np.float64).reshape(*head, -1, RANK)
            a = a if site.e is None else a * site.e.astype(np.float64)[..., None, :]
            matrix = matrix + site.scale * a @ site.b.astype(np.float64).reshape(*head, RANK, -1)
        if site.magnitude is not None:
            norm = np.linalg.norm(matrix, axis=-2)
            matrix = matrix * (site.magnitude.reshape(norm.shape) / norm)[..., None, :]
        flat[name] = matrix.reshape(kernel.shape)
    return unflatten({k: v.astype(np.float32) for k, v in flat.items()})


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("family", cases.CONFIGS)
def test_what_is_written_here_computes_the_same_in_peft(family, kind, tmp_path):
    """Every linear map has an adapter of its own, fused ones too, and passes the gate before."""
    preset, _, _, read, _ = base(family)
    adapter = drawn(family, kind)
    logits = parity.our_logits(preset, summed(family, adapter))
    report = write_adapter(tmp_path / "out", adapter, BaseModel(None, preset, read), logits)
    assert report.passed
    found = loaded(family, tmp_path / "out")
    difference = np.abs(found - logits(cases.prompt())).max()
    print(f"{family} {kind}: {difference:.2g}")
    assert difference < TOLERANCE
    plain = ours(family, read)(cases.prompt())
    assert np.abs(found - plain).max() > 0.01
