"""delta, merge and resize, and the long spellings of import and export, on the tiny run."""

import json

import numpy as np
import pytest
import yaml

from t5x_llm.checkpoint import Checkpointer
from t5x_llm.cli import main as command
from t5x_llm.hf.import_ import import_model
from t5x_llm.hf.safetensors_io import SafetensorsReader
from t5x_llm.models.weight_map import flatten


@pytest.fixture
def there(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        command.main(list(map(str, argv)))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_checkpoints_of_a_run_are_averaged(there, tmp_path, capsys):
    command.main(["merge", "run", str(tmp_path / "out"), "--last", "3"])
    said = capsys.readouterr().out
    assert "Averaging steps 4, 6, 8 of run." in said and "logits within" in said
    checkpointer = Checkpointer(there / "run" / "checkpoints", read_only=True)
    trees = [flatten(checkpointer.open_params(step)) for step in (4, 6, 8)]
    checkpointer.close()
    found = flatten(import_model(tmp_path / "out", check=False).params)
    for path, array in found.items():
        mean = np.mean([np.asarray(t[path], np.float64) for t in trees], axis=0)
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-9)
    assert "the checkpoints are" in refused(capsys, "merge", "run", tmp_path / "x", "--last", 9)
    assert "--last N or --steps" in refused(capsys, "merge", "run", tmp_path / "x")
    assert "of one run" in refused(capsys, "merge", "run/hf", "run/hf", tmp_path / "x", "--last", 2)


def test_the_card_of_an_export_says_what_the_run_recorded(there):
    card = (there / "run" / "hf" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front and front["pipeline_tag"] == "text-generation"
    assert "Trained with t5x_llm for 8 steps and exported in float32." in card
    for line in ("| steps | 8 |", "## Evaluation", "at step 8", "## Data", "## Limits"):
        assert line in card
    assert "not recorded" not in card and str(there) not in card


def test_from_run_to_delta_and_back(there, tmp_path, capsys):
    early, late, delta, back = (str(tmp_path / name) for name in ("early", "late", "delta", "back"))
    command.main(["export", "hf", "run", early, "--step", "2", "--dtype", "float16"])
    command.main(["import", "hf", "run/hf", late, "--dtype", "float16"])
    command.main(["delta", "make", early, late, delta])
    assert "every bit" in capsys.readouterr().out
    command.main(["delta", "apply", early, delta, back])
    assert "every bit is the tuned model's" in capsys.readouterr().out
    a, b = SafetensorsReader(late), SafetensorsReader(back)
    assert all(a.read(name).tobytes() == b.read(name).tobytes() for name in a.names())
    assert import_model(back, check=False).tokenizer is not None
    command.main(["merge", early, late, str(tmp_path / "merged"), "--weights", "0.25", "0.75"])
    command.main(["resize", late, str(tmp_path / "padded"), "--multiple", "256"])
    assert "400 -> 512 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "padded/config.json").read_text())["vocab_size"] == 512
    assert "vocab_size" in refused(capsys, "merge", late, tmp_path / "padded", tmp_path / "x")
    assert "a .gguf file" in refused(capsys, "import", "gguf", late, tmp_path / "x")
    assert not (tmp_path / "x").exists()
