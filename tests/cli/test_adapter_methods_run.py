"""Runs that train by AdaLoRA, (IA)3, bottlenecks and virtual tokens, from a gin file to the end."""

import json
import shutil

import numpy as np
import pytest
import tiny

from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError
from t5x_llm.run.config import load_run
from t5x_llm.run.load import load

START = """
include 'tiny.gin'
Run.directory = '{method}'
Run.start_from = 'run/hf'
Run.adapter = @{method}()
Optimizer.weight_decay = 0.0
"""
ADALORA = """
AdaLoRA.rank = 4
AdaLoRA.target_rank = 2
AdaLoRA.start = 1
AdaLoRA.final = 2
AdaLoRA.every = 2
"""
KERNELS = 14  # seven a layer


@pytest.fixture
def there(trained, monkeypatch):
    """A finished run, its export, and a place for gin files."""
    directory, _ = trained
    monkeypatch.chdir(directory)
    return directory


def written(there, method, *lines):
    (there / f"{method}.gin").write_text("\n".join([START.format(method=method), *lines]))
    return f"{method}.gin"


def test_adalora_reaches_its_target_rank_and_goes_on_to_the_bit(there):
    gin, run = written(there, "AdaLoRA", ADALORA), there / "AdaLoRA"
    tiny.train(there, gin=gin)
    saved = tiny.arrays(run, 8)
    e = {path: x for path, x in saved.items() if "['params']" in path and path.endswith("['e']")}
    assert sum(x.shape[0] for x in e.values()) == KERNELS
    assert sum(np.count_nonzero(x) for x in e.values()) == 2 * KERNELS
    kept = {path: x for path, x in saved.items() if "['kept']" in path}
    assert sum(int(x.sum()) for x in kept.values()) == 2 * KERNELS
    early = tiny.arrays(run, 2)
    left = sum(int(x.sum()) for path, x in early.items() if "['kept']" in path)
    assert 2 * KERNELS < left < 4 * KERNELS
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    penalties = [line["adapter_penalty"] for line in lines if line["kind"] == "train"]
    assert len(penalties) == 8 and penalties[-1] < penalties[0]
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    (run / "journal.jsonl").unlink()
    tiny.train(there, gin=gin)
    for path, value in tiny.arrays(run, 8).items():
        np.testing.assert_array_equal(value, saved[path], err_msg=path)


METHODS = {
    "IA3": (),
    "Bottleneck": ("Bottleneck.size = 4",),
    "Prefix": ("Prefix.tokens = 3",),
    "Prompt": ("Prompt.tokens = 3",),
    "PTuning": ("PTuning.tokens = 3", "PTuning.hidden = 8"),
}


@pytest.mark.extended
@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_evaluates_samples_and_is_loaded(there, method):
    gin, run = written(there, method, *METHODS[method], "Loop.steps = 4"), there / method
    tiny.train(there, gin=gin)
    assert all(np.isfinite(loss) for loss in tiny.losses(run).values())
    saved = tiny.arrays(run, 4)
    assert not any("embed" in path.replace("embedding", "") for path in saved)
    early, late = (tiny.arrays(run, step) for step in (2, 4))
    for path in (p for p in saved if "['params']" in p):
        assert not np.array_equal(early[path], late[path]), path
    assert (run / "samples.txt").read_text().count("ab") >= 1
    used = load(method, compute="float32")
    prompt = np.arange(3, 11, dtype=np.int32)[None]
    hidden, _ = used.model.apply(used.params, prompt)
    plain, _ = used.model.bare.apply(load("run/hf").params, prompt)
    assert np.abs(hidden - plain).max() > 1e-4


def run_of(gin, *bindings):
    return load_run(parse_flags([f"--gin_file={gin}", *(f"--gin.{b}" for b in bindings)]))[0]


MAMBA = ("vocab_size=400", "d_model=32", "n_layers=2")


def test_rows_before_the_input_need_causal_attention(there):
    gin = written(there, "Prompt")
    mamba = ("Run.model=@Mamba()", *(f"Mamba.{x}" for x in MAMBA))
    with pytest.raises(ConfigError, match=r"Run\.adapter.*Several texts share a row"):
        run_of(gin, *mamba)


def test_virtual_tokens_take_positions(there):
    gin = written(there, "Prefix", "Prefix.tokens = 33")
    with pytest.raises(ConfigError, match="max_length = 64, less the 33 virtual tokens"):
        run_of(gin)
    assert run_of(gin, "Prefix.tokens=32").adapter.tokens == 32
