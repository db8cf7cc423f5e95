"""Growth: every old id keeps its meaning, and a grown token is a run of whole old ones."""

import io
import json
import pathlib

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from t5x_llm.cli import main as command
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.text import TokenizerTraining, load_tokenizer
from t5x_llm.text.bytes import byte_tokenizer
from t5x_llm.text.compression import Body, advised, compare, count, doublings
from t5x_llm.text.grow import Growing, learn
from t5x_llm.text.sentencepiece import SentencePieceTokenizer
from t5x_llm.text.training import fit

DATA = pathlib.Path(__file__).parents[2] / "data" / "quickstart"
KINDS = ("bpe", "unigram", "llama", "byte_level")
MOST = 300
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TIGHT = st.text(st.sampled_from("ab -\n中国文件的，。1the "), max_size=60)


@pytest.fixture(scope="module")
def languages():
    """English and Chinese documents of the shipped text."""

    def read(name, count):
        lines = (DATA / f"{name}.jsonl").read_text("utf-8").split("\n")[:count]
        return [json.loads(line)["text"] for line in lines]

    return read("en_sotu", 30), read("zh_manpages", 60) + read("zh_poetry", 60)


def english(kind, texts):
    """A tokenizer of English, of a kind."""
    texts = [text[:2000] for text in texts]
    if kind == "byte_level":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
        )
        made.train_from_iterator(texts, trainer)
        return made.to_str().encode()
    if kind != "llama":
        return fit(TokenizerTraining(600, kind), texts)
    written = io.BytesIO()  # a space before every text, as Meta's
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, model_type="bpe", vocab_size=600,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        character_coverage=0.9995,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture(scope="module", params=KINDS)
def grown(request, languages, tmp_path_factory):
    """(old tokenizer, grown one, its directory)."""
    file = tmp_path_factory.mktemp(request.param) / "old"
    file.write_bytes(english(request.param, languages[0]))
    old = load_tokenizer(file)
    new = learn(old, languages[1], Growing(MOST), progress=False).grown(MOST)
    new.save(file.parent / "new")
    return old, new, file.parent / "new"


def spelled(old, new, ids):
    """Grown ids written in old ones."""
    return [j for i in ids for j in ([i] if i < old.vocab_size else old.spell(new.piece(i)))]


