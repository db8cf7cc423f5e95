"""t5x-llm journal."""

import json
import subprocess
import sys

import pytest
from journals import eventful, line, write

from t5x_llm.cli import main as command


def test_story_and_table(tmp_path, capsys):
    write(tmp_path / "journal.jsonl", eventful())
    command.main(["journal", str(tmp_path)])
    out = capsys.readouterr().out
    assert "rewound to step 50" in out and "Goodput 38.4%" in out and "lost to rewinds" in out
    command.main(["journal", str(tmp_path), "--all"])
    assert len(capsys.readouterr().out) > len(out)
    command.main(["journal", str(tmp_path), "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["lives"] == 3 and figures["rewinds"][0]["skip"] == [400, 2800]
    assert figures["goodput"] == pytest.approx(126.8 / 330)
    assert figures["seconds"]["rewinds"] == pytest.approx(47.8)


def test_no_journal(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["journal", str(tmp_path)])
    assert ended.value.code == 2 and "nothing to tell" in capsys.readouterr().err


def test_it_needs_no_jax_and_its_reader_may_leave(tmp_path):
    lines = [line(i, "damaged", i, 1, reason="x" * 300) for i in range(2000)]
    write(tmp_path / "journal.jsonl", lines)
    code = (
        "import sys; from t5x_llm.cli import main; "
        f"main.main(['journal', {str(tmp_path)!r}]); "
        "sys.stderr.write(' '.join(m for m in ('jax', 'matplotlib') if m in sys.modules))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert b"damaged" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
