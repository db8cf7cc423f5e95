"""A run's adapter from training to PEFT's directory and on: exported, used, merged, begun from."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from t5x_llm import api
from t5x_llm.cli import main as command
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.run.adapters import check_adapter
from t5x_llm.run.config import load_run

LORA = """
include 'tiny.gin'
Run.directory = 'lora'
Run.start_from = 'run/hf'
Run.adapter = @LoRA()
LoRA.rank = 4
LoRA.targets = ('attention', 'mlp.down')
Loop.steps = 4
Export.adapter_for = ('peft', 'vllm')
"""


@pytest.fixture
def there(trained, monkeypatch):
    """A finished run, its export, and a gin file that trains adapters on that."""
    directory, _ = trained
    (directory / "lora.gin").write_text(LORA)
    monkeypatch.chdir(directory)
    return directory


def logits(model):
    prompt = np.arange(3, 19, dtype=np.int32)[None]
    hidden, _ = model.model.apply(model.params, prompt)
    return np.asarray(model.model.logits(model.params, hidden))


@pytest.mark.extended
def test_an_adapter_leaves_the_run_and_comes_back(there, capsys):
    done = tiny.train(there, gin="lora.gin")
    assert "adapter       lora/adapter (logits within" in done.stderr
    made = there / "lora" / "adapter"
    config = json.loads((made / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 16, "LORA")
    assert config["base_model_name_or_path"] == "run/hf"
    report = json.loads((made / "parity.json").read_text())
    assert report["passed"] and report["threshold"] == 1e-5
    # The command writes the same again.
    command.main(["export", "lora", "again"])
    assert "Wrote again: logits within" in capsys.readouterr().out
    first, second = (load_file(d / "adapter_model.safetensors") for d in (made, there / "again"))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    # Given to the base, it is the run's model but for the base's dtype there; and merged.
    given = api.load_model("run/hf", adapter="lora/adapter")
    command.main(["export", "lora", "merged", "--merge"])
    merged, trained = api.load_model("merged"), api.load_model("lora", compute="float32")
    wanted = logits(given)
    np.testing.assert_allclose(logits(merged), wanted, atol=2e-5)
    np.testing.assert_allclose(logits(trained), wanted, atol=0.05)
    assert np.abs(logits(api.load_model("run/hf")) - wanted).max() > 1e-3
    command.main(
        ["generate", "run/hf", "--adapter", "lora/adapter", "--prompt", "ab", "--max_tokens", "2"]
    )
    # A run that begins with it has its loss, not the base's.
    begun = ["Run.directory='on'", "Run.start_adapter='lora/adapter'", "Loop.steps=2"]
    begun += ["Schedule.warmup_steps=0", "Export.enabled=False"]
    tiny.train(there, *(f"--gin.{binding}" for binding in begun), gin="lora.gin")
    fresh = tiny.losses(there / "lora")[1]
    assert abs(tiny.losses(there / "on")[1] - fresh) > 1e-3
    with pytest.raises(SystemExit):
        command.main(["generate", "lora/adapter", "--prompt", "ab"])
    assert "--adapter lora/adapter" in capsys.readouterr().err


@pytest.mark.extended
@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("AdaLoRA", "adapter       {}/adapter (logits within"),
        ("IA3", "adapter       {}/adapter (logits within"),
        ("Prefix", "adapter       {}/adapter (Weights read back bit for bit"),
        ("Bottleneck", "adapter       in the run alone: .*keep the run"),
    ],
)
def test_every_method_ends_with_what_peft_has_of_it(there, method, said):
    place = method.lower()
    bindings = [f"Run.directory='{place}'", f"Run.adapter=@{method}()", "Loop.steps=2"]
    bindings += ["Schedule.warmup_steps=0", "Export.adapter_for=('peft',)"]
    if method == "Bottleneck":
        bindings[-1] = "Export.adapter_for=()"
        with pytest.raises(ConfigError, match="keep the run"):
            check_adapter(run_of("Run.adapter=@Bottleneck()"))
    done = tiny.train(there, *(f"--gin.{binding}" for binding in bindings), gin="lora.gin")
    assert re.search(said.format(place).replace("(", r"\("), done.stderr), done.stderr
    command.main(["generate", place, "--prompt", "ab", "--max_tokens", "2"])


def run_of(*bindings):
    return load_run(parse_flags(["--gin_file=lora.gin", *(f"--gin.{b}" for b in bindings)]))[0]


def test_what_could_not_be_loaded_or_begun_from_is_refused_before_training(there, tmp_path):
    check_adapter(run_of())
    for bindings, match in [
        (["LoRA.dora=True"], "vllm loads no DoRA"),
        (["Export.adapter_for=('gguf',)", "LoRA.dora=True"], "gguf loads no DoRA"),
        (["Export.adapter_for=('ollama',)"], "gguf, peft, vllm"),
        (["Run.adapter=None", "Run.start_adapter='x'"], r"Run\.adapter"),
    ]:
        with pytest.raises(ConfigError, match=match):
            check_adapter(run_of(*bindings))
    other = tmp_path / "other"
    shutil.copytree(tiny.ROOT / "tests/parity/golden/peft/llama_lora", other)
    with pytest.raises(CheckpointError, match="another base"):
        check_adapter(run_of(f"Run.start_adapter='{other}'"))
    with pytest.raises(CheckpointError, match="whole model, not an adapter"):
        check_adapter(run_of("Run.start_adapter='run/hf'"))
