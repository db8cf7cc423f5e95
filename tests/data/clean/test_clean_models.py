"""Classifiers and language models of n-grams, trained in place."""

import itertools
import json
import math
import random
import sys
from collections import Counter

import numpy as np
import pytest
from injected import SPAM, shipped
from sklearn.feature_extraction.text import HashingVectorizer

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.clean.arpa import train_arpa
from t5x_llm.data.clean.classifier import (
    ClassifierTraining,
    Label,
    QualityClassifier,
    load_classifier,
    train_classifier,
)
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.perplexity import Perplexity, perplexity, train_language_model

SMALL = ClassifierTraining(features=1 << 11)
GOOD = shipped("en_sotu", 60, 400) + shipped("zh_poetry", 60)


def spam(count):
    """Sentences of advertisements, shuffled."""
    rng = random.Random(0)
    parts = [p for text in SPAM for p in text.replace("。", "。|").replace(". ", ". |").split("|")]
    return [" ".join(rng.sample(parts, 4)) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    trained, measured = train_classifier({"good": GOOD, "bad": spam(80)}, SMALL)
    assert measured["accuracy"] > 0.9 and measured["auc"] > 0.95, measured
    path = tmp_path_factory.mktemp("classifier")
    trained.save(path)
    return str(path)


def test_scores_are_scikit_learns(model):
    loaded = load_classifier("model", model)
    vectorizer = HashingVectorizer(
        token_pattern=loaded._vectorizer.token_pattern, ngram_range=(1, 2), n_features=1 << 11,
        alternate_sign=False,
    )  # fmt: skip
    for text in [*GOOD[:5], *SPAM, "", "你好 hello"]:
        logits = (vectorizer.transform([text]) @ loaded.weights.astype(float))[0] + loaded.bias
        odds = np.exp(logits) / np.exp(logits).sum()
        scores = loaded.scores(text)
        assert list(scores) == ["bad", "good"] and math.isclose(sum(scores.values()), 1)
        np.testing.assert_allclose(list(scores.values()), odds, rtol=1e-4)


def test_the_step_drops_what_is_bad_and_labels_the_rest(model):
    step = QualityClassifier(model).open()
    dropped = [isinstance(step(Document("a", text)), Drop) for text in SPAM]
    kept = [step(Document("a", text)) for text in shipped("en_sotu", 90, 400)[60:]]
    assert sum(dropped) == len(SPAM)
    assert all(isinstance(d, Document) and d.meta["quality"] >= 0.5 for d in kept)
    found = step(Document("a", SPAM[0]))
    assert found.reason == "low quality" and found.found["quality"] < 0.5
    other = Document("a", SPAM[0], {"language": "en"})
    assert QualityClassifier(model, language="zh").open()(other) is other


def test_topics_are_labelled(tmp_path):
    seeds = {"en": GOOD[:20], "zh": GOOD[60:100], "spam": spam(20)}
    trained, measured = train_classifier(seeds, SMALL)
    assert measured["accuracy"] > 0.9
    trained.save(tmp_path)
    step = Label(str(tmp_path), key="kind").open()
    found = step(Document("a", GOOD[50]))
    assert found.meta["kind"] == "en" and 0.4 < found.meta["kind_score"] <= 1
    assert step(Document("a", GOOD[110])).meta["kind"] == "zh"
    assert Label(str(tmp_path), least=1.0).open()(Document("a", "?")).meta["topic"] == ""


def test_training_refuses_what_teaches_nothing():
    with pytest.raises(DataError, match="two labels"):
        train_classifier({"good": ["a"]})
    with pytest.raises(DataError, match="'bad'"):
        train_classifier({"good": ["a"], "bad": ["  "]})
    with pytest.raises(ConfigError, match="power of two"):
        ClassifierTraining(features=1000)


def test_damaged_models_are_refused_without_unpickling(model, tmp_path):
    def broken(change):
        about = json.loads(open(f"{model}/classifier.json").read())
        arrays = dict(np.load(f"{model}/classifier.npz"))
        change(about, arrays)
        (tmp_path / "classifier.json").write_text(json.dumps(about))
        np.savez_compressed(tmp_path / "classifier.npz", **arrays)
        with pytest.raises(ConfigError, match="Quality"):
            QualityClassifier(str(tmp_path))

    broken(lambda about, arrays: about.update(format="2"))
    broken(lambda about, arrays: about.update(labels=["good"]))
    broken(lambda about, arrays: about.update(features=1 << 40))
    broken(lambda about, arrays: arrays.update(weights=arrays["weights"][:-1]))
    broken(lambda about, arrays: arrays.update(weights=np.zeros((1 << 20, 2), np.float32)))
    broken(lambda about, arrays: arrays.update(bias=np.array([np.nan, 0], np.float32)))

    class Bomb:
        def __reduce__(self):
            return (sys.exit, ("unpickled",))

    broken(lambda about, arrays: arrays.update(weights=np.array([Bomb()], object)))
    with pytest.raises(ConfigError, match="QualityClassifier.model"):
        QualityClassifier(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="QualityClassifier.good"):
        QualityClassifier(model, good="fine")
    with pytest.raises(ConfigError, match=r"Label\.key"):
        Label(model, key="a b")


class Arpa:
    """A reader of ARPA by its definition: the longest n-gram, or what is left to shorter ones."""

    def __init__(self, path):
        self.table = {}
        for line in open(path, encoding="utf-8"):
            parts = line.rstrip("\n").split("\t")
            if len(parts) > 1:
                backoff = float(parts[2]) if len(parts) > 2 else 0.0
                self.table[tuple(parts[1].split(" "))] = float(parts[0]), backoff

    def log10(self, history, word):
        if (*history, word) in self.table:
            return self.table[*history, word][0]
        if not history:
            return self.table["<unk>",][0]
        return self.table.get(history, (0, 0.0))[1] + self.log10(history[1:], word)

    def score(self, sentence):
        words = ["<s>", *sentence.split(), "</s>"]
        words = [w if (w,) in self.table else "<unk>" for w in words]
        at = range(1, len(words))
        return sum(self.log10(tuple(words[max(0, i - 2) : i]), words[i]) for i in at)


TEXT = "the cat sat on the mat . the dog sat . a cat ran to the dog ! the cat sat on a dog ."


def test_n_gram_probabilities_sum_to_one_and_are_kneser_neys(tmp_path):
    sentences = [s.split() for s in TEXT.replace(".", ".|").replace("!", "!|").split("|") if s]
    count = train_arpa(sentences, tmp_path / "m.arpa", order=3)
    model = Arpa(tmp_path / "m.arpa")
    assert len(model.table) == count
    words = [g[0] for g in model.table if len(g) == 1 and g != ("<s>",)]
    for history in [
        (),
        ("the",),
        ("the", "cat"),
        ("<s>",),
        ("<s>", "the"),
        ("zebra", "the"),
        ("on",),
    ]:
        assert math.isclose(sum(10 ** model.log10(history, w) for w in words), 1, rel_tol=1e-5)
    # By the formula, for one trigram: c, D and N counted here.
    padded = [["<s>", *s, "</s>"] for s in sentences]
    grams = Counter(tuple(p[i : i + 3]) for p in padded for i in range(len(p) - 2))
    once, twice = (sum(c == n for c in grams.values()) for n in (1, 2))
    d = once / (once + 2 * twice)
    follow = {g: c for g, c in grams.items() if g[:2] == ("the", "cat")}
    lower = 10 ** model.log10(("cat",), "sat")
    total = sum(follow.values())
    expected = (follow["the", "cat", "sat"] - d) / total + d * len(follow) / total * lower
    assert math.isclose(10 ** model.log10(("the", "cat"), "sat"), expected, rel_tol=1e-5)


def test_perplexity_tells_good_text_from_shuffled(tmp_path):
    for language, texts in (("en", GOOD[:60]), ("zh", GOOD[60:])):
        path = tmp_path / f"{language}.arpa"
        train_language_model(texts[:20], path, language, order=3)
        model = Arpa(path)
        rng = random.Random(0)
        for text in texts[-5:]:
            parts = list(text) if language == "zh" else text.split(" ")
            shuffled = "".join(rng.sample(parts, len(parts))) if language == "zh" else " ".join(
                rng.sample(parts, len(parts))
            )  # fmt: skip
            good, bad = (perplexity(model, t, language) for t in (text, shuffled))
            assert 1 < good < bad


def test_models_of_words_that_arpa_cannot_hold(tmp_path):
    train_arpa([["a", "\x00", "<s>", "b\n"], ["a"], []], tmp_path / "m.arpa", order=2)
    assert set(itertools.chain(*Arpa(tmp_path / "m.arpa").table)) == {"a", "<s>", "</s>", "<unk>"}
    with pytest.raises(DataError, match="not one word"):
        train_arpa([[]], tmp_path / "n.arpa")
    with pytest.raises(ConfigError, match="order"):
        train_arpa([["a"]], tmp_path / "n.arpa", order=1)


def test_without_kenlm_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "m.arpa").write_text("")
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ConfigError, match="pip install kenlm"):
        Perplexity(str(tmp_path / "m.arpa"))
    with pytest.raises(ConfigError, match=r"Perplexity\.model"):
        Perplexity(str(tmp_path / "none"))


def test_perplexity_keeps_what_lies_between_its_bounds(tmp_path, monkeypatch):
    """With a reader of its own in KenLM's place; tests/bench/clean_kenlm.py has the real one."""
    import types

    path = str(tmp_path / "m.arpa")
    train_language_model(GOOD[:6], path, "en")
    monkeypatch.setitem(sys.modules, "kenlm", types.SimpleNamespace(Model=Arpa))
    kept = Perplexity(path, most=1e6).open()(Document("a", GOOD[51]))
    score = kept.meta["perplexity"]
    low = Perplexity(path, most=score - 1).open()(Document("a", GOOD[51]))
    assert low.reason == "surprising" and low.found == {"perplexity": score}
    high = Perplexity(path, least=score + 1, most=1e6).open()(Document("a", GOOD[51]))
    assert high.reason == "predictable"
    chinese = Document("a", "好", {"language": "zh"})
    assert Perplexity(path).open()(chinese) is chinese
