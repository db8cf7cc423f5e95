"""The shipped dialogues are what their script writes, are small, and hold entities out."""

import importlib.util
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
DIALOGUES = ROOT / "data" / "dialogues"


def script():
    spec = importlib.util.spec_from_file_location(
        "make_dialogues", ROOT / "scripts/make_dialogues.py"
    )
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def rows(name):
    return [json.loads(line) for line in (DIALOGUES / name).read_text("utf-8").splitlines()]


def test_the_script_writes_the_files():
    found = script().files()
    for name, content in found.items():
        assert (DIALOGUES / name).read_bytes() == content.encode()
    assert {p.name for p in DIALOGUES.iterdir()} == {*found, "README.md"}
    assert 100_000 < sum(len(content.encode()) for content in found.values()) < 300_000


def test_the_tables_are_whole():
    facts = list(script().facts())
    assert len({fact["en"] for fact in facts}) == len({fact["zh"] for fact in facts}) == len(facts)
    assert all(len(set(fact)) == 8 and all(fact.values()) for fact in facts)


def test_conversations_have_turns_and_held_out_entities():
    entities = {name: {row["id"].split("/")[1] for row in rows(name)} for name in
                ("en.jsonl", "zh.jsonl", "heldout.jsonl")}  # fmt: skip
    assert entities["en.jsonl"] == entities["zh.jsonl"] and len(entities["heldout.jsonl"]) > 15
    assert not entities["en.jsonl"] & entities["heldout.jsonl"]
    readme = (DIALOGUES / "README.md").read_text("utf-8")
    for name in entities:
        each = rows(name)
        assert f"| `{name}` " in readme and f"| {len(each)} |" in readme
        assert len({row["id"] for row in each}) == len(each)
        for row in each:
            roles = [m["role"] for m in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert all(m["content"].strip() == m["content"] != "" for m in row["messages"])
