"""Adapters that peft wrote, read here: logits as peft gives them, files as peft writes them."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import peft_cases as cases

from t5x_llm.core.errors import ParityError
from t5x_llm.hf import parity
from t5x_llm.hf.import_ import family_of
from t5x_llm.hf.peft.config import PROMPTS
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.gate import BaseModel, adapted_reference
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.numpy_reader import AdaptedTensors
from t5x_llm.hf.peft.read import PeftAdapter, from_peft, open_adapter
from t5x_llm.hf.peft.store import write_adapter
from t5x_llm.hf.peft.write import to_peft
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import from_hf, hf_shapes
from t5x_llm.nn.adapters import roots
from t5x_llm.run.adapters import given_adapter

STORED = [f"{family}_{method}" for family, method in cases.STORED]
WEIGHTS = [case for case in STORED if not case.endswith(("prefix", "prompt", "ptuning"))]


@functools.cache
def base(family):
    """(preset, its linear layers, shapes by Hugging Face name, weights by name)."""
    preset = family_of(cases.config_of(family))
    shapes = hf_shapes(preset.weight_map(), Model(preset.decoder()).abstract_params())
    return preset, linear_layers(preset), shapes, lambda name: cases.draw(name, shapes[name])


def opened(case):
    _, layers, shapes, _ = base(case.partition("_")[0])
    return check_fits(open_adapter(cases.GOLDEN / case), layers, shapes)


@functools.cache
def forward(family):
    """Our forward pass on parameters made from tensors by name, compiled once a family."""
    preset = base(family)[0]
    abstract = Model(preset.decoder()).abstract_params()
    return lambda read: parity.our_logits(preset, from_hf(preset.weight_map(), abstract, read))


@pytest.mark.parametrize("case", WEIGHTS)
def test_logits_are_peft_s(case):
    family = case.partition("_")[0]
    read = AdaptedTensors(opened(case), base(family)[3]).read
    found = forward(family)(read)(cases.prompt())
    np.testing.assert_allclose(found, cases.logits(case), atol=1e-5, rtol=0)
    plain = forward(family)(base(family)[3])(cases.prompt())
    assert np.abs(plain - cases.logits(case)).max() > 0.01  # the adapter does something


@pytest.mark.parametrize("case", ["llama_prompt", "llama_ptuning", "llama_lora", "gpt2_dora"])
def test_the_reference_of_the_gate_gives_peft_s_logits(case):
    family = case.partition("_")[0]
    name, logits = adapted_reference(
        opened(case), BaseModel(None, base(family)[0], base(family)[3])
    )
    assert name.startswith("numpy")
    np.testing.assert_allclose(logits(cases.prompt()), cases.logits(case), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["llama_prefix", "llama_ptuning", "llama_adalora"])
def test_a_model_given_an_adapter_computes_what_peft_does(case):
    preset, _, _, read = base(case.partition("_")[0])
    abstract = Model(preset.decoder()).abstract_params()
    given = given_adapter(cases.GOLDEN / case, preset)
    whole = roots.merge(
        {roots.BASE: from_hf(preset.weight_map(), abstract, read), roots.ADAPTER: given.params}
    )
    found = parity.our_logits(preset, whole, given.config)(cases.prompt())
    np.testing.assert_allclose(found, cases.logits(case), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", STORED)
def test_read_and_written_again_files_hold_the_same(case):
    preset, layers, shapes, read = base(case.partition("_")[0])
    found = opened(case)
    adapter = from_peft(found, layers)
    config, tensors = to_peft(adapter, layers, found.config.base, read, found.config.task)
    if case == "mixtral_experts":  # by expert, as weight files and servers name them
        again = check_fits(PeftAdapter(config, tensors), layers, shapes)
        both = [AdaptedTensors(each, read) for each in (found, again)]
        assert len(both[0].changed()) == 2 * 4 * 3
        for name in both[0].changed():
            np.testing.assert_allclose(both[0].read(name), both[1].read(name), atol=1e-7)
        return
    assert tensors.keys() == found.tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, found.tensors[name], err_msg=name)


# What peft's config says of training alone, and sizes that say nothing of virtual tokens.
OTHERS = {"total_step", "num_attention_heads", "num_layers", "peft_version"}


@pytest.mark.parametrize("case", [case for case in STORED if case != "mixtral_experts"])
def test_config_is_peft_s(case):
    _, layers, _, read = base(case.partition("_")[0])
    found = opened(case)
    adapter = from_peft(found, layers)
    config, _ = to_peft(adapter, layers, found.config.base, read, found.config.task)
    theirs = json.loads((cases.GOLDEN / case / "adapter_config.json").read_text())
    ours = config.to_json()
    skipped = OTHERS if found.config.kind != "PREFIX_TUNING" else {"peft_version"}
    skipped |= {"r"} if found.config.kind == "ADALORA" else set()  # init_r counts there
    for field in ours.keys() - skipped:
        wanted = theirs[field]
        wanted = sorted(wanted) if isinstance(wanted, list) else wanted
        assert ours[field] == wanted, field


@pytest.mark.parametrize("case", ["llama_lora", "falcon_rslora", "gpt2_adalora", "llama_ptuning"])
def test_a_written_directory_passes_its_gate(case, tmp_path):
    family = case.partition("_")[0]
    preset, layers, _, read = base(family)
    found = opened(case)
    whole = BaseModel("org/base", preset, read)
    ours = adapted_reference(found, whole)[1]
    if found.config.kind not in PROMPTS:
        ours = forward(family)(AdaptedTensors(found, read).read)
    out = tmp_path / "adapter"
    report = write_adapter(out, from_peft(found, layers), whole, ours)
    assert report.passed and report.prompts["long"].relative < 1e-5
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "parity.json", "README.md",
        "t5x_llm_base.json",
    }  # fmt: skip
    again = open_adapter(out)
    assert again.config.base == "org/base"
    assert again.tensors.keys() == found.tensors.keys()


def test_a_file_that_computes_something_else_is_not_left(tmp_path):
    preset, layers, _, read = base("llama")
    ours = forward("llama")(AdaptedTensors(opened("llama_rslora"), read).read)
    with pytest.raises(ParityError, match="Nothing was written"):
        write_adapter(
            tmp_path / "out", from_peft(opened("llama_lora"), layers),
            BaseModel(None, preset, read), ours,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
