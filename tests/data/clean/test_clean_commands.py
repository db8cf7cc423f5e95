"""``t5x-llm data clean``, ``dedup`` and ``decontaminate``, as a user types them."""

import json

import pytest

from t5x_llm.cli import data
from t5x_llm.cli.data_clean import load_clean
from t5x_llm.config import parse_flags

RECIPE = "--gin_file=configs/data/clean_bilingual.gin"


@pytest.fixture
def flags(tmp_path):
    """One short document, two copies, and one that holds an item of an evaluation set."""
    item = "what is the name of the longest river in the land of the north"
    long = " ".join(f"word{i}" for i in range(90))
    texts = ["short", long, long, f"{long} {item} {long[::-1]}"]
    for name, lines in (("a", texts), ("eval", [item])):
        rows = "".join(json.dumps({"text": t}) + "\n" for t in lines)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    return [
        "--gin.Clean.inputs=(@Input(),)",
        "--gin.Input.name='in'",
        f"--gin.Input.files='{tmp_path}/a.jsonl'",
        f"--gin.Clean.output='{tmp_path}/out'",
        "--gin.Clean.steps=(@GopherQuality(),)",
        "--gin.GopherQuality.min_stop_words=0",
        "--gin.Clean.dedup=@Dedup()",
        "--gin.Clean.decontaminate=@Decontaminate()",
        "--gin.Decontaminate.sets=(@EvalSet(),)",
        "--gin.EvalSet.name='river'",
        f"--gin.EvalSet.files='{tmp_path}/eval.jsonl'",
        "--gin.Clean.workers=1",
    ]


@pytest.mark.parametrize(
    ("command", "kept", "removed"),
    [("clean", ["#2"], {"#3": "a copy", "#4": "in river"}),
     ("dedup", ["#1", "#2", "#4"], {"#3": "a copy"}),
     ("decontaminate", ["#1", "#2", "#3"], {"#4": "in river"})],
)  # fmt: skip
def test_each_command_does_its_part(tmp_path, flags, command, kept, removed, capsys):
    data.main([command, *flags, "--gin.Clean.compression='none'"])
    out = tmp_path / "out"
    rows = [json.loads(x) for p in (out / "data").iterdir() for x in p.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"in/a.jsonl{n}" for n in kept]
    listed = [json.loads(x) for x in (out / "removed.jsonl").read_text().splitlines()]
    assert {e["id"]: e["reason"] for e in listed} == {
        f"in/a.jsonl{n}": reason for n, reason in removed.items()
    }
    assert f"see {out}/report.html" in capsys.readouterr().out


def test_mistakes_end_with_a_message(flags, capsys):
    left = [f for f in flags if "dedup" not in f]
    for argv, said in (
        (["dedup", *left], "Clean.dedup = None: expected a Dedup. Add `Clean.dedup = @Dedup()`."),
        (["clean"], "expected a gin file"),
        (["clean", *flags, "--gin.Clean.runner='spark'"], "expected one of beam, pool"),
        (["clean", *flags, "--gin.Clean.beam_options=('--x',)"], "Set Clean.runner = 'beam'"),
        (["clen"], "Did you mean 'clean'"),
    ):
        with pytest.raises(SystemExit) as ended:
            data.main(argv)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_the_shipped_recipe_loads():
    clean, unused = load_clean(parse_flags([RECIPE]))
    assert not unused and len(clean.inputs) == 2 and clean.dedup.minhash.shape[0] > 8
