"""Every layout of a tokenizer on the hub: read as transformers reads it, and saved whole."""

import json
import shutil

import pytest
import sentencepiece
import tokenizer_layouts as layouts
import tokenizers

from t5x_llm.core.errors import DataError
from t5x_llm.text import load_tokenizer

NAMES = ("bos", "eos", "pad", "unk")
SAMPLES = [
    "", "a", "hello  world\n", "床前明月光 ", "It's 12345 cafés\n\n\nend ", "naïve CAFÉ\r\nx",
    "The harbour master\t counted 2024", "😀👨‍👩‍👧 春天", "<|im_start|>user\n",
]  # fmt: skip
# What tokenizer_config.json says must be there still after one round and after two.
KEPT = ("chat_template", "model_max_length", "add_bos_token", "pad_token", "eos_token", "bos_token")


@pytest.fixture(scope="module", params=layouts.ALL, ids=lambda make: make.__name__)
def layout(request, tmp_path_factory):
    """(directory as on the hub, its tokenizer, directory saved from that)."""
    at = tmp_path_factory.mktemp(request.param.__name__)
    request.param(at / "hub")
    loaded = load_tokenizer(at / "hub")
    loaded.save(at / "saved")
    shutil.copy(at / "hub" / "config.json", at / "saved")  # as in an exported model
    return at / "hub", loaded, at / "saved"


def test_ids_are_those_of_transformers(layout):
    """Of the files as they were, and of those saved."""
    transformers = pytest.importorskip("transformers")
    hub, loaded, saved = layout
    for at in (hub, saved):
        theirs = transformers.AutoTokenizer.from_pretrained(at)
        assert len(theirs) == loaded.vocab_size
        for name in NAMES[:3]:
            assert getattr(theirs, f"{name}_token_id") == getattr(loaded, f"{name}_id"), name
        for text in SAMPLES:
            ids = loaded.encode(text)
            options = {"add_special_tokens": False, "split_special_tokens": True}
            assert theirs.encode(text, **options) == ids, text
        begun = theirs("a").input_ids[0] == theirs.bos_token_id is not None
        assert begun == loaded.add_bos


def test_all_of_it_is_saved(layout, tmp_path):
    hub, loaded, saved = layout
    again = load_tokenizer(saved)
    again.save(tmp_path)
    for name in (*NAMES, "vocab"):
        field = "vocab_size" if name == "vocab" else f"{name}_id"
        assert getattr(again, field) == getattr(loaded, field), field
    assert again.fingerprint == loaded.fingerprint and again.add_bos == loaded.add_bos
    assert again.special == loaded.special
    assert [again.encode(t) for t in SAMPLES] == [loaded.encode(t) for t in SAMPLES]
    before, after, twice = (
        json.loads((d / "tokenizer_config.json").read_text("utf-8")) for d in (hub, saved, tmp_path)
    )
    assert {k: after[k] for k in KEPT if k in before} == {k: before[k] for k in KEPT if k in before}
    assert before.keys() - {"add_prefix_space"} <= after.keys() and twice == after
    assert (hub / "chat_template.jinja").exists() == (tmp_path / "chat_template.jinja").exists()


