"""The other commands, on the tiny run and its export."""

import errno
import json
import shutil

import pytest
import tiny

from t5x_llm.cli import main as command
from t5x_llm.cli.main import COMMANDS


@pytest.fixture
def there(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith("usage:") and "-h, --help" in out


def test_usage_and_misspelt_commands(capsys):
    command.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    with pytest.raises(SystemExit) as ended:
        command.main(["genrate"])
    assert ended.value.code == 2 and "Did you mean 'generate'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main(["train"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--gin_file=configs/recipes/quickstart.gin" in said
    for argv in (["eval", "nowhere"], ["generate", "nowhere", "--prompt", "a"], ["report", "x"]):
        with pytest.raises(SystemExit) as ended:
            command.main(argv)
        assert ended.value.code == 2 and argv[1] in capsys.readouterr().err


def test_interruptions_and_disks_end_plainly(capsys):
    def fails(error):
        def function(argv):
            raise error

        with pytest.raises(SystemExit) as ended:
            command.guard(function, [])
        return ended.value.code, capsys.readouterr().err

    assert fails(KeyboardInterrupt()) == (130, "Interrupted.\n")
    code, said = fails(OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl"))
    assert code == 2 and "run/metrics.jsonl" in said and "Free space" in said
    with pytest.raises(OSError):
        command.guard(lambda argv: open("nowhere/at/all"), [])


def test_eval_of_the_run_and_of_its_export(there, capsys):
    command.main(["eval", "run", "--json"])
    run = json.loads(capsys.readouterr().out)
    command.main(["eval", "run/hf", "--gin_file=tiny.gin", "--json"])
    export = json.loads(capsys.readouterr().out)
    assert {"en", "zh"} <= run.keys() == export.keys()
    for name in run:
        assert run[name]["tokens"] == export[name]["tokens"] > 0
        assert run[name]["loss"] == pytest.approx(export[name]["loss"], rel=2e-2)
    lines = (there / "run" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(x) for x in lines if '"eval"' in x][-1]["results"]
    assert run["en"]["bits_per_byte"] == pytest.approx(last["en"]["bits_per_byte"], rel=2e-3)


def test_generate(there, capsys, monkeypatch):
    flags = ["--temperature", "0", "--max_tokens", "3", "--dtype", "float32"]
    for path in ("run", "run/hf"):
        command.main(["generate", path, "--prompt", "ab", "--prompt", "春", *flags])
    texts = capsys.readouterr().out
    half = len(texts) // 2
    assert texts[:half] == texts[half:] and texts.startswith("ab") and "\n春" in texts


def test_export_import_parity(there, tmp_path, capsys):
    out = str(tmp_path / "exported")
    command.main(["export", "run", out, "--dtype", "bfloat16", "--max_shard_bytes", "60000"])
    assert "Wrote" in capsys.readouterr().out
    assert (tmp_path / "exported" / "model.safetensors.index.json").exists()
    command.main(["parity", out])
    assert "stored as" in capsys.readouterr().out
    command.main(["import", out, str(tmp_path / "again")])
    said = capsys.readouterr().out
    assert "Llama.n_layers = 2" in said and "Run.start_from" in said
    assert (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.extended
def test_train_from_an_import(there, tmp_path):
    flags = [f"--gin.Run.directory='{tmp_path}/run'", "--gin.Run.start_from='run/hf'"]
    tiny.train(there, *flags, "--gin.Loop.steps=2", "--gin.Schedule.warmup_steps=1")
    first = tiny.losses(tmp_path / "run")[1]
    whole = tiny.losses(there / "run")
    assert first < whole[6]


def test_report_is_rebuilt(there, tmp_path, capsys):
    shutil.copytree(there / "run", tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    command.main(["report", str(tmp_path / "run")])
    assert (tmp_path / "run" / "report.html").exists()
    assert "report.html" in capsys.readouterr().out