@pytest.fixture(scope="module")
def others(grown):
    """What encodes the files that were written: SentencePiece, or transformers."""
    transformers = pytest.importorskip("transformers")
    (grown[2] / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(grown[2])
    found = {
        "transformers": lambda text: theirs.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
    }
    if (grown[2] / "tokenizer.model").exists():
        model = sentencepiece.SentencePieceProcessor(model_file=str(grown[2] / "tokenizer.model"))
        found["sentencepiece"] = lambda text: model.encode(text) if "▁" not in text else None
    return found


@settings(max_examples=60, deadline=None)
@given(text=ANY | TIGHT)
def test_any_text(grown, others, text):
    old, new, _ = grown
    ids = new.encode(text)
    assert new.decode(ids) == text == old.decode(old.encode(text))
    if old.spell("ab"):  # a unigram model weighs whole paths
        assert _unigram(old) or spelled(old, new, ids) == old.encode(text)
    pieces = [new.piece(i) for i in range(old.vocab_size, new.vocab_size)]
    written = "".join(old.piece(i) for i in old.encode(text))
    if not any(piece in written or piece in text for piece in pieces):
        assert ids == old.encode(text)
    for encode in others.values():
        assert encode(text) in (ids, None)


def _unigram(tokenizer):
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return False
    return tokenizer.proto.trainer_spec.model_type == tokenizer.proto.trainer_spec.UNIGRAM


def test_shipped_text(grown, others, languages):
    """English keeps its ids, Chinese takes fewer, and the files say the same elsewhere."""
    old, new, directory = grown
    before, after = ([t.encode_batch(texts) for texts in languages] for t in (old, new))
    assert after[0] == before[0]
    assert sum(map(len, after[1])) < 0.7 * sum(map(len, before[1]))
    assert load_tokenizer(directory).encode_batch(languages[1]) == after[1]
    for encode in others.values():
        assert [encode(text) for text in languages[1][:20]] == after[1][:20]
    if not _unigram(old):
        assert [spelled(old, new, ids) for ids in after[1]] == before[1]
    assert [old.piece(i) for i in range(old.vocab_size)] == [
        new.piece(i) for i in range(old.vocab_size)
    ]
    assert len({new.piece(i) for i in range(new.vocab_size)}) == new.vocab_size
    assert (old.bos_id, old.eos_id) == (new.bos_id, new.eos_id)


def test_growth_is_nested_and_the_same_again(languages):
    for kind in ("llama", "byte_level"):
        old = load_tokenizer_of(english(kind, languages[0]))
        found = learn(old, languages[1], Growing(200), progress=False)
        small, large = found.grown(50), found.grown(200)
        for i in range(small.vocab_size):
            assert small.piece(i) == large.piece(i)
        sizes = [sum(map(len, t.encode_batch(languages[1]))) for t in (old, small, large)]
        assert sizes == sorted(sizes, reverse=True)
        again = learn(old, reversed(languages[1]), Growing(200), progress=False)
        assert again.grown(200).fingerprint == large.fingerprint


def load_tokenizer_of(data):
    from t5x_llm.text.hf_json import HFTokenizer

    return HFTokenizer(data) if data[:1] == b"{" else SentencePieceTokenizer(data)


def test_new_merges_first(languages, tmp_path):
    """As Colossal-LLaMA-2: the ids of transformers are ours in this order, too."""
    transformers = pytest.importorskip("transformers")
    old = load_tokenizer_of(english("llama", languages[0]))
    new = learn(old, languages[1], Growing(MOST, "first"), progress=False).grown(MOST)
    new.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in languages[1][:20] + languages[0][:3]:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == new.encode(text)
    assert new.encode_batch(languages[0]) == old.encode_batch(languages[0])
    with pytest.raises(ConfigError, match="'after'"):
        learn(byte_tokenizer(), languages[1], Growing(9, "first"), progress=False)


def test_ascii_if_asked_for(languages):
    old = load_tokenizer_of(english("llama", languages[0]))
    texts = ["kubernetes — 集群 kubernetes — 集群，“集群”"] * 20
    found = {
        ascii: learn(old, texts, Growing(40, ascii=ascii), progress=False).pieces
        for ascii in (False, True)
    }
    assert not any(c.isascii() and c.isalnum() for piece in found[False] for c in piece)
    assert any("kubernetes" in piece for piece in found[True])
    assert {"集", "，"} <= set(found[False]) and not {"—", "“", "▁—"} & set(found[False])


def test_what_cannot_grow(languages):
    old = load_tokenizer_of(english("llama", languages[0]))
    with pytest.raises(DataError, match="nothing but ASCII"):
        learn(old, ["only this and that"] * 5, Growing(9), progress=False)
    with pytest.raises(ConfigError, match="at most"):
        learn(old, languages[1], Growing(9), progress=False).grown(10)
    for change in ({"most": 0}, {"order": "last"}, {"character_coverage": 2}):
        with pytest.raises(ConfigError):
            Growing(**change)
    content = json.loads(english("byte_level", languages[0]))
    content["model"]["byte_fallback"] = True
    with pytest.raises(ConfigError, match="byte-level"):
        learn(load_tokenizer_of(json.dumps(content).encode()), languages[1], Growing(9))


def test_the_advised_size_pays_for_its_rows(languages):
    """A wide, shallow model pays much for a row and is advised fewer than a deep one."""
    old = load_tokenizer_of(english("llama", languages[0]))
    growth = learn(old, languages[1][::2], Growing(800), progress=False)
    texts = languages[1][1::2]
    sizes = {
        body: compare(growth, doublings(800, 100), texts, languages[0][:5], body, progress=False)
        for body in (Body(10**9, 64, True), Body(10**5, 1024, False))
    }
    deep, shallow = sizes.values()
    assert [size.added for size in deep] == [0, 100, 200, 400, 800]
    assert advised(shallow).added < advised(deep).added
    assert deep[2].parameters == 200 * 64 and shallow[2].parameters == 200 * 1024 * 2
    tokens = [sum(map(len, growth.grown(n).encode_batch(texts))) for n in (0, 200)]
    assert deep[2].new.tokens == tokens[1] and deep[2].same == 1.0
    rows = old.vocab_size
    cost = tokens[1] / tokens[0] * (10**5 + 1024 * (rows + 200)) / (10**5 + 1024 * rows)
    assert shallow[2].cost == pytest.approx(cost)
    figures = count(["中文", "ab"], [[1, 2], [3]]).figures()
    assert figures["bytes_per_token"] == 8 / 3 and figures["tokens_per_document"] == 1.5


def test_the_command(languages, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.model").write_bytes(english("llama", languages[0]))
    for name, texts in zip(("en", "zh"), languages, strict=True):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    files = ["--new", "zh.jsonl", "--old", "en.jsonl", "--most", "200", "--width", "16"]
    command.main(["grow", "old.model", "grown", *files, "--parameters", "1000000", "--add", "150"])
    assert "600 -> 750 tokens (as asked)" in capsys.readouterr().out
    report = json.loads((tmp_path / "grown" / "growth.json").read_text())
    assert report["added"] == 150 and [s["added"] for s in report["sizes"]] == [0, 150, 200]
    assert report["sizes"][1]["parameters"] == 150 * 32 and report["sizes"][1]["same"] == 1.0
    assert load_tokenizer("grown").vocab_size == 750
    assert (tmp_path / "grown" / "growth.png").read_bytes()[:4] == b"\x89PNG"
    assert "| pieces added |" in (tmp_path / "grown" / "growth.md").read_text()
    with pytest.raises(SystemExit):
        command.main(["grow", "old.model", "grown", *files, "--parameters", "9", "--add", "99999"])
    assert "at most" in capsys.readouterr().err
