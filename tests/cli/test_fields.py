"""The list of what gin can set: nothing lacks a text, and every mistake says what is near."""

import json

import pytest

from t5x_llm.cli import fields
from t5x_llm.cli import main as command
from t5x_llm.cli.registered import entries
from t5x_llm.core.errors import ConfigError


def test_every_field_has_a_type_and_a_text():
    known = entries()
    assert {"Run", "Loop", "Llama", "Clean", "Job"} <= known.keys() and len(known) > 90
    for entry in known.values():
        assert entry.summary, entry.name
        for field in entry.fields:
            assert field.help and field.type, f"{entry.name}.{field.name}"


def test_figures_of_some():
    known = entries()
    loop = {f.name: f for f in known["Loop"].fields}
    assert (loop["steps"].type, loop["steps"].default) == ("int", None)
    mixture = {f.name: f for f in known["Mixture"].fields}
    assert mixture["rates"].type == "str | tuple[float, ...]"
    assert mixture["rates"].default == "'proportional'" and mixture["sources"].default is None
    run = {f.name: f for f in known["Run"].fields}
    assert run["optimizer"].default == "@Optimizer()" and run["stability"].default == "None"
    shared = {f.name: f.help for f in known["GopherQuality"].fields}
    assert shared["min_words"] == shared["max_words"]  # one entry for two names
    assert known["Qwen2"].fields[0].help == "V."  # from the class it derives from


def test_commands(capsys):
    command.main(["fields"])
    out = capsys.readouterr().out
    assert "\nrun:\n" in f"\n{out}" and "\nmodels:\n" in out and "  Loop " in out
    assert max(map(len, out.splitlines())) <= 100
    command.main(["fields", "Loop"])
    assert "Loop.steps: int, must be set" in capsys.readouterr().out
    command.main(["fields", "en/Source.files", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [e["name"] for e in found] == ["Source"]
    assert [f["name"] for f in found[0]["fields"]] == ["files"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("Lop", "Did you mean 'Loop'"),
        ("Loop.step", "Did you mean 'steps'"),
        ("batch_size", r"Loop\.batch_size"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ConfigError, match=message):
        fields.select(entries(), name)
