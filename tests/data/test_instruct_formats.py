"""Every format of instruction data, read row by row; what rows look like; rows that are refused."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.instruct.markdown import is_html, to_markdown
from t5x_llm.data.instruct.reading import records, texts
from t5x_llm.data.instruct.records import LabelledAnswer, LabelledSteps, Preference
from t5x_llm.data.reading import find_files, is_cut, plan_jobs, scan
from t5x_llm.data.sources import Source


def found(tmp_path, rows, name="rows.jsonl", **fields):
    """What a source reads of a file of rows: (line, record or reason)."""
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(lines) + "\n")
    source = Source("talk", str(path), kind="chat", **fields)
    scans = [scan(p, is_cut(source, p)) for p in find_files(source)]
    return [x for job in plan_jobs(scans) for stretch in job for x in records(source, stretch)]


def turns(record):
    taught = record.taught
    return None if taught is None else [(m.role, m.content) for m in taught.messages]


QA = [("user", "Q"), ("assistant", "A")]
SINGLE = {
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "openai": {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    },
    "dolly": {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
    "belle": {"instruction": "Q", "input": "", "output": "A"},
    "linly": {"instruction": "Q", "input": "", "output": "A"},
    "oig": {"text": "<human>: Q\n<bot>: A", "metadata": {"source": "x"}},
    "gpt4all": {"prompt": "Q", "response": "A", "source": "x"},
    "colossal_chat": {
        "messages": [{"from": "user", "content": "Q"}, {"from": "assistant", "content": "A"}]
    },
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "preference": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "labelled": {"prompt": "Q", "completion": "A", "label": True},
    "stepwise": {"prompt": "Q", "completions": ["A"], "labels": [True]},
    "oasst": {
        "message_tree_id": "t",
        "prompt": {
            "text": "Q", "role": "prompter", "replies": [{"text": "A", "role": "assistant"}],
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("told", [True, False])
def test_every_format_is_read_by_name_and_by_its_looks(tmp_path, name, told):
    ((line, record),) = found(tmp_path, [SINGLE[name]], format=name if told else "auto")
    assert line == 1 and turns(record) == QA


@pytest.mark.parametrize("name", sorted(set(SINGLE) - {"belle", "linly"}))
@pytest.mark.parametrize("other", ["alpaca", "sharegpt", "prompt_completion", "oasst"])
def test_a_file_of_another_format_is_told_by_what_it_looks_like(tmp_path, name, other):
    ok = {(n, n) for n in SINGLE} | {("labelled", "prompt_completion")}
    if (name, other) in ok:
        return
    with pytest.raises(DataError, match=f"rows.jsonl:1 .*looks like '{name}': set Source.format"):
        found(tmp_path, [SINGLE[name]] * 3, format=other)


def test_a_file_of_no_conversations_is_refused(tmp_path):
    with pytest.raises(DataError, match="looks like plain text: set Source.kind = 'jsonl'"):
        found(tmp_path, [{"text": "once"}])
    with pytest.raises(DataError, match="its fields are a, b.*Map its columns with Source.columns"):
        found(tmp_path, [{"a": 1, "b": 2}])


def test_files_of_arrays_and_mixed_formats(tmp_path):
    rows = [SINGLE["alpaca"], SINGLE["sharegpt"], SINGLE["dolly"], 7]
    *read, bad = found(tmp_path, rows, "rows.json")
    assert [turns(record) for _, record in read] == [QA] * 3 and bad == (4, "not a JSON object")


def test_bad_rows_are_reasons_with_lines(tmp_path):
    rows = [
        SINGLE["alpaca"], '{"instruction": "Q", "output', "[1]", {"instruction": "Q", "output": ""},
        {"instruction": "Q"}, {"instruction": "Q", "output": 3}, SINGLE["alpaca"],
        {"instruction": " ", "output": "A"},
    ]  # fmt: skip
    read = found(tmp_path, rows, format="alpaca")
    assert [(line, x) for line, x in read if isinstance(x, str)] == [
        (2, "not JSON"), (3, "not a JSON object"), (4, "empty 'output'"), (5, "no field 'output'"),
        (6, "field 'output' holds a number, no text"), (8, "empty 'instruction'"),
    ]  # fmt: skip


def test_alpaca_with_input_system_and_history(tmp_path):
    row = {
        "instruction": "Sum", "input": "1 2", "output": "3", "system": "Be brief.",
        "history": [["hi", "hello"]],
    }  # fmt: skip
    ((_, record),) = found(tmp_path, [row])
    assert turns(record) == [
        ("system", "Be brief."), ("user", "hi"), ("assistant", "hello"),
        ("user", "Sum\n1 2"), ("assistant", "3"),
    ]  # fmt: skip
    ((_, record),) = found(tmp_path, [{**SINGLE["alpaca"], "input": "<noinput>"}])
    assert turns(record) == QA


def test_sharegpt_in_html_and_with_functions(tmp_path):
    page = (
        '<div class="markdown prose"><p>Use <code>ls</code> &amp; <strong>see</strong>:</p>'
        '<pre><div class="bg-black"><div>bash<button>Copy code</button></div><div>'
        '<code class="hljs language-bash">ls  -a\n\n\n\necho "&lt;p&gt;"\n</code></div></div></pre>'
        '<ol start="3"><li><p>one</p></li><li>two<ul><li>in</li></ul></li></ol>'
        "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"
    )
    question = "<p>why is my <b>page</b> empty?</p>"
    row = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": question},
            {"from": "gpt", "value": page},
            {"from": "human", "value": "call"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "7"},
            {"from": "gpt", "value": "seven"},
        ],
        "tools": '[{"name": "f"}]',
    }
    ((_, record),) = found(tmp_path, [row])
    messages = record.taught.messages
    assert [m.role for m in messages] == [
        "system", "user", "assistant", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert messages[1].content == question  # a user's page stays a page
    assert messages[2].content == (
        'Use `ls` & **see**:\n\n```bash\nls  -a\n\n\n\necho "<p>"\n```\n\n3. one\n4. two\n'
        "    - in\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert messages[4].tool_calls == (call,) and messages[4].content == ""
    assert record.taught.tools == ({"name": "f"},)


def test_text_that_only_holds_tags_is_no_html():
    assert not is_html("Use <b>bold</b>.") and not is_html("<p>open") and is_html("<p>x</p>")
    assert to_markdown("<p>a<br>b</p><p>c <em>d</em> <a href='u'>e</a></p>") == (
        "a\nb\n\nc *d* [e](u)"
    )


def test_openai_tool_calls_parts_weights_and_reasoning(tmp_path):
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 2}'}}]
    row = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": x} for x in "ab"]},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
            {"role": "assistant", "content": "old", "weight": 0},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "new", "reasoning_content": "think"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }  # fmt: skip
    ((_, record),) = found(tmp_path, [row])
    m = record.taught.messages
    assert (m[0].role, m[1].content, m[3].role, m[3].name) == ("system", "ab", "tool", "f")
    assert m[2].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 2}}
    assert [x.trained for x in m if x.role == "assistant"] == [True, False, True]
    assert m[6].reasoning == "think" and record.taught.tools == tuple(row["tools"])
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    bad = {"messages": [picture, {"role": "assistant", "content": "A"}]}
    odd = {"messages": [{"role": "alien", "content": "x"}]}
    assert [x for _, x in found(tmp_path, [row, bad, odd])][1:] == [
        "a turn with a part that is no text", "unknown role 'alien'",
    ]  # fmt: skip


TREE = {
    "message_tree_id": "t1",
    "prompt": {
        "message_id": "t1", "role": "prompter", "text": "Q",
        "replies": [
            {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
            {"role": "assistant", "text": "best", "rank": 0, "replies": [
                {"role": "prompter", "text": "more", "replies": [
                    {"role": "assistant", "text": "x", "rank": 1},
                    {"role": "assistant", "text": "y"},
                ]},
                {"role": "prompter", "text": "no answer", "replies": []},
            ]},
            {"role": "assistant", "text": "gone", "rank": 2, "deleted": True},
        ],
    },
}  # fmt: skip


def test_oasst_trees_train_every_answer_once(tmp_path):
    read = [record for _, record in found(tmp_path, [TREE])]
    paths = [[(m.content, m.trained) for m in r.taught.messages] for r in read]
    assert paths == [
        [("Q", True), ("best", True), ("more", True), ("x", True)],
        [("Q", True), ("best", False), ("more", True), ("y", True)],
        [("Q", True), ("worse", True)],
    ]
    assert {r.group for r in read} == {"t1"}
    ((_, best),) = found(tmp_path, [TREE], format="oasst_best")
    assert [m.content for m in best.taught.messages] == ["Q", "best", "more", "x"]


def test_oasst_messages_are_joined_to_trees(tmp_path):
    def message(name, parent, role, text, **more):
        return {"message_id": name, "parent_id": parent, "message_tree_id": "a", "role": role,
                "text": text, **more}  # fmt: skip

    rows = [
        message("b", "a", "assistant", "worse", rank=1.0),
        message("a", None, "prompter", "Q"),
        message("c", "a", "assistant", "best", rank=0.0),
        message("d", "lost", "assistant", "orphan"),
    ]
    read = found(tmp_path, rows)
    assert (4, "a message whose parent is not there") in read
    assert [turns(r)[-1][1] for _, r in read if not isinstance(r, str)] == ["best", "worse"]
    assert len(found(tmp_path, rows, format="oasst_best")) == 2


def test_parquet_and_compressed_files_are_read_too(tmp_path):
    rows = [SINGLE["openai"], {"messages": None}, SINGLE["openai"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl.gz").write_bytes(
        gzip.compress("\n".join(map(json.dumps, rows)).encode())
    )
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    for name in ("rows.parquet", "rows.jsonl.gz", "rows.json.gz"):
        source = Source("talk", str(tmp_path / name), kind="chat")
        ((stretch,),) = plan_jobs([scan(str(tmp_path / name), is_cut(source, name))])
        read = list(records(source, stretch))
        assert [line for line, _ in read] == [1, 2, 3] and turns(read[2][1]) == QA
        assert read[1][1] in ("a row of no known format", "turns are null, no list")


def test_turns_inside_of_texts(tmp_path):
    belle = {"instruction": "Human:你好\nAssistant:您好!\nHuman：再见\n", "output": "再见!"}
    ((_, record),) = found(tmp_path, [belle])
    assert turns(record) == [
        ("user", "你好"), ("assistant", "您好!"), ("user", "再见"), ("assistant", "再见!"),
    ]  # fmt: skip
    oig = {"text": "Background: facts\n<human>: Q\n<bot>: A\nmore\n<human>: R\n<bot>: B"}
    ((_, record),) = found(tmp_path, [oig])
    assert turns(record) == [
        ("system", "Background: facts"), *QA[:1], ("assistant", "A\nmore"), ("user", "R"),
        ("assistant", "B"),
    ]  # fmt: skip


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [message("user", "Q")], "chosen": [message("assistant", "A")],
         "rejected": [message("assistant", "B")]},
        {"prompt": "Q", "chosen": [message("user", "Q"), message("assistant", "A")],
         "rejected": [message("user", "Q"), message("assistant", "B")]},
        {"chosen": [message("user", "Q"), message("assistant", "A")],
         "rejected": [message("user", "Q"), message("assistant", "B")]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"context": [{"from": "human", "content": "Q"}],
         "chosen": [{"from": "assistant", "content": "A"}],
         "rejected": [{"from": "assistant", "content": "B"}]},
        {"conversations": [{"from": "human", "value": "Q"}],
         "chosen": {"from": "gpt", "value": "A"},
         "rejected": {"from": "gpt", "value": "B"}},
        {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"},
    ],
)  # fmt: skip
def test_preferences_explicit_and_implicit(tmp_path, row):
    ((_, record),) = found(tmp_path, [row])
    assert isinstance(record, Preference) and turns(record) == QA
    assert [m.content for m in record.prompt.messages] == ["Q"]
    assert [m.content for m in (*record.chosen, *record.rejected)] == ["A", "B"]


def test_preferences_that_are_none(tmp_path):
    rows = [
        {"prompt": "Q", "chosen": "A", "rejected": "A"},
        {"chosen": [message("user", "Q"), message("assistant", "A")],
         "rejected": [message("user", "R"), message("assistant", "B")]},
        {"chosen": "A", "rejected": "B"},
    ]  # fmt: skip
    assert [x for _, x in found(tmp_path, rows)] == [
        "two answers that are the same", "two conversations that do not begin alike",
        "no field 'prompt', and answers without Human: and Assistant:",
    ]  # fmt: skip


def test_the_answers_of_a_preference_s_prompt_are_not_trained(tmp_path):
    first = [message("user", "Q"), message("assistant", "old"), message("user", "R")]
    row = {"prompt": first, "chosen": "A", "rejected": "B"}
    ((_, record),) = found(tmp_path, [row])
    assert [m.trained for m in record.taught.messages] == [True, False, True, True]


def test_labels(tmp_path):
    rows = [{"prompt": "Q", "completion": "A", "label": label} for label in (True, False, 1, "x")]
    good, bad, one, odd = (record for _, record in found(tmp_path, rows))
    assert isinstance(good, LabelledAnswer) and turns(good) == turns(one) == QA
    assert not bad.good and bad.taught is None
    assert odd == "a label that is a text, neither true nor false"


def test_steps_that_are_not_judged_are_not_true(tmp_path):
    rows = [
        {"prompt": "Q", "completions": ["a", "b"], "labels": labels}
        for labels in ([True, True], [True, False], [1, -100], [True], [True, 0.5])
    ]
    right, wrong, unjudged, short, odd = (record for _, record in found(tmp_path, rows))
    assert turns(right) == [("user", "Q"), ("assistant", "a\nb")]
    assert isinstance(wrong, LabelledSteps) and wrong.taught is None
    assert unjudged.labels == (True, None) and unjudged.taught is None
    assert short == "labels that are not one a step"
    assert odd == "a step's label that is neither true nor false"


def test_completions_of_messages(tmp_path):
    row = {"prompt": [message("user", "Q")], "completion": [message("assistant", "A")]}
    ((_, record),) = found(tmp_path, [row])
    assert turns(record) == QA


def test_columns_and_tags_are_mapped(tmp_path):
    row = {"question": "Q", "reply": "A", "who": "S"}
    columns = {"prompt": "question", "response": "reply", "system": "who"}
    ((_, record),) = found(tmp_path, [row], columns=columns)
    assert turns(record) == [("system", "S"), *QA]
    row = {"talk": [{"by": "me", "text": "Q"}, {"by": "you", "text": "A"}]}
    columns = {
        "messages": "talk", "role_tag": "by", "content_tag": "text", "user_tag": "me",
        "assistant_tag": "you",
    }  # fmt: skip
    ((_, record),) = found(tmp_path, [row], format="sharegpt", columns=columns)
    assert turns(record) == QA


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "alpacca"}, "Did you mean 'alpaca'"),
        ({"columns": {"promt": "q"}}, "Did you mean 'prompt'"),
        ({"format": "oig", "columns": {"chosen": "c"}}, "a column of the format 'oig' of 'talk'"),
        ({"kind": "jsonl", "format": "alpaca"}, "Set Source.kind = 'chat'"),
    ],
)
def test_sources_are_checked(fields, words):
    with pytest.raises(ConfigError, match=words):
        Source("talk", "x.jsonl", **{"kind": "chat", **fields})


def test_conversations_as_text_for_a_tokenizer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(SINGLE["openai"]) + "\n" + json.dumps({"messages": []}) + "\n")
    source = Source("talk", str(path), kind="chat")
    (job,) = plan_jobs([scan(str(path), True)])
    assert [d.text for d in texts(source, job)] == ["Q\nA"]
