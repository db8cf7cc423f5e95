"""Bases and adapters as one model: rounded once, tied heads right, drift stated and bounded."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import peft_cases as cases

from t5x_llm.cli import main as command
from t5x_llm.core.errors import CheckpointError, ConfigError, ParityError
from t5x_llm.hf import parity
from t5x_llm.hf.import_ import family_of, import_model
from t5x_llm.hf.peft.base_mark import base_mark, write_mark
from t5x_llm.hf.peft.merge import merge_adapter
from t5x_llm.hf.peft.shown import described
from t5x_llm.models.model import Model
from t5x_llm.models.weight_map import hf_shapes
from t5x_llm.run.load import load

WEIGHTS = "adapter_model.safetensors"


def write_base(directory, family, dtype=np.float32, **fields):
    """A base of ``peft_cases`` on disk."""
    config = cases.config_of(family) | fields
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    preset = family_of(config)
    shapes = hf_shapes(preset.weight_map(), Model(preset.decoder()).abstract_params())
    tensors = {n: cases.draw(n, shape).astype(dtype) for n, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


def logits(directory):
    model = import_model(directory, check=False)
    return parity.our_logits(model.family, model.params)(cases.prompt())


@pytest.mark.parametrize("case", ["llama_dora", "gpt2_adalora"])
def test_a_merged_model_computes_what_peft_does(case, tmp_path):
    base = write_base(tmp_path / "base", case.partition("_")[0])
    done = merge_adapter(base, cases.GOLDEN / case, tmp_path / "out")
    assert done.drift.kl_mean < 1e-9 and done.effect.kl_mean > 1e-3
    assert done.report.passed
    np.testing.assert_allclose(logits(tmp_path / "out"), cases.logits(case), atol=1e-5, rtol=0)


def test_sums_are_made_in_float32_and_rounded_once(tmp_path):
    """peft issue 1388: sums in bfloat16 lose what an adapter adds to a large weight."""
    base = write_base(tmp_path / "base", "llama", ml_dtypes.bfloat16)
    done = merge_adapter(base, cases.GOLDEN / "llama_lora", tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj"
    before = load_file(base / "model.safetensors")[f"{name}.weight"].astype(np.float32)
    tensors = load_file(cases.GOLDEN / "llama_lora" / WEIGHTS)
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    wanted = (before + np.float32(6 / 3) * (b @ a)).astype(ml_dtypes.bfloat16)
    out = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(out[f"{name}.weight"], wanted)
    assert 0 < done.drift.kl_mean < 1e-3
    said = json.loads((tmp_path / "out" / "parity.json").read_text())["notes"]
    assert any("rounded once: KL" in note for note in said)
    untouched = "model.layers.0.self_attn.k_proj.weight"
    np.testing.assert_array_equal(out[untouched], load_file(base / "model.safetensors")[untouched])


def test_too_much_drift_is_refused(tmp_path):
    base = write_base(tmp_path / "base", "llama", ml_dtypes.bfloat16)
    with pytest.raises(ParityError, match="KL .* nats a token.*allowed is 1e-12.*--dtype float32"):
        merge_adapter(base, cases.GOLDEN / "llama_lora", tmp_path / "out", max_kl=1e-12)
    assert not (tmp_path / "out").exists()


def head_adapter(directory, width=16, vocabulary=cases.VOCAB):
    """A LoRA of the head alone."""
    shutil.copytree(cases.GOLDEN / "llama_lora", directory)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["lm_head"]}))
    tensors = {
        "base_model.model.lm_head.lora_A.weight": cases.draw("a", (3, width)),
        "base_model.model.lm_head.lora_B.weight": cases.draw("b", (vocabulary, 3)),
    }
    save_file(tensors, directory / WEIGHTS)
    return directory, tensors


def test_an_adapter_of_a_tied_head_leaves_the_embedding_alone(tmp_path):
    """transformers issue 45127: merged into the shared tensor it changes the embedding too."""
    base = write_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    adapter, tensors = head_adapter(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="one tensor.*--untie"):
        merge_adapter(base, adapter, tmp_path / "out")
    merge_adapter(base, adapter, tmp_path / "out", untie=True)
    out = load_file(tmp_path / "out" / "model.safetensors")
    table = cases.draw("model.embed_tokens.weight", (cases.VOCAB, 16))
    np.testing.assert_array_equal(out["model.embed_tokens.weight"], table)
    a, b = tensors.values()
    np.testing.assert_allclose(out["lm_head.weight"], table + 2 * (b @ a), atol=1e-6)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    free = write_base(tmp_path / "free", "llama")
    save_file(
        load_file(free / "model.safetensors") | {"lm_head.weight": table},
        free / "model.safetensors",
    )
    merge_adapter(free, adapter, tmp_path / "wanted")
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(tmp_path / "wanted"), atol=1e-6)


def test_a_base_of_the_same_shapes_and_other_weights_is_told(tmp_path):
    base = write_base(tmp_path / "base", "llama")
    preset = family_of(cases.config_of("llama"))
    shapes = hf_shapes(preset.weight_map(), Model(preset.decoder()).abstract_params())
    adapter = Path(shutil.copytree(cases.GOLDEN / "llama_lora", tmp_path / "adapter"))
    write_mark(adapter, base_mark(lambda n: cases.draw(n, shapes[n]), shapes), "first/base")
    described(adapter, base)
    half = write_base(tmp_path / "half", "llama", ml_dtypes.bfloat16)
    described(adapter, half)  # the same model in other bits
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name] * 1.5}, base / "model.safetensors")
    for use in (
        lambda: described(adapter, base),
        lambda: merge_adapter(base, adapter, tmp_path / "out"),
        lambda: load(str(base), adapter=adapter),
    ):
        with pytest.raises(CheckpointError, match="another base: it was trained on 'first/base'"):
            use()
    (adapter / "t5x_llm_base.json").unlink()
    merge_adapter(base, adapter, tmp_path / "out")


def test_virtual_tokens_cannot_be_merged(tmp_path):
    base = write_base(tmp_path / "base", "llama")
    with pytest.raises(ConfigError, match="keep base and adapter"):
        merge_adapter(base, cases.GOLDEN / "llama_prompt", tmp_path / "out")


def test_the_command(tmp_path, capsys):
    base = write_base(tmp_path / "base", "llama")
    adapter = str(cases.GOLDEN / "llama_ia3")
    command.main(["adapter", "show", adapter, "--base", str(base)])
    assert "IA3" in (said := capsys.readouterr().out) and "It fits" in said
    command.main(["adapter", "merge", str(base), adapter, str(tmp_path / "out")])
    assert "tensors changed; rounding moves logits by" in capsys.readouterr().out
    np.testing.assert_allclose(
        logits(tmp_path / "out"), cases.logits("llama_ia3"), atol=1e-5, rtol=0
    )
    with pytest.raises(SystemExit):
        command.main(["adapter", "show", str(base)])
    assert "whole model, not an adapter" in capsys.readouterr().err
