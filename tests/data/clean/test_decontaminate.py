"""Documents that hold an evaluation item are named with it; others pass."""

import json
import random

import pytest

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.clean.decontaminate import Decontaminate, EvalSet
from t5x_llm.data.clean.document import Document, Drop

QUESTION = (
    "A farmer has seventeen sheep and all but nine of them run away one night; "
    "how many sheep does the farmer have left in the morning?"
)
CHINESE = "小明有十七只羊，除了九只以外都跑掉了，请问第二天早上小明还剩下多少只羊？"
NOISE = " ".join(random.Random(0).choices([f"w{i}" for i in range(500)], k=400))


def search(tmp_path, items, **settings):
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items))
    return Decontaminate(EvalSet("gsm", str(path), ("question", "answer")), **settings).open()


def items(*questions):
    return [{"question": q, "answer": "8"} for q in questions]


def test_what_holds_an_item_is_named_with_it(tmp_path):
    step = search(tmp_path, items("something else entirely that nobody will ever ask", QUESTION,
                                  CHINESE))  # fmt: skip
    around = f"{NOISE} {QUESTION.upper().replace(' ', '  ').replace(';', ' --')} {NOISE}"
    found = step(Document("d", around))
    assert isinstance(found, Drop) and found.reason == "in gsm"
    assert found.detail.startswith("gsm#2: a  farmer")
    found = step(Document("d", "前言" + CHINESE.replace("，", "、") + "后记"))
    assert isinstance(found, Drop) and found.detail.startswith("gsm#3: 小明有十七只羊、")
    for clean in (NOISE, "", CHINESE[:12], " ".join(QUESTION.split()[:12])):
        document = Document("d", clean)
        assert step(document) is document
    # Thirteen words are enough, wherever they stand in the item.
    assert isinstance(step(Document("d", " ".join(QUESTION.split()[4:17]))), Drop)


def test_short_items_are_looked_for_whole(tmp_path):
    short = "what is the tallest mountain on the moon"
    step = search(tmp_path, items(short, "two words"))
    assert isinstance(step(Document("d", f"he asked {short} and left")), Drop)
    document = Document("d", "what is the tallest mountain on the planet? two words")
    assert step(document) is document
    # "two words", and twice the answer "8".
    assert step.notes == ["gsm: 3 of 4 texts have fewer than 8 words and are not looked for"]


def test_more_hits_can_be_asked_for(tmp_path):
    step = search(tmp_path, items(QUESTION), hits=4)
    listed = QUESTION.split()
    for count, dropped in ((15, False), (16, True)):
        answer = step(Document("d", " ".join(listed[:count])))
        assert isinstance(answer, Drop) == dropped


def test_no_item_is_missed_and_none_is_made_up(tmp_path):
    """Against a search for every n-gram as text."""
    rng = random.Random(4)
    vocabulary = [f"v{i}" for i in range(40)]
    questions = [" ".join(rng.choices(vocabulary, k=30)) for _ in range(20)]
    step = search(tmp_path, items(*questions), ngram=4, shortest=4)
    grams = {tuple(q.split()[i : i + 4]) for q in questions for i in range(27)}
    for _ in range(200):
        listed = rng.choices(vocabulary, k=rng.randint(3, 60))
        expected = any(tuple(listed[i : i + 4]) in grams for i in range(len(listed) - 3))
        assert isinstance(step(Document("d", " ".join(listed))), Drop) == expected


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="no field 'question'"):
        search(tmp_path, [{"q": "x"}])
    with pytest.raises(DataError, match="no item has 8 words"):
        search(tmp_path, items("two words"))
    with pytest.raises(DataError, match="cannot be read"):
        Decontaminate(EvalSet("e", str(tmp_path / "gone.jsonl"))).open()
    one = EvalSet("e", "a.jsonl")
    with pytest.raises(ConfigError, match="names that differ"):
        Decontaminate((one, one))