def test_models_files_are_not_the_tokenizers(layout, tmp_path):
    layout[1].save(tmp_path)
    assert not {"config.json", "generation_config.json"} & {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("make", [layouts.llama, layouts.llama_chat])
def test_the_dummy_prefix_is_sentencepieces(tmp_path, make):
    """transformers puts none before a text that begins with a space; SentencePiece does."""
    make(tmp_path)
    model = str(tmp_path / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    for text in (" a", "  two", " 床前"):
        assert load_tokenizer(tmp_path).encode(text) == reference.encode(text)


def test_sentinels_and_fairseq_order(tmp_path):
    """T5's <extra_id_0> is the last id; XLM-R's pieces follow <s> <pad> </s> <unk>."""
    layouts.t5(tmp_path / "t5")
    t5 = load_tokenizer(tmp_path / "t5")
    assert t5.id_of("<extra_id_0>") == t5.vocab_size - 1
    assert t5.id_of("<extra_id_99>") == t5.vocab_size - 100
    # mT5 has none beyond its pieces, and says so; a model that has no rows for them neither.
    bare = t5.vocab_size - 100
    for change in ({"tokenizer_config__json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}},
                   {"config__json": {"model_type": "t5", "vocab_size": bare}}):  # fmt: skip
        layouts.t5(tmp_path / "other")
        layouts.write(tmp_path / "other", **change)
        assert load_tokenizer(tmp_path / "other").vocab_size == bare
    layouts.xlm_roberta(tmp_path / "xlmr")
    xlmr = load_tokenizer(tmp_path / "xlmr")
    assert [xlmr.piece(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert xlmr.id_of("<mask>") == xlmr.vocab_size - 1
    # Under the same name, a model of another type keeps the numbers of its file.
    layouts.write(tmp_path / "xlmr", config__json={"model_type": "llama"})
    plain = load_tokenizer(tmp_path / "xlmr")
    assert [plain.piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]


def test_a_model_beside_its_tokenizer_json(tmp_path):
    """Taken where both are one tokenizer; what lies beside is kept to the byte either way."""
    layouts.llama(tmp_path / "model")
    load_tokenizer(tmp_path / "model").save(tmp_path / "both")
    both = tmp_path / "both"
    config = json.loads((both / "tokenizer_config.json").read_text())
    (both / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "right"}))
    files = {p.name: p.read_bytes() for p in both.iterdir()}
    again = load_tokenizer(both)
    again.save(tmp_path / "again")
    assert type(again).__name__ == "SentencePieceTokenizer" and again.pad_id == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == files
    # A special token that the model does not know as one.
    content = json.loads(files["tokenizer.json"])
    token = dict(content["added_tokens"][1], id=450, content=again.piece(450))
    content["added_tokens"].append(token)
    (both / "tokenizer.json").write_text(json.dumps(content))
    marked = load_tokenizer(both)
    marked.save(tmp_path / "marked")
    assert type(marked).__name__ == "HFTokenizer" and 450 in marked.special
    assert (tmp_path / "marked" / "tokenizer.model").read_bytes() == files["tokenizer.model"]


def test_special_tokens_that_no_file_names(tmp_path):
    """The usual names; then the model's ids, which also decide between several usual names."""
    made = layouts.byte_level(special=["<|endoftext|>", "<|im_end|>", "<odd>"])

    def ids(config=None, **files):
        layouts.write(tmp_path, tokenizer__json=made.to_str(), tokenizer_config__json=config or {},
                      **files)  # fmt: skip
        found = load_tokenizer(tmp_path)
        found.save(tmp_path / "saved")
        again = load_tokenizer(tmp_path / "saved")  # which has no config.json
        assert (again.bos_id, again.eos_id) == (found.bos_id, found.eos_id)
        return found.bos_id, found.eos_id

    assert ids({"model_max_length": 1024}) == (0, 1)
    assert ids(config__json={"bos_token_id": 0, "eos_token_id": 0}) == (0, 0)
    assert ids(config__json={"eos_token_id": 99}) == (0, 1)  # 99 is text
    assert ids(generation_config__json={"eos_token_id": [2, 0]}) == (0, 0)
    assert ids({"eos_token": "<odd>"}) == (None, 2)
    assert ids({"bos_token": None, "eos_token": None}) == (None, None)
    assert ids({"bos_token": "<|not there|>", "eos_token": "<|nor this|>"}) == (0, 0)
    odd = layouts.byte_level(special=["<odd>", "<other>"])
    model = {"bos_token_id": 1, "eos_token_id": 0}
    layouts.write(tmp_path, tokenizer__json=odd.to_str(), tokenizer_config__json={},
                  generation_config__json={}, config__json=model)  # fmt: skip
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_id) == (1, 0)


def test_ids_that_change_on_loading_are_refused(tmp_path):
    """The library numbers added tokens by the vocabulary's size, whatever the file says."""
    layouts.llama3(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"]["中文"] = 415
    layouts.write(tmp_path, tokenizer__json=content)
    with pytest.raises(DataError, match=r"begin_of_text.*is token 412.*it is 413"):
        load_tokenizer(tmp_path)


def test_added_tokens_of_the_files_beside(tmp_path):
    made = layouts.byte_level(special=["<|endoftext|>"])
    n = made.get_vocab_size()
    layouts.write(tmp_path, tokenizer__json=made.to_str(), added_tokens__json={"<new>": n})
    found = load_tokenizer(tmp_path)
    assert found.id_of("<new>") == n and found.encode("a<new>")[-1] == n
    found.save(tmp_path / "saved")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).token_to_id(
        "<new>"
    ) == n  # fmt: skip
    for ids, message in (({"<new>": 5}, "which is '%'"), ({"<new>": n + 7}, f"is token {n + 7}"),
                         ({"<new>": -1}, "the id -1"), ({"<new>": "x"}, "the id 'x'")):  # fmt: skip
        layouts.write(tmp_path, added_tokens__json=ids)
        with pytest.raises(DataError, match=message):
            load_tokenizer(tmp_path)
    layouts.write(tmp_path, added_tokens__json={"<\ud800>": n})
    with pytest.raises(DataError, match="not a usable"):
        load_tokenizer(tmp_path)
    layouts.llama_chat(tmp_path / "model")
    layouts.write(tmp_path / "model", added_tokens__json={"<far>": 9**8})
    with pytest.raises(DataError, match="far from its"):
        load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (layouts.gpt2, {"vocab__json": "[1]"}, "vocab.json beside"),
        (layouts.gpt2, {"merges__txt": "#version: 0.2\na b c\n"}, "line 2 is no pair"),
        (layouts.gpt2, {"merges__txt": "q\u0120 zz\n"}, "line 1 joins"),
        (layouts.gpt2, {"vocab__json": {"a</w>": 0, "床": 1}}, "not of byte-level BPE"),
        (layouts.gpt2, {"tokenizer_config__json": {"tokenizer_class": "CLIPTokenizer"}}, "CLIP"),
        (layouts.bert, {"vocab__txt": "a\nb\n"}, r"has no '\[UNK\]'"),
        (layouts.bert, {"tokenizer_config__json": {"tokenizer_class": "EsmTokenizer"}}, "Esm"),
        (layouts.llama, {"tokenizer_config__json": {"tokenizer_class": "AlbertTokenizer"}}, "Alb"),
        (layouts.llama, {"tokenizer__model": b"YQ== 0\nYg== 1\n"}, "tiktoken file of 2 ranks"),
        (layouts.llama, {"tokenizer_config__json": "{"}, "tokenizer_config.json beside"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, make, change, message):
    make(tmp_path)
    layouts.write(tmp_path, **change)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_half_a_layout(tmp_path):
    layouts.gpt2(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"No tokenizer.*vocab\.json.* cannot be read here"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"has no merges\.txt"):
        load_tokenizer(tmp_path / "vocab.json")


def test_files_of_the_models_names_may_be_others(tmp_path):
    """A tokenizer may lie beside a config.json that is no model's; its own files must be sound."""
    layouts.gpt2(tmp_path)
    for content in ("[1, 2]", "{", b"\xff"):
        layouts.write(tmp_path, config__json=content)
        assert load_tokenizer(tmp_path).eos_id == 0
    layouts.write(tmp_path, special_tokens_map__json="[]")
    with pytest.raises(DataError, match="special_tokens_map.json beside"):
        load_tokenizer(tmp_path)


def test_a_named_token_is_special_though_tokenizer_json_does_not_say_so(tmp_path):
    """Its name in a text is text, and it stands for none: as in transformers."""
    transformers = pytest.importorskip("transformers")
    made = layouts.byte_level()
    n = made.get_vocab_size()
    made.add_tokens(["<end>", "<tool>"])
    config = {"eos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"}
    layouts.write(tmp_path, tokenizer__json=made.to_str(), tokenizer_config__json=config)
    found = load_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert found.eos_id == n and found.special == {n: "<end>"}
    assert n not in found.encode("a<end>") and found.encode("a<tool>")[-1] == n + 1
    options = {"add_special_tokens": False, "split_special_tokens": True}
    assert theirs.encode("a<end><tool>", **options) == found.encode("a<end><tool>")
    ids = [*found.encode("a"), n]
    assert found.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "a"
    found.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_text("utf-8") == made.to_str()
