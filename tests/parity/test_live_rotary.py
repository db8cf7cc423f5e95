"""Rotations by the length of the sequence, against transformers' models: `make parity`.

Within the pretrained context and beyond it, in packed rows, and with a cache across the boundary.
"""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from make_rotary import CASES, SIZES  # noqa: E402

from t5x_llm.core.dtypes import Policy  # noqa: E402
from t5x_llm.hf import parity  # noqa: E402
from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.infer.decode import generate_ids  # noqa: E402
from t5x_llm.infer.sampling import Sampling  # noqa: E402
from t5x_llm.models.model import Model  # noqa: E402

ORIGINAL = 64
BY_LENGTH = ["longrope", "longrope_partial", "longrope_factor", "dynamic"]


def tokens(length):
    return np.random.default_rng(length).integers(1, 64, length).astype(np.int32)


@pytest.fixture(scope="module", params=BY_LENGTH)
def both(request, tmp_path_factory):
    """(name, transformers' model anew, our import of it)."""
    fields = json.loads(json.dumps(SIZES | {"num_hidden_layers": 2} | CASES[request.param]))
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)

    def theirs():  # its rotary embedding remembers the longest sequence it has seen
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager"
        ).eval()

    return request.param, theirs, import_model(directory)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()


@pytest.mark.parametrize("length", [20, 64, 65, 200])
def test_logits_within_and_beyond(both, length):
    _, theirs, imported = both
    assert imported.report.passed and imported.report.prompts["long"].tokens > ORIGINAL
    ours = parity.our_logits(imported.family, imported.params)(tokens(length))
    np.testing.assert_allclose(ours, logits_of(theirs(), tokens(length)), atol=2e-4)


def test_packed_rows(both):
    """A short and a long sequence in one row: each is rotated by its own length."""
    _, theirs, imported = both
    model = Model(imported.family.decoder(), Policy(compute="float32"))
    parts = [tokens(50), tokens(150), tokens(64)]
    lengths = [len(part) for part in parts]
    hidden, _ = model.apply(
        imported.params,
        jnp.asarray(np.concatenate(parts)[None]),
        positions=jnp.asarray(np.concatenate([np.arange(n) for n in lengths])[None], jnp.int32),
        segment_ids=jnp.asarray(np.repeat([1, 2, 3], lengths)[None], jnp.int32),
    )
    ours = np.split(np.asarray(model.logits(imported.params, hidden)[0]), np.cumsum(lengths)[:-1])
    for part, found in zip(parts, ours, strict=True):
        np.testing.assert_allclose(found, logits_of(theirs(), part), atol=2e-4)


def test_greedy_text_with_a_cache(both):
    """Of rows that stay within, cross the boundary and begin beyond it, in one batch."""
    name, theirs, imported = both
    model = Model(imported.family.decoder(), Policy(compute="float32"))
    prompts = [tokens(n) for n in (8, 40, 63, 64, 65, 90)]
    found = generate_ids(
        model,
        imported.params,
        [p.tolist() for p in prompts],
        Sampling(max_tokens=40, temperature=0),
    )
    for prompt, (sample,) in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        # Only Phi-3's own class reads a row again where its rotation becomes another.
        again = name.startswith("longrope") and "factor" in name
        out = theirs().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=not again,
        )
        assert list(sample.tokens) == out[0, len(prompt) :].tolist(), len(prompt)


def test_a_window_that_config_json_does_not_say(tmp_path):
    """transformers takes 4,096 for Mistral; the long prompt goes beyond them."""
    config = transformers.MistralConfig(**SIZES, max_position_embeddings=8192)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = {k: v for k, v in json.loads(path.read_text()).items() if k != "sliding_window"}
    path.write_text(json.dumps(fields | {"a_field_of_tomorrow": 7}))
    imported = import_model(tmp_path)
    assert imported.family.window == 4096
    report = imported.report
    assert report.passed and report.prompts["long"].tokens > 4096
    assert "a_field_of_tomorrow" in " ".join(report.notes)
