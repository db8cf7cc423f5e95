"""Runs that train adapters: from a gin file to the end, killed, continued, on another base."""

import shutil

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from t5x_llm.cli import main as command
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.nn.adapters import roots
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.run.load import load

LORA = """
include 'tiny.gin'
Run.directory = 'lora'
Run.start_from = 'run/hf'
Run.adapter = @LoRA()
LoRA.rank = 4
LoRA.dropout = 0.1
LoRA.rate_ratio = 4.0
"""


@pytest.fixture
def there(trained, monkeypatch):
    """A finished run, its export, and a gin file that trains adapters on that."""
    directory, _ = trained
    (directory / "lora.gin").write_text(LORA)
    monkeypatch.chdir(directory)
    return directory


def test_a_run_trains_adapters_and_keeps_them_alone(there):
    done = tiny.train(there, gin="lora.gin")
    assert "Next: t5x-llm generate lora" in done.stderr
    losses = tiny.losses(there / "lora")
    assert len(losses) == 8 and losses[8] < losses[1] + 0.1
    saved = tiny.arrays(there / "lora", 8)
    assert not any("base" in path or "embed" in path for path in saved)
    adapters = [path for path in saved if ".params['adapter']" in path or "['params']" in path]
    assert len(adapters) == 14 and all("adapter" in path for path in adapters)
    size = sum(x.nbytes for x in saved.values())
    whole = sum(x.nbytes for x in tiny.arrays(there / "run", 8).values())
    assert size < 0.7 * whole
    # What a killed process left at step 4 goes on to the same bits.
    for step in (6, 8):
        shutil.rmtree(there / "lora" / "checkpoints" / str(step))
    (there / "lora" / "journal.jsonl").unlink()
    tiny.train(there, gin="lora.gin")
    for path, value in tiny.arrays(there / "lora", 8).items():
        np.testing.assert_array_equal(value, saved[path], err_msg=path)
    # The model that is used has the adapters.
    used, base = load("lora", compute="float32"), load("run/hf")
    prompt = np.arange(3, 11, dtype=np.int32)[None]
    with_, without = (
        np.asarray(m.model.logits(m.params, m.model.apply(m.params, prompt)[0]))
        for m in (used, base)
    )
    assert np.abs(with_ - without).max() > 1e-4 and used.step == 8
    command.main(["generate", "lora", "--prompt", "ab", "--max_tokens", "3"])
    _other_base(there)


def _other_base(there):
    """The base's weights are changed under the adapters."""
    file = there / "run" / "hf" / "model.safetensors"
    tensors = load_file(file)
    shutil.copy(file, there / "kept.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, file)
    done = tiny.train(there, "--gin.Loop.steps=10", gin="lora.gin", check=False)
    assert done.returncode == 2 and "Adapters mean nothing on another base" in done.stderr
    with pytest.raises(CheckpointError, match="trained on the base .*run/hf"):
        load("lora")
    shutil.copy(there / "kept.safetensors", file)


def run_of(*bindings):
    return load_run(parse_flags(["--gin_file=lora.gin", *(f"--gin.{b}" for b in bindings)]))[0]


def test_what_an_adapter_cannot_go_with_is_refused(there):
    for bindings, match in [
        (["Run.start_from=None"], r"Run\.start_from.*the directory of a model.*t5x-llm import"),
        (["Optimizer.trained=('embed',)"], r"Optimizer\.trained.*freezes all of the model"),
        (["Run.base_storage='float16'"], r"Run\.base_storage"),
        (["Run.adapter=@Llama()"], r"Run\.adapter.*an Adapter"),
    ]:
        with pytest.raises(ConfigError, match=match):
            run_of(*bindings)


def test_the_state_has_gradients_and_moments_of_adapters_alone(there):
    made = assemble(run_of())
    sizes = {
        root: sum(x.size for x in jax.tree.leaves(part)) for root, part in made.state.params.items()
    }
    assert set(sizes) == {roots.BASE, roots.ADAPTER}
    moments = sum(x.size for x in jax.tree.leaves(made.state.opt_state) if x.ndim)
    assert moments == 2 * sizes[roots.ADAPTER]
    assert {x.dtype.name for x in jax.tree.leaves(made.state.params[roots.BASE])} == {"bfloat16"}
    # 4 N of what is frozen (the table is looked up), 6 N of adapters, attention of 2 layers of 32.
    frozen = sizes[roots.BASE] - 400 * 32
    expected = 4 * frozen + 6 * sizes[roots.ADAPTER] + 6 * 32 * 2 * 32
    assert made.flops_per_token == pytest.approx(expected, abs=12)
