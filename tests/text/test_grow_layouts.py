"""Growth of tokenizers in the hub's layouts: added tokens and what lies beside them stay."""

import json

import pytest
import tokenizer_layouts as layouts
import tokenizers

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.resize import check_old_ids
from t5x_llm.text import load_tokenizer
from t5x_llm.text.companions import inherited
from t5x_llm.text.grow import Growing, learn
from t5x_llm.text.hf_json import HFTokenizer

POEMS = [
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
]
GROWABLE = [m for m in layouts.ALL if not m.__name__.startswith("bert")]


@pytest.mark.parametrize("make", GROWABLE, ids=lambda make: make.__name__)
def test_every_old_id_keeps_its_meaning(tmp_path, make):
    transformers = pytest.importorskip("transformers")
    make(tmp_path / "old")
    old = load_tokenizer(tmp_path / "old")
    grown = learn(old, POEMS * 40, Growing(30), progress=False).grown(30)
    grown.save(tmp_path / "new")
    new = load_tokenizer(tmp_path / "new")
    assert new.vocab_size == old.vocab_size + 30
    assert [new.piece(i) for i in range(old.vocab_size)] == [
        old.piece(i) for i in range(old.vocab_size)
    ]
    assert new.special == old.special
    for name in ("bos_id", "eos_id", "pad_id", "unk_id", "add_bos"):
        assert getattr(new, name) == getattr(old, name), name
    check_old_ids(old, new)
    pieces = {new.piece(i) for i in range(old.vocab_size, new.vocab_size)}
    assert len(pieces) == 30 and "" not in pieces
    ids = [new.encode(text) for text in POEMS]
    assert max(map(max, ids)) >= old.vocab_size
    lossy = make.__name__ in ("t5", "xlm_roberta")  # they normalise, and join what is unknown
    assert lossy or sum(map(len, ids)) < sum(len(old.encode(text)) for text in POEMS)
    assert lossy or [new.decode(i) for i in ids] == POEMS
    before, after = (
        json.loads((tmp_path / d / "tokenizer_config.json").read_text("utf-8"))
        for d in ("old", "new")
    )
    for key in ("chat_template", "model_max_length", "add_bos_token", "pad_token", "eos_token"):
        assert after.get(key) == before.get(key) or key not in before, key
    assert (tmp_path / "old" / "chat_template.jinja").exists() == (
        tmp_path / "new" / "chat_template.jinja"
    ).exists()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (old.bos_id, old.eos_id)
    options = {"add_special_tokens": False, "split_special_tokens": True}
    assert [theirs.encode(text, **options) for text in POEMS] == ids


def test_a_special_token_that_is_one_word_is_refused(tmp_path):
    """Words are looked up whole before they merge: its name in a text would become the token."""
    made = layouts.byte_level(layouts.LLAMA3, ignore_merges=True)
    made.add_special_tokens(["STOP"])
    old = HFTokenizer(made.to_str().encode())
    with pytest.raises(ConfigError, match="special token 'STOP'"):
        learn(old, POEMS * 40, Growing(9), progress=False).grown(9)


def test_resize_knows_moved_special_tokens(tmp_path):
    """Texts of special tokens are empty, so their names are compared."""
    made = layouts.byte_level()
    made.add_special_tokens(["<a>", "<b>"])
    old = HFTokenizer(made.to_str().encode())
    made = layouts.byte_level()
    made.add_special_tokens(["<b>", "<a>"])
    with pytest.raises(ConfigError, match="'<b>'"):
        check_old_ids(old, HFTokenizer(made.to_str().encode()))
    made.add_tokens(["<c>"])
    content = json.loads(made.to_str())
    plain = content["added_tokens"]
    for token in plain:
        token["special"] = True
    special = HFTokenizer(json.dumps(content).encode())
    for token in plain:
        token["special"] = False
    with pytest.raises(ConfigError, match="as in the old one"):
        check_old_ids(special, HFTokenizer(json.dumps(content).encode()))


def test_a_tokenizer_inherits_what_its_files_do_not_say():
    """As of a model that is resized to a tokenizer grown from the bare file."""
    old = {"tokenizer_config.json": b'{"a": 1, "chat_template": "x"}', "chat_template.jinja": b"y",
           "merges.txt": b"", "added_tokens.json": b'{"z": 3}'}  # fmt: skip
    found = inherited(old, {"tokenizer_config.json": b'{"a": 2}'})
    assert json.loads(found.pop("tokenizer_config.json")) == {"a": 2, "chat_template": "x"}
    assert found == {"chat_template.jinja": b"y"}
    assert inherited(old, {}) == {k: v for k, v in old.items() if k != "merges.txt"}
    assert inherited({}, {"merges.txt": b"x"}) == {"merges.txt": b"x"}


def test_a_model_beside_a_tokenizer_json_that_cannot_grow(tmp_path):
    """Tokens that tokenizer.json adds to the model keep their ids; new pieces follow them."""
    layouts.llama(tmp_path)
    load_tokenizer(tmp_path).save(tmp_path / "hub")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "hub" / "tokenizer.json"))
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.add_tokens(["<tool>"])
    layouts.write(tmp_path / "hub", tokenizer__json=made.to_str())
    old = load_tokenizer(tmp_path / "hub")
    assert isinstance(old, HFTokenizer)
    learn(old, POEMS * 40, Growing(20), progress=False).grown(20).save(tmp_path / "new")
    new = load_tokenizer(tmp_path / "new")
    check_old_ids(old, new)
    assert new.vocab_size == old.vocab_size + 20 and new.special == old.special
    assert new.id_of("<tool>") == old.id_of("<tool>") in new.encode("a<tool>")
    assert (new.pad_id, new.add_bos) == (old.pad_id, old.add_bos)
    assert new.companions["tokenizer_config.json"].count(b"im_start") > 1  # and the template
