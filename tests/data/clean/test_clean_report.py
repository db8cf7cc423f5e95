"""Counts that add up in any order, the report, and the shipped configurations."""

import html.parser
import json
import random
from pathlib import Path

import pytest
from clocks import calls
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import SPAM, boilerplate, curly, inject, pii, read_as, repeated, shipped

from t5x_llm.cli.data_clean import load_clean
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import DataError
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.report_page import render, write_report
from t5x_llm.data.clean.tally import FAILED, Chain, Tally

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
REASONS = ("short", "long", "")


def documents(count):
    rng = random.Random(count)
    for at in range(count):
        yield Document(f"s{at % 3}/f#{at}", "x" * rng.randint(0, 300) + "好", {"n": at})


class Judge:
    """Drops, edits, scores or fails by the length of the text."""

    name = "judge"

    def open(self):
        def step(document):
            size = len(document.text)
            if size % 7 == 1:
                raise RuntimeError("no\nsense")
            if size % 3 == 0:
                return Drop("short" if size < 99 else "long", str(size), {"score": size / 400})
            if size % 5 == 0:
                document = document.with_text(document.text[:-1]).with_meta(cut={"characters": 1})
            return document.with_meta(score=size / 400, language="zh", perplexity=float(size))

        return step


def tallied(parts):
    tally = Tally()
    for part in parts:
        own = Tally()
        chain = Chain([Judge()], own)
        for document in part:
            own.read(document)
            answer = chain(document)
            if isinstance(answer, Document):
                own.kept(answer)
        tally.merge(Tally.from_json(json.loads(json.dumps(own.to_json()))))
    return json.dumps(tally.to_json(), ensure_ascii=False)


@given(st.lists(st.integers(0, 5), min_size=60, max_size=60), st.permutations(range(6)))
@settings(max_examples=25, deadline=None)
def test_counts_are_the_same_for_any_shards_in_any_order(shard, order):
    every = list(documents(60))
    parts = [[d for d, s in zip(every, shard, strict=True) if s == number] for number in order]
    assert tallied(parts) == tallied([every])


def test_counts_are_those_of_a_plain_loop():
    every = list(documents(400))
    counts = json.loads(tallied([every]))
    sizes = [len(d.text) for d in every]
    failed = [s for s in sizes if s % 7 == 1]
    dropped = [s for s in sizes if s % 7 != 1 and s % 3 == 0]
    edited = [s for s in sizes if s % 7 != 1 and s % 3 and s % 5 == 0]
    step = counts["steps"]["judge"]
    assert sum(counts["quarantined"].values()) == len(failed) == counts["quarantined"][FAILED]
    assert step["dropped"]["short"]["documents"] == sum(s < 99 for s in dropped)
    assert step["dropped"]["long"]["characters"] == sum(s for s in dropped if s >= 99)
    assert step["edited"] == {
        "documents": len(edited), "before": sum(edited), "after": sum(edited) - len(edited)
    }  # fmt: skip
    assert step["counts"]["cut: characters"] == len(edited)
    assert step["counts"]["language: zh"] == len(sizes) - len(failed) - len(dropped)
    kept = sum(source["kept"]["documents"] for source in counts["sources"].values())
    read = sum(source["read"]["documents"] for source in counts["sources"].values())
    assert read == len(every) == kept + len(dropped) + len(failed)
    assert sum(counts["lengths"]["read"].values()) == read
    scored = sum(counts["scores"]["judge: score"].values())
    assert scored == kept + len(dropped)  # what was dropped is in the histogram too
    assert all(len(found) <= 4 for found in counts["samples"].values())


def test_damaged_counts_are_refused():
    for data in ([], {"steps": 3}, {"steps": {"a": "b"}}, None):
        with pytest.raises(DataError):
            Tally.from_json(data)


class Tags(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects addresses and text."""

    void = ("meta", "br", "rect", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_escapes(tmp_path):
    tally = Tally()
    hostile = "<script>alert('好')</script>" + "x" * 90
    tally.read(Document("<b>/f#1", hostile))
    tally.answered("judge", Document("<b>/f#1", hostile), Drop("<i>odd</i>", "&", {"score": 0.51}))
    tally.answered("pii", Document("a/f#2", "me@x.org"), Document("a/f#2", "<email>"))
    tally.answered("trim", Document("a/f#2", "ab "), Document("a/f#2", "ab"))
    tally.quarantined("invalid UTF-8", "a/bad.txt", "byte 3")
    counts = tally.to_json()
    path = write_report(tmp_path, counts, ["judge", "pii"])
    page = Path(path).read_text(encoding="utf-8")
    assert page == render(tmp_path.name, json.loads(json.dumps(counts)), ["judge", "pii"])
    tags = Tags()
    tags.feed(page)
    text = "".join(tags.text)
    assert tags.open == [] and tags.links == [] and "<script>alert" not in page
    for shown in ("<i>odd</i>", "invalid UTF-8", "byte 3", "alert('好')", "judge: score", "trim"):
        assert shown in text, shown
    assert "me@x.org" not in page  # what was masked is not shown
    assert render("empty", Tally().to_json()).endswith("</html>\n")


@pytest.mark.parametrize("name", ["clean_english", "clean_chinese", "clean_bilingual"])
def test_presets_clean_a_dirty_corpus(name):
    """Of faulty documents hardly one passes as it is; of clean ones nearly all do."""
    clean, unused = load_clean(parse_flags([f"--gin_file={CONFIGS / name}.gin"]))
    assert not unused
    en = [curly(t) for t in shipped("en_sotu", 12)] if name != "clean_chinese" else []
    zh = shipped("zh_poetry", 2000)[::40] if name != "clean_english" else []
    chain = Chain(clean.steps, Tally())
    good = [Document(f"good/x#{n}", text) for n, text in enumerate(en + zh)]
    answers = [chain(document) for document in good]
    kept = [(d, a) for d, a in zip(good, answers, strict=True) if isinstance(a, Document)]
    assert len(kept) >= 0.95 * len(good), chain.tally.data["steps"]
    assert all(len(a.text) >= 0.95 * len(d.text) for d, a in kept)
    bad = inject(en + zh, repeated)
    assert all(isinstance(chain(case.document), Drop) for case in bad)
    assert all(isinstance(chain(Document(f"spam/x#{n}", t)), Drop) for n, t in enumerate(SPAM))
    texts = {document.text: answer.text for document, answer in kept}
    for fault in (
        *(boilerplate("en") if en else boilerplate("zh"), pii("email")),
        read_as("sloppy-windows-1252") if en else read_as("gbk"),
    ):
        right = [
            answer.text == texts[text] if fault is not None else None
            for text, case in zip(texts, inject(list(texts), fault), strict=False)
            if case.wanted == text and isinstance(answer := chain(case.document), Document)
        ]
        assert sum(right) >= 0.9 * len(right)


def test_a_chain_is_quick_enough_to_count():
    """Counting costs a fraction of what the cheapest step does."""
    tally, document = Tally(), Document("a/x#1", "x" * 2000)
    tally.answered("step", document, document)
    assert calls(lambda: tally.answered("step", document, document)) < 10
