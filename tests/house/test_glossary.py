"""The glossaries: the same words in both languages, each once, and files that are there."""

import re
from pathlib import Path

HOME = Path(__file__).parents[2]


def rows(name: str) -> list[list[str]]:
    lines = (HOME / "docs" / name).read_text("utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:2] == "| "]
    return [row for row in cells if row[0] not in ("word", "词")]


ENGLISH, CHINESE = rows("glossary.md"), rows("glossary.zh.md")


def test_both_languages_have_the_same_words_in_the_same_order():
    assert [(word, chinese) for word, _, _, chinese in ENGLISH] == [
        (word, chinese) for chinese, word, _, _ in CHINESE
    ]
    assert [where for _, _, where, _ in ENGLISH] == [where for _, _, _, where in CHINESE]


def test_each_word_has_one_row_and_each_chinese_word_one_meaning():
    for words in ([row[0].lower() for row in ENGLISH], [row[0] for row in CHINESE]):
        assert len(words) == len(set(words))


def test_every_place_is_there():
    for word, _, where, _ in ENGLISH:
        named = re.findall(r"`([^`]+)`", where)
        assert named or where == "-", word
        file = Path()
        for name in named:
            if "/" in name:
                root = HOME if name.startswith("configs/") else HOME / "t5x_llm"
                file = root / name
                assert file.exists(), f"{word}: {name}"
            else:
                assert re.search(rf"^(class )?{name}\b", file.read_text("utf-8"), re.M), word
