"""Templates over fields of rows: choice by hash, parallel text both ways, caps, bad input."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.blending import mixed_sizes
from t5x_llm.data.catalog import described, open_stream
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.instruct.prompts import TRANSLATION, Prompts, PromptWriter
from t5x_llm.data.instruct.reading import records
from t5x_llm.data.instruct.records import Unreadable
from t5x_llm.data.prepare import prepare
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.data.stretch import Stretch

REVIEW = (("Review: {text}\nGood?", "{label}"), ("{text}\n\n{label:options}", "It is {label}."))
CHOICES = {"label": ("bad", "good")}
PAIRS = (("en", "English"), ("zh", "Chinese"))


def written(prompts, row):
    """The (prompt, answer) pairs of a row."""
    made = PromptWriter(prompts).read(row)
    return [tuple(m.content for m in each.conversation.messages) for each in made]


def write(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def config(tmp_path, *sources, **mixture):
    return Data(
        str(tmp_path / "store"), "bytes", Mixture(sources, **mixture), packing="whole", workers=1,
        chat=Chat(template="vicuna", max_tokens=512), validation_fraction=0.0, modules=("json",),
    )  # fmt: skip


def quiet(_):
    """Says nothing."""


def test_fields_choices_and_options_fill_a_template():
    prompts = Prompts(REVIEW, per_row=2, choices=CHOICES)
    assert set(written(prompts, {"text": "fun", "label": 1, "id": 7})) == {
        ("Review: fun\nGood?", "good"),
        ("fun\n\n- bad\n- good", "It is good."),
    }
    nested = Prompts((("{{{a.text.1}}} {n}?", "{a.n}"),))
    assert written(nested, {"a": {"text": ["x", "y"], "n": 0.5}, "n": 3}) == [("{y} 3?", "0.5")]
    assert written(nested, {"a.text.1": "z", "n": 3, "a.n": "q"}) == [("{z} 3?", "q")]
    # A value is text, never a template of its own.
    assert written(Prompts((("{a}", "{b}"),)), {"a": "{b}", "b": "{a}"}) == [("{b}", "{a}")]


def test_each_template_gets_its_share_and_a_further_one_only_its_own():
    four = tuple((f"{i}: {{a}}", "{b}") for i in range(4))
    rows = [{"a": f"q{i}", "b": str(i)} for i in range(2000)]
    before = [written(Prompts(four[:3]), row)[0] for row in rows]
    after = [written(Prompts(four[::-1]), row)[0] for row in rows]
    shares = np.bincount([int(prompt[0]) for prompt, _ in after], minlength=4)
    assert np.abs(shares - 500).max() < 90  # 4.6 deviations of a binomial
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert moved and all(prompt.startswith("3") for prompt, _ in moved)


def test_the_choice_is_a_known_function_of_the_values():
    """Fixed values: another machine, process or version chooses the same."""
    chosen = [written(Prompts(REVIEW, choices=CHOICES), {"text": f"t{i}", "label": i % 2})[0][0][0]
              for i in range(16)]  # fmt: skip
    assert "".join(chosen) == "tRtttttRtttRttRR"
    row, other = {"text": "t", "label": 1}, {"label": 1, "id": "other", "text": "t"}
    assert written(Prompts(REVIEW, choices=CHOICES), row) == written(
        Prompts(REVIEW[::-1], choices=CHOICES), other
    )


def test_parallel_text_is_translated_both_ways_and_held_out_together():
    row = {"en": "Hello.", "zh": "你好。"}
    made = PromptWriter(Prompts(languages=PAIRS)).read(row)
    assert len({each.group for each in made}) == 1 and len(made) == 2
    (to_zh, zh), (to_en, en) = written(Prompts(languages=PAIRS), row)
    assert (zh, en) == ("你好。", "Hello.")
    assert "Hello." in to_zh and "Chinese" in to_zh and "你好。" in to_en and "English" in to_en
    assert written(Prompts(languages=PAIRS, directions="forward"), row) == [(to_zh, zh)]
    assert len(written(Prompts(languages=PAIRS, per_row=6), row)) == 2 * len(TRANSLATION) == 12
    ways = {written(Prompts(languages=PAIRS, directions="one"), {"en": str(i), "zh": "好"})[0][1]
            == "好" for i in range(20)}  # fmt: skip
    assert ways == {True, False}
    own = Prompts((("{source} = ({target_language}, {topic})", "{target}"),), languages=PAIRS)
    assert written(own, {**row, "topic": "greeting"})[1] == (
        "你好。 = (English, greeting)", "Hello.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "name"),
    [(0, "bad"), (1, "good"), (True, "good"), (1.0, "good"), ("1", "good"), ("bad", "bad")],
)
def test_choices_are_found_by_number_or_name(value, name):
    assert written(Prompts(REVIEW[:1], choices=CHOICES), {"text": "t", "label": value}) == [
        ("Review: t\nGood?", name)
    ]


@given(st.dictionaries(st.sampled_from("ab"), st.text(max_size=9), min_size=2), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_whole(row, per_row):
    prompts = Prompts((("<{a}>", "{b}"), ("{a}|", "{b}")), per_row=per_row)
    if not row["b"].strip():
        with pytest.raises(Unreadable, match="an empty answer"):
            written(prompts, row)
        return
    for prompt, reply in written(prompts, row):
        assert prompt in (f"<{row['a']}>", f"{row['a']}|") and reply == row["b"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"txt": "a", "label": 1}, "no field 'text', did you mean 'txt'; there are label, txt"),
        ({"text": None, "label": 1}, "field 'text' holds null, no text and no number"),
        ({"text": True, "label": 1}, "field 'text' holds true or false"),
        ({"text": "a", "label": 2}, "field 'label' holds none of its choices 0 to 1"),
        ({"text": "a", "label": -1}, "none of its choices"),
        ({"text": "a", "label": 0.5}, "none of its choices"),
        ({"text": "a", "label": 0.99999999}, "none of its choices"),
        ({"text": "a", "label": 10**400}, "none of its choices"),
        ({"text": "a", "label": "9" * 5000}, "none of its choices"),
        ({"text": "a", "label": ["1"]}, "none of its choices"),
        ({"text": "a", "label": None}, "none of its choices"),
    ],
)
def test_rows_that_templates_cannot_use_give_a_reason(row, reason):
    with pytest.raises(Unreadable, match=reason):
        written(Prompts(REVIEW, choices=CHOICES), row)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Prompts.templates = .*at least one"),
        ({"templates": (("Say it.", "{b}"),)}, "a field of the row in the prompt"),
        ({"templates": (("{a}", "yes"),)}, "a field of the row in the answer"),
        ({"templates": (("{a}", "{b:options}"),)}, "a field of the row in the answer"),
        ({"templates": (("{a} }", "{b}"),)}, "not '}'. Write {{ and }} for braces"),
        ({"templates": (("{} {a}", "{b}"),)}, "not '{}'"),
        ({"templates": (("{a:.2f}", "{b}"),)}, "not '{a:.2f}'"),
        ({"templates": (("{a} {b:options}", "{b}"),)}, "Prompts.choices = None.*names for 'b'"),
        ({"templates": ("{a}", "{b}")}, r"\(prompt, answer\), two texts"),
        ({"templates": (("{a}", "{b}"),) * 2}, "templates that differ"),
        ({"templates": (("{a}", "{b}"),), "per_row": 2}, "at most 1, the number of templates"),
        ({"templates": (("{a}", "{b}"),), "directions": "one"}, "as Prompts.languages is"),
        ({"templates": (("{txt}", "{b}"),), "columns": ("text", "b")}, "Did you mean 'text'"),
        ({"languages": PAIRS, "columns": ("en", "cn")}, "Prompts.languages = 'zh'"),
        ({"languages": PAIRS[:1]}, "two fields with the names of their languages"),
        ({"templates": REVIEW, "choices": {"label": ("good",)}}, "two names or more"),
        ({"templates": (("{a}", "{b}"),), "choices": {"c": ("x", "y")}}, "'c': expected one of a"),
    ],
)
def test_templates_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Prompts(**fields)


def test_prompts_are_of_conversations_and_read_rows_alone():
    prompts = Prompts((("{a}", "{b}"),))
    with pytest.raises(ConfigError, match="Source.prompts = .*of kind 'jsonl'"):
        Source("a", "a.jsonl", prompts=prompts)
    with pytest.raises(ConfigError, match="Source.format = 'alpaca'"):
        Source("a", "a.jsonl", kind="chat", format="alpaca", prompts=prompts)
    with pytest.raises(ConfigError, match="Source.columns"):
        Source("a", "a.jsonl", kind="chat", columns={"prompt": "a"}, prompts=prompts)
    with pytest.raises(ConfigError, match=r"Prompts.columns = \(\): expected the names of the col"):
        Source("a", "a.tsv.gz", kind="chat", prompts=prompts)
    with pytest.raises(ConfigError, match="Mixture.rates = 'examples'"):
        Mixture((Source("a", "a.jsonl"),), max_examples=3000)


def test_fields_that_no_row_has_end_it_at_once_and_single_rows_are_counted(tmp_path):
    prompts = Prompts((("{text}?", "{label}"),))
    bad = Source("s", write(tmp_path / "bad.jsonl", [{"txt": "a", "label": "b"}] * 3), kind="chat",
                 prompts=prompts)  # fmt: skip
    with pytest.raises(DataError) as error:
        prepare(config(tmp_path, bad), say=quiet)
    assert "bad.jsonl:1: no field 'text', did you mean 'txt'; there are label, txt" in str(
        error.value
    ) and "Prompts.templates ask for text, label" in str(error.value)
    rows = [{"text": str(i), "label": "x"} for i in range(30)]
    rows[:6] = [{"text": "a", "label": " "}] * 6
    rows[20], rows[25] = {"text": "a"}, "{broken"
    some = Source("s", write(tmp_path / "some.jsonl", rows), kind="chat", prompts=prompts)
    with pytest.raises(DataError) as error:
        prepare(config(tmp_path, some), say=quiet)
    assert "8 of 30 conversations (26.67%) cannot be used" in str(error.value)
    assert "6 x an empty answer" in str(error.value)
    assert "1 x no field 'label'; there are text (first: " in str(error.value)
    assert "some.jsonl:21)" in str(error.value) and "1 x not JSON" in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_tab_separated_pairs(tmp_path, packed):
    lines = ["en\tzh", "Hello.\t你好。", "one\ttwo\tthree", 'say "hi"\t说“嗨”', "only", ""]
    path = tmp_path / ("pairs.tsv.gz" if packed else "pairs.tsv")
    path.write_bytes((gzip.compress if packed else bytes)("\r\n".join(lines).encode()))
    prompts = Prompts(languages=PAIRS, columns=("en", "zh"), directions="forward")
    source = Source("s", str(path), kind="chat", prompts=prompts)
    found = list(records(source, Stretch(0, str(path), 0, path.stat().st_size, 1)))
    assert [line for line, _ in found] == [2, 3, 4, 5]
    assert [r for _, r in found if isinstance(r, str)] == ["3 values, not 2", "1 values, not 2"]
    answers = [r.conversation.messages[1].content for _, r in found if not isinstance(r, str)]
    assert answers == ["你好。", "说“嗨”"]


def test_a_store_holds_prompts_and_trains_answers_and_changes_with_the_templates(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"en": f"n {i}", "zh": f"数 {i}"} for i in range(40)])
    source = Source("s", path, kind="chat", prompts=Prompts(languages=PAIRS))
    data = dataclasses.replace(config(tmp_path, source), validation_fraction=0.3)
    opened = prepare(data, say=quiet)
    store = opened.stores["s"]
    assert len(store.train) + len(store.validation) == 80 and len(store.validation) % 2 == 0
    lines = [{s.provenance(i).line for i in range(len(s))} for s in (store.train, store.validation)]
    assert lines[1] and not lines[0] & lines[1], "both directions of a row are held out together"
    answers = set()
    for i in range(len(store.train)):
        ids = store.train.document(i)
        answers.add(opened.tokenizer.decode(ids[store.train.document_weights(i) == 1].tolist()))
    assert {a.strip() for a in answers} == {f"{w} {i - 1}" for i in lines[0] for w in ("n", "数")}
    assert open_stream(data, opened, 512).batch(0, 4).loss_mask.sum() > 0
    other = dataclasses.replace(source, prompts=Prompts(languages=PAIRS[::-1]))
    changed = dataclasses.replace(data, mixture=Mixture((other,)))
    assert prepare(changed, say=quiet).stores["s"].path != store.path
    said = []
    prepare(data, say=quiet)
    prepare(data, say=said.append)
    assert "up to date" in said[0]


def test_examples_are_drawn_in_the_ratio_of_their_numbers_up_to_the_cap(tmp_path):
    """Rows of a source hold as many examples as fit; the rate makes up for their lengths."""
    counts = {"long": (60, 300), "short": (240, 20), "few": (12, 60)}
    sources = []
    for name, (count, size) in counts.items():
        rows = [{"a": f"{name} {i} " * (size // 10), "b": str(i)} for i in range(count)]
        path = write(tmp_path / f"{name}.jsonl", rows)
        sources.append(Source(name, path, kind="chat", prompts=Prompts((("{a}", "{b}"),))))
    data = config(tmp_path, *sources, rates="examples", max_examples=48)
    opened = prepare(data, say=quiet)
    sizes = {name: s.train.tokens / len(s.train) for name, s in opened.stores.items()}
    drawn = {name: opened.weights[name] / size for name, size in sizes.items()}
    assert drawn["long"] == pytest.approx(drawn["short"], rel=1e-9)
    assert drawn["few"] / drawn["long"] == pytest.approx(12 / 48, rel=1e-9)
    hot = dataclasses.replace(data.mixture, temperature=2.0, max_examples=None)
    found = mixed_sizes(hot, opened.stores)
    assert found["short"] / sizes["short"] == pytest.approx(240**0.5)
    plain = dataclasses.replace(data.mixture, rates="proportional", max_examples=None)
    assert mixed_sizes(plain, opened.stores) == {
        name: store.train.tokens for name, store in opened.stores.items()
    }


def test_data_without_prompts_is_described_as_before():
    told = described(Data("s", "bytes", Mixture((Source("a", "a.jsonl", kind="chat"),)),
                          chat=Chat(template="vicuna")))  # fmt: skip
    assert "prompts" not in told["mixture"]["sources"][0]
    assert "max_examples" not in told["mixture"]
