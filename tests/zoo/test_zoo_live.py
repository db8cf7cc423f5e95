"""Every family against transformers itself, both ways through files; skipped without torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import zoo  # noqa: E402
from make_golden import hf_gradients, known, make_model  # noqa: E402

from t5x_llm.hf.export import export_hf  # noqa: E402
from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.hf.safetensors_io import SafetensorsReader  # noqa: E402

CASES = [name for name, config in zoo.CASES.items() if known(config)]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


def test_theirs_comes_in_and_goes_out_unchanged(name, tmp_path):
    theirs = make_model(zoo.CASES[name])
    theirs.save_pretrained(tmp_path / "theirs")
    family, params, _, report, _ = import_model(tmp_path / "theirs")
    assert report.passed and report.reference.startswith("transformers")
    assert report.prompts["long"].tokens == 512
    assert report.prompts["long"].max_abs < zoo.tolerance(name)
    report = export_hf(params, family, None, tmp_path / "ours")
    assert report.passed and report.prompts["long"].max_abs < zoo.tolerance(name)
    a, b = SafetensorsReader(tmp_path / "theirs"), SafetensorsReader(tmp_path / "ours")
    assert sorted(a.names()) == sorted(b.names())
    for tensor in a.names():
        assert a.read(tensor).tobytes() == b.read(tensor).tobytes(), tensor


def test_gradients(name):
    _, model, params = zoo.model(name)
    theirs = make_model(zoo.CASES[name])
    ids = torch.from_numpy(zoo.tokens().astype(np.int64))[None]
    logits = theirs(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    loss.backward()
    with jax.default_matmul_precision("highest"):
        value, gradients = jax.jit(jax.value_and_grad(zoo.mean_loss(name)))(params, zoo.tokens())
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    ours = zoo.our_gradients(name, gradients)
    expecteds, without = hf_gradients(theirs)
    for tensor, expected in expecteds.items():
        if tensor in without:
            continue
        worst, scale = np.abs(ours[tensor] - expected).max(), np.abs(expected).max()
        assert worst < 1e-3 * scale + 1e-6, (tensor, worst, scale)
