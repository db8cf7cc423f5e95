"""The Python API: the same runs and figures as the commands, from Python."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import tiny

from t5x_llm import api
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError
from t5x_llm.run.config import load_run as load_by_flags

TRAIN = """
from t5x_llm import api
run = api.load_run("tiny.gin", bindings={"Run.directory": "mine", "Loop.steps": 8})
assert sum(s.train.tokens for s in api.prepare(run).stores.values()) > 0
result = api.train(run, resume="never")
assert result.step == 8 == result.metrics[-1]["step"] and set(result.evaluations) == {4, 8}
assert result.held_out["all"]["loss"] < result.evaluations[4]["all"]["loss"] * 1.1
assert result.load().model.parameter_count()["total"] > 0
try:
    api.train(run, resume="never")
except api.T5xLLMError as e:
    assert "--resume=never" in str(e)
else:
    raise AssertionError("trained again")
"""


@pytest.fixture
def there(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


def test_the_package_and_the_api_start_without_jax():
    program = (
        "import sys, t5x_llm, t5x_llm.launch; t5x_llm.api.load_run;"
        "assert not {'jax', 'numpy', 'gin'} & set(sys.modules), sorted(sys.modules);"
        "from t5x_llm import *; api.Sampling; assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert all(getattr(api, name).__doc__ for name in api.__all__)
    with pytest.raises(AttributeError):
        api.nothing  # noqa: B018


def test_bindings_are_those_of_the_command_line(here):
    flags = ["--gin_file=tiny.gin", "--gin.Loop.steps=10", "--gin.Run.directory='a b'"]
    flags += ["--gin.Mixture.sources=(@en/Source(), @zh/Source())"]
    flags += ["--gin.Samples.prompts=('x',)", "--gin.Run.stability=@Stability()"]
    run, resolved = load_by_flags(parse_flags(flags))
    bindings = {"Loop.steps": 10, "Run.directory": "a b"}
    bindings |= {"Samples.prompts": ("x",), "Run.stability": "@Stability()"}
    bindings |= {"Mixture.sources": ("@en/Source()", "@zh/Source()")}
    one = api.load_run("tiny.gin", bindings=bindings)
    two = api.load_run(here / "tiny.gin", bindings=[f"{f[6:]}" for f in flags[1:]])
    three = api.load_run("tiny.gin").with_bindings(bindings)
    for found in (one, two, three):
        assert found.config == run and found.directory == "a b"
        assert found.operative_config == resolved.operative_config_text()
    with pytest.raises(ConfigError, match=r"Loop\.step .*Did you mean Loop\.steps"):
        api.load_run("tiny.gin", bindings={"Loop.step": 1})
    with pytest.raises(ConfigError, match="Loop.steps = .*numbers, strings"):
        api.load_run("tiny.gin", bindings={"Loop.steps": object()})


@pytest.mark.extended
def test_training_is_the_command_s_to_the_bit(trained, tmp_path):
    tiny.corpus(tmp_path)
    tiny.python("-c", TRAIN, cwd=tmp_path)
    assert tiny.losses(tmp_path / "mine") == tiny.losses(trained[0] / "run")
    mine = (tmp_path / "mine" / "operative_config.gin").read_text()
    theirs = (trained[0] / "run" / "operative_config.gin").read_text()
    assert mine.replace("'mine'", "'run'") == theirs


@pytest.mark.extended
def test_a_run_directory_reproduces_its_run(there):
    again = api.load_run("run")
    assert again.config == api.load_run("tiny.gin").config
    longer = api.load_run("run", bindings={"Loop.steps": 9}).config
    assert longer == dataclasses.replace(
        again.config, loop=dataclasses.replace(again.config.loop, steps=9)
    )
    assert "step 8 of 8 is done" in api.describe(again)


def test_data_that_cannot_be_prepared_is_an_exception(here, capfd):
    (here / "zh.jsonl").write_text('{"other": 1}\n')
    run = api.load_run("tiny.gin")
    with pytest.raises(api.T5xLLMError, match="no field 'text'"):
        api.prepare(run)
    with pytest.raises(api.T5xLLMError, match="message above"):
        api.train(run)
    assert "no field 'text'" in capfd.readouterr().err


def test_evaluation_of_paths_and_of_loaded_models(there):
    lines = (there / "run" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(x) for x in lines if '"eval"' in x][-1]["results"]
    by_path = api.evaluate("run")
    by_model = api.evaluate(api.load_model("run"))
    other = api.evaluate("run/hf", api.load_run("tiny.gin"))
    for results in (by_path, by_model, other):
        assert results.keys() == last.keys()
        for name in last:
            assert results[name]["documents"] == last[name]["documents"]
            assert results[name]["loss"] == pytest.approx(last[name]["loss"], rel=2e-2)
    assert by_path == by_model
    assert api.evaluate("run", limit=50)["en"]["documents"] < by_path["en"]["documents"]
    with pytest.raises(ConfigError, match=r"load_run"):
        api.evaluate("run/hf")


def test_one_prompt_and_several(there):
    greedy = api.Sampling(temperature=0, max_tokens=3)
    loaded = api.load_model("run", compute="float32")
    one = api.generate(loaded, "ab", greedy)
    two = api.generate(there / "run" / "hf", ["ab", "春"], greedy)
    assert [c.prompt for c in one + two] == ["ab", "ab", "春"]
    assert one[0] == two[0] and two[1].tokens
    with pytest.raises(ConfigError, match="tokenizer"):
        api.generate(loaded._replace(tokenizer=None), "ab")


def test_export_and_import(there, tmp_path):
    done = api.export_model("run", tmp_path / "out", dtype="bfloat16", step=4)
    assert done.directory == str(tmp_path / "out") and done.report.passed
    found = api.import_model(done.directory, tmp_path / "again")
    assert found.has_tokenizer and found.family == api.load_model(done.directory).family
    assert (tmp_path / "again" / "model.safetensors").exists()
    copied = tmp_path / "copied"
    shutil.copytree("run", copied, ignore=shutil.ignore_patterns("hf"))
    assert api.export_model(copied).directory == str(copied / "hf")
    with pytest.raises(ConfigError, match="out = None"):
        api.export_model("run/hf")


def test_plans_of_described_machines_and_of_this_one(here):
    from t5x_llm.plan.gpus import parse_machine
    from t5x_llm.plan.of_run import reckon_run
    from t5x_llm.plan.report import figures, text

    run = api.load_run("tiny.gin")
    planned = api.plan(run, "h100-8", tokens=1e9, price=2.0)
    plan, work = reckon_run(run.config, parse_machine("", "h100-8"), 1, 1e9, 2.0)
    assert planned.fits and planned.work == work and planned.plan.memory == plan.memory
    untimed = {"compile_seconds": 0, "compile_cpu_seconds": 0}
    assert planned.figures() | untimed == figures(plan, work) | untimed
    assert planned.text() == text(planned.plan, planned.work)
    here_ = api.plan(run, "here")
    assert here_.machine is None and here_.figures()["analytic"] is False and here_.fits
    for machine, slices, message in (("h100-8", 2, "1 for GPUs"), ("q-8", 1, "a TPU slice")):
        with pytest.raises(ConfigError, match=message):
            api.plan(run, machine, slices)


def test_what_does_not_fit_is_told_remedies(here):
    big = {"Llama.d_model": 8192, "Llama.n_layers": 64, "Llama.n_heads": 64, "Llama.d_ff": 28672}
    planned = api.plan(api.load_run("tiny.gin", bindings=big), "h100-8")
    assert not planned.fits and "Run.remat = 'full'" in planned.text()


def test_what_is_assembled_is_what_is_trained(here):
    import jax

    run = api.load_run("tiny.gin")
    found = api.assemble(run)
    assert found.run == run.config and found.batch.tokens.shape == (8, 32)
    assert found.mesh.size == jax.device_count()
    state, metrics = jax.eval_shape(found.step, *found.arguments)
    assert jax.tree.structure(state) == jax.tree.structure(found.state)
    assert "loss" in str(metrics)
