"""Adapters that cannot be used: each is told what it is and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import peft_cases as cases

from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.hf.import_ import family_of
from t5x_llm.hf.peft.config import parse_peft_config
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.read import from_peft, open_adapter
from t5x_llm.hf.peft.serving import check_adapter_for, for_servers
from t5x_llm.hf.peft.shown import described
from t5x_llm.hf.source import open_source
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import hf_shapes

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def adapter(tmp_path):
    """A copy of an adapter of a LLaMA, to damage."""
    return Path(shutil.copytree(cases.GOLDEN / "llama_lora", tmp_path / "adapter"))


def fit(directory, family="llama"):
    preset = family_of(cases.config_of(family))
    shapes = hf_shapes(preset.weight_map(), Model(preset.decoder()).abstract_params())
    layers = linear_layers(preset)
    return from_peft(check_fits(open_adapter(directory), layers, shapes), layers)


def change_config(directory, **fields):
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(directory, change):
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def test_an_adapter_for_another_base(adapter):
    with pytest.raises(CheckpointError, match=r"another base.*transformer\.h"):
        fit(adapter, "gpt2")
    with pytest.raises(CheckpointError, match="another base: .*down_proj.lora_A has shape"):
        change_tensors(adapter, lambda t: t.update({k: v[:, :8].copy() for k, v in t.items()}))
        fit(adapter)


def test_values_that_are_not_finite(adapter):
    def spoil(tensors):
        tensors[sorted(tensors)[0]][0, 0] = np.nan

    change_tensors(adapter, spoil)
    with pytest.raises(CheckpointError, match="down_proj.lora_A.weight .*not finite.*earlier"):
        open_adapter(adapter)


def test_a_pickle_is_not_read(adapter):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle, which can run any code"):
        open_adapter(adapter)


def test_a_model_where_an_adapter_is_wanted_and_the_reverse(adapter, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="whole model, not an adapter"):
        open_adapter(model)
    with pytest.raises(CheckpointError, match="adapter merge BASE .*adapter OUT"):
        open_source(adapter)
    run = tmp_path / "run"
    run.mkdir()
    (run / "operative_config.gin").write_text("")
    with pytest.raises(CheckpointError, match="It is a run: `t5x-llm export .*run`"):
        open_adapter(run)
    with pytest.raises(CheckpointError, match="no such directory"):
        open_adapter(tmp_path / "none")


def test_ranks_that_cannot_be(adapter):
    change_config(adapter, r=4)
    with pytest.raises(CheckpointError, match="the file has rank 3, adapter_config.json says 4"):
        fit(adapter)

    def grow(tensors):
        for key, value in tensors.items():
            axis = 0 if "lora_A" in key else 1
            tensors[key] = np.repeat(value, 20, axis)

    change_config(adapter, r=60)
    change_tensors(adapter, grow)
    with pytest.raises(ConfigError, match="at most 24: .*maps 24 values to 16"):
        fit(adapter)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "OFT"}, "LORA, ADALORA, IA3"),
        ({"r": 10**9}, "an integer from 1 to 65536"),
        ({"r": True}, "an integer"),
        ({"lora_alpha": "8"}, "a finite number"),
        ({"bias": "all"}, "'none'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "not known here"),
        ({"alora_invocation_tokens": [5]}, "not known here"),
        ({"rank_pattern": {"(q|k)*": 4}}, "without nested repetition"),
        ({"target_modules": [3]}, "a list of names"),
    ],
)
def test_configs_that_would_compute_something_else(adapter, fields, said):
    raw = json.loads((adapter / CONFIG).read_text()) | fields
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        found = parse_peft_config(raw)
        found.rank_of("model.layers.0.self_attn.q_proj")


def test_whole_modules_are_refused_by_name(adapter):
    def add(tensors):
        tensors["base_model.model.lm_head.weight"] = np.zeros((24, 16), np.float32)

    change_tensors(adapter, add)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is no tensor of LORA"):
        fit(adapter)
    change_config(adapter, modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match=r"modules_to_save = \['lm_head.weight'\].*merge"):
        fit(adapter)


def test_rules_of_servers_are_known_before_training():
    check_adapter_for(("peft",), "IA3", 0, False)
    check_adapter_for(("peft", "vllm", "gguf"), "LORA", 512, False)
    with pytest.raises(ConfigError, match="at most 512 for vLLM"):
        check_adapter_for(("vllm",), "LORA", 513, False)
    with pytest.raises(ConfigError, match="vllm loads no DoRA"):
        check_adapter_for(("vllm",), "LORA", 8, True)
    with pytest.raises(ConfigError, match="gguf loads LoRA, not IA3"):
        check_adapter_for(("gguf",), "IA3", 8, False)
    with pytest.raises(ConfigError, match="keep the run"):
        check_adapter_for(("peft",), "BOTTLENECK", 8, False)
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        check_adapter_for(("vlm",), "LORA", 8, False)


def test_servers_that_read_no_patterns_get_one_rank_and_scale():
    found = open_adapter(cases.GOLDEN / "llama_patterns")
    assert found.config.ranks and found.config.alphas
    config, tensors = for_servers(found.config, found.tensors, ("vllm",))
    assert not config.ranks and not config.alphas and config.rank == 4
    modules = {key.rpartition(".lora_")[0] for key in tensors}
    for name in modules:
        plain = name.removeprefix("base_model.model.")

        def delta(config, tensors, name=name, plain=plain):
            a, b = (tensors[f"{name}.lora_{x}.weight"].astype(np.float64) for x in "AB")
            return config.scale_of(plain) * (b @ a)

        assert tensors[f"{name}.lora_A.weight"].shape[0] == 4
        np.testing.assert_allclose(
            delta(config, tensors), delta(found.config, found.tensors), atol=1e-7
        )


def test_an_adapter_is_described(adapter):
    text = described(adapter)
    count = sum(v.size for v in load_file(adapter / WEIGHTS).values())
    assert f"LORA of an unnamed base, {count:,} values." in text
    assert "q_proj: 2 modules" in text and "rank 3, alpha 6" in text
