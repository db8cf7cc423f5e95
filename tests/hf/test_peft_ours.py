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
from t5x_llm.hf.peft.ours import abstract_adapter, filled, kind_of, to_plain
from t5x_llm.hf.peft.store import write_adapter
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import flatten, from_hf, hf_shapes, unflatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.adapters.adaptive import AdaLoRA
from t5x_llm.nn.adapters.lora import LoRA
from t5x_llm.nn.adapters.prompting import Prefix, Prompt, PTuning
from t5x_llm.nn.adapters.residual import Bottleneck
from t5x_llm.nn.adapters.scaling import IA3
from t5x_llm.run.adapters import given_adapter

CASES = {
    "llama adalora": AdaLoRA(rank=3, target_rank=2, alpha=5, targets=("attention", "down")),
    "gpt2 adalora": AdaLoRA(rank=2, target_rank=1),
    "llama ia3": IA3(),
    "falcon ia3": IA3(("value", "attention.out"), ("mlp.down",)),
    "t5 ia3": IA3(("key", "cross_attention.value"), ("down",)),
    "llama prefix": Prefix(3),
    "falcon prefix": Prefix(2),
    "llama prompt": Prompt(3),
    "qwen2 ptuning": PTuning("input", 3, hidden=8),
    "gpt2 ptuning": PTuning("deep", 3, hidden=8),
    "llama": LoRA(rank=3, ranks={"mlp": 2}, targets=("attention", "mlp.up", "head"), dropout=0.1),
    "qwen2": LoRA(rank=2, rank_stabilised=True, alpha=5),
    "gpt2": LoRA(rank=2, dora=True),
    "mixtral": LoRA(rank=2, targets=("experts", "query"), alpha=3),
    "falcon": LoRA(rank=2, init="pissa"),
    "mamba": LoRA(rank=2, targets=("inner", "gate", "select")),
    "t5": LoRA(rank=2, init="zero_a", targets=("feed_forward", "cross_attention")),
}


def is_e(path):
    return path.endswith(".adapter.e")


def _alive(shape):
    """Singular values that AdaLoRA has left: not all, and others in each layer."""
    return (np.arange(np.prod(shape)).reshape(shape) % 3 != 1).astype(np.float32)


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
        path: value + cases.draw(path, value.shape) * (_alive(value.shape) if is_e(path) else 1)
        for path, value in flatten(parts[roots.ADAPTER]).items()
    }
    return preset, read, parts | {roots.BASE: base, roots.ADAPTER: unflatten(drawn)}


QUICK = ("llama", "llama prefix", "gpt2 adalora")
EXTENDED = [pytest.param(case, marks=pytest.mark.extended) for case in CASES if case not in QUICK]


@pytest.mark.parametrize("case", [*QUICK, *EXTENDED])
def test_an_adapter_is_written_with_proof_and_read_back(case, tmp_path):
    family, config = case.partition(" ")[0], CASES[case]
    preset, read, parts = made(family, config)
    logits = parity.our_logits(preset, roots.merge(parts), config)
    wanted = logits(cases.prompt())
    trained = roots.merge({k: v for k, v in parts.items() if k != roots.BASE})
    out = tmp_path / "adapter"
    report = write_adapter(out, to_plain(config, trained), BaseModel(None, preset, read), logits)
    if kind_of(config) != "PREFIX_TUNING":  # a prefix is compared with peft's own logits elsewhere
        assert report.passed and max(p.relative for p in report.prompts.values()) < 1e-5
    if family != "t5":  # one layer at a time, as a run's export does it
        streamed = parity.streamed_logits(preset, read, config, trained)(cases.prompt())
        np.testing.assert_allclose(streamed, wanted, atol=2e-6, rtol=0)
    plain = parity.our_logits(preset, parts[roots.BASE])(cases.prompt())
    assert np.abs(plain - wanted).max() > 0.01
    # Given to the base it computes the same, by a config that names the same maps.
    given = given_adapter(out, preset)
    whole = roots.merge({roots.BASE: parts[roots.BASE], roots.ADAPTER: given.params})
    found = parity.our_logits(preset, whole, given.config)(cases.prompt())
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
    if type(config) is type(given.config) and getattr(config, "init", "") != "pissa":
        mine, theirs = flatten(parts[roots.ADAPTER]), flatten(given.params)
        # Of a fused matrix all maps get factors, 1 where there were none.
        assert mine.keys() <= theirs.keys()
        assert mine.keys() == theirs.keys() or case == "falcon ia3"
        for path, value in mine.items():
            np.testing.assert_allclose(theirs[path], value, rtol=1e-6, err_msg=path)


def test_a_bottleneck_has_no_form_in_peft():
    with pytest.raises(ConfigError, match="merging is impossible too: keep the run"):
        to_plain(Bottleneck(), {})


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


def test_a_run_begins_with_an_adapter_of_its_own_ranks_and_targets():
    config = LoRA(rank=3, targets=("query", "down"))
    preset, _, parts = made("llama", config)
    plain = to_plain(config, parts[roots.ADAPTER])
    same = filled(plain, config, abstract_adapter(config, preset, 0.0))
    for path, value in flatten(parts[roots.ADAPTER]).items():
        np.testing.assert_array_equal(same[path], value)
    more = LoRA(rank=3, targets=("query", "down", "up"))
    fresh = abstract_adapter(more, preset, 0.5)
    begun = filled(plain, more, fresh)
    assert np.all(begun["group_0.block_0.mlp.up.adapter.a"] == 0.5)
    for other, said in (
        (LoRA(rank=2, targets=("query", "down")), "LoRA.rank.*the adapter that is read has rank 3"),
        (LoRA(rank=3, targets=("query",)), "LoRA.targets.*mlp.down too"),
    ):
        with pytest.raises(ConfigError, match=said):
            filled(plain, other, abstract_adapter(other, preset, 0.0))
