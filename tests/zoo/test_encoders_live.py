"""Encoders and encoder-decoders against transformers itself, both ways; skipped without torch."""

from __future__ import annotations

import dataclasses
import json

import encoders
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from make_golden import hf_gradients  # noqa: E402
from make_golden_encoders import auto, loss, make_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from t5x_llm.core.errors import CheckpointError  # noqa: E402
from t5x_llm.hf.export import export_hf  # noqa: E402
from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.hf.safetensors_io import SafetensorsReader  # noqa: E402
from t5x_llm.models.weight_map import to_hf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=encoders.CASES)
def name(request):
    return request.param


def test_theirs_comes_in_and_goes_out_unchanged(name, tmp_path):
    make_model(name, tmp_path / "theirs")
    family, params, _, report, _ = import_model(tmp_path / "theirs")
    assert report.passed and report.reference.startswith("transformers")
    assert report.prompts["long"].tokens == 512
    assert report.prompts["long"].max_abs < 1e-4
    report = export_hf(params, family, None, tmp_path / "ours")
    assert report.passed and report.reference.startswith("transformers")
    assert report.prompts["long"].max_abs < 1e-4
    a, b = SafetensorsReader(tmp_path / "theirs"), SafetensorsReader(tmp_path / "ours")
    assert sorted(a.names()) == sorted(b.names())
    for tensor in a.names():
        assert a.read(tensor).tobytes() == b.read(tensor).tobytes(), tensor
    # What transformers writes of it comes in again.
    again = auto(name).from_pretrained(tmp_path / "ours")
    again.save_pretrained(tmp_path / "again")
    second, _, _, report, _ = import_model(tmp_path / "again")
    assert report.passed and second.decoder() == family.decoder()


def test_gradients(name):
    family, _, params = encoders.model(name)
    theirs = make_model(name)
    value = loss(theirs, name)
    value.backward()
    with jax.default_matmul_precision("highest"):
        found, gradients = jax.jit(jax.value_and_grad(encoders.mean_loss(name)))(params)
    np.testing.assert_allclose(found, value.item(), rtol=1e-5)
    ours = {hf: make() for hf, make in to_hf(family.weight_map(), gradients)}
    expecteds, without = hf_gradients(theirs)
    for tensor, expected in expecteds.items():
        if tensor in without:
            continue
        worst, scale = np.abs(ours[tensor] - expected).max(), np.abs(expected).max()
        assert worst < 1e-3 * scale + 1e-6, (tensor, worst, scale)


def test_old_files_come_in(tmp_path):
    """BERT as first released: old names, a pooler, another head, copies of what is tied."""
    make_model("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in tensors.items()
    }
    assert len(set(old) - set(tensors)) > 4
    table = old["bert.embeddings.word_embeddings.weight"]
    old["bert.embeddings.position_ids"] = torch.arange(512)[None]
    old |= {f"{k}.weight": torch.zeros(2, 2) for k in ("bert.pooler.dense", "cls.seq_relationship")}
    old["cls.predictions.decoder.weight"] = table.clone()
    save_file(old, file, metadata={"format": "pt"})
    family, params, _, report, _ = import_model(tmp_path)
    assert report.passed and family.decoder() == encoders.model("bert")[0].decoder()
    np.testing.assert_array_equal(params["embed"]["table"], table)
    old["cls.predictions.decoder.weight"] += 1
    save_file(old, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"cls.predictions.decoder.weight differs"):
        import_model(tmp_path)


def test_t5_is_tied_where_there_is_no_head(tmp_path):
    """transformers 5 writes T5 1.1 as tied with unscaled logits; the head's presence decides."""
    make_model("t5_1_1", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is True and config["scale_decoder_outputs"] is False
    assert not import_model(tmp_path).family.tied
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    family, params, _, report, _ = import_model(tmp_path)
    assert report.passed and family.tied and not family.scaled
    export_hf(params, family, None, tmp_path / "out")
    assert import_model(tmp_path / "out").family == dataclasses.replace(family)
