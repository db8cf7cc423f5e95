"""Adapters of models here: written for PEFT with the gate's proof, and read as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import peft_cases as cases

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf import parity
from t5x_llm.hf.import_ import family_of
from t5x_llm.hf.peft.gate import BaseModel
from t5x_llm.hf.peft.ours import to_plain
from t5x_llm.hf.peft.store import write_adapter
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, from_hf, hf_shapes, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.run.adapters import given_adapter

CASES = {
    "llama": LoRA(rank=3, ranks={"mlp": 2}, targets=("attention", "mlp.up", "head"), dropout=0.1),
    "qwen2": LoRA(rank=2, rank_stabilised=True, alpha=5),
    "gpt2": LoRA(rank=2, dora=True),
    "mixtral": LoRA(rank=2, targets=("experts", "query"), alpha=3),
    "falcon": LoRA(rank=2, init="pissa"),
    "mamba": LoRA(rank=2, targets=("inner", "gate", "select")),
    "t5": LoRA(rank=2, init="zero_a", targets=("feed_forward", "cross_attention")),
}


def made(family, config):
    """(preset, base tensors by name, roots with every adapter's value drawn)."""
    preset = family_of(cases.config_of(family))
    abstract = Model(preset.decoder()).abstract_params()
    shapes = hf_shapes(preset.weight_map(), abstract)

    def read(name):
        return cases.draw(name, shapes[name])

    base = from_hf(preset.weight_map(), abstract, read)
    model = Model(preset.decoder(), adapter=config)
    parts = jax.device_get(model.adapted(base, jax.random.key(0)))
    drawn = {
        path: value + cases.draw(path, value.shape)
        for path, value in flatten(parts[roots.ADAPTER]).items()
    }
    return preset, read, parts | {roots.BASE: base, roots.ADAPTER: unflatten(drawn)}


@pytest.mark.parametrize(
    "family",
    [f if f in ("llama", "gpt2") else pytest.param(f, marks=pytest.mark.extended) for f in CASES],
)
def test_an_adapter_is_written_with_proof_and_read_back(family, tmp_path):
    config = CASES[family]
    preset, read, parts = made(family, config)
    logits = parity.our_logits(preset, roots.merge(parts), config)
    wanted = logits(cases.prompt())
    trained = roots.merge({k: v for k, v in parts.items() if k != roots.BASE})
    out = tmp_path / "adapter"
    report = write_adapter(out, to_plain(config, trained), BaseModel(None, preset, read), logits)
    assert report.passed and max(p.relative for p in report.prompts.values()) < 1e-5
    plain = parity.our_logits(preset, parts[roots.BASE])(cases.prompt())
    assert np.abs(plain - wanted).max() > 0.01
    # Given to the base it computes the same, by a config that names the same maps.
    given = given_adapter(out, preset)
    whole = roots.merge({roots.BASE: parts[roots.BASE], roots.ADAPTER: given.params})
    found = parity.our_logits(preset, whole, given.config)(cases.prompt())
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
    if config.init != "pissa":
        mine, theirs = flatten(parts[roots.ADAPTER]), flatten(given.params)
        assert mine.keys() == theirs.keys()
        for path, value in mine.items():
            np.testing.assert_allclose(theirs[path], value, rtol=1e-6, err_msg=path)


def test_pissa_becomes_two_adapters_in_one(tmp_path):
    config = CASES["falcon"]
    preset, read, parts = made("falcon", config)
    trained = roots.merge({k: v for k, v in parts.items() if k != roots.BASE})
    write_adapter(tmp_path / "out", to_plain(config, trained), BaseModel(None, preset, read), None)
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["r"] == 4 and said["rank_pattern"] == {"query_key_value": 12}
    assert said["lora_alpha"] == 32  # the scale stays alpha / rank = 16 / 2


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("mamba", "step", "transformers would pass by.*--merge"),
        ("mixtral", "experts.up", "w3 and .*w1 both"),
    ],
)
def test_what_peft_could_not_load_is_refused(family, target, said, tmp_path):
    config = LoRA(rank=2, targets=(target,))
    preset, read, parts = made(family, config)
    trained = roots.merge({k: v for k, v in parts.items() if k != roots.BASE})
    with pytest.raises(ConfigError, match=said):
        write_adapter(
            tmp_path / "out", to_plain(config, trained), BaseModel(None, preset, read), None
        )
