"""Runs that train adapters on a base in few bits: continued to the bit, and then used."""

import shutil

import gptqs
import jax
import numpy as np
import pytest
import tiny

from t5x_llm.cli import main as command
from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError
from t5x_llm.models.weight_map import flatten
from t5x_llm.nn.adapters import roots
from t5x_llm.nn.fewbit.stored import dequantise, is_stored
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.run.load import load
from t5x_llm.run.start import imported

QLORA = """
include 'tiny.gin'
Run.directory = 'qlora'
Run.start_from = 'run/hf'
Run.adapter = @LoRA()
Run.base_storage = 'nf4'
LoRA.rank = 4
LoRA.dropout = 0.1
"""


def test_a_qlora_run_goes_on_to_the_bit_and_is_used(trained, monkeypatch):
    there, _ = trained
    (there / "qlora.gin").write_text(QLORA)
    monkeypatch.chdir(there)
    tiny.train(there, gin="qlora.gin")
    saved = tiny.arrays(there / "qlora", 8)
    assert all("adapter" in path for path in saved if "params" in path)
    assert not any("codes" in path or "kernel" in path for path in saved)
    for step in (6, 8):
        shutil.rmtree(there / "qlora" / "checkpoints" / str(step))
    (there / "qlora" / "journal.jsonl").unlink()
    tiny.train(there, gin="qlora.gin")
    for path, value in tiny.arrays(there / "qlora", 8).items():
        np.testing.assert_array_equal(value, saved[path], err_msg=path)

    # What is evaluated and generated from holds the same codes, and computes as they say.
    run = load_run(parse_flags(["--gin_file=qlora.gin"]))[0]
    assembled = assemble(run)
    base, used = imported(assembled), load("qlora", compute="float32")
    held, expected = flatten(base), assembled.state.params[roots.BASE]
    assert sum(map(is_stored, held.values())) == 7
    sizes = [sum(x.nbytes for x in jax.tree.leaves(t)) for t in (base, jax.device_get(base))]
    assert sizes[0] == sizes[1] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(expected))
    loaded = flatten(used.params)
    for path, kernel in held.items():
        if is_stored(kernel):
            np.testing.assert_array_equal(kernel.codes, loaded[path].codes)
    prompt = np.arange(3, 11, dtype=np.int32)[None]

    def logits(params):
        return np.asarray(used.model.logits(params, used.model.apply(params, prompt)[0]))

    few = logits(used.params)
    np.testing.assert_allclose(few, logits(dequantise(used.params)), rtol=1e-4, atol=1e-4)
    whole = load("run/hf")
    other = whole.model.logits(whole.params, whole.model.apply(whole.params, prompt)[0])
    assert np.abs(few - np.asarray(other)).max() > 1e-3
    command.main(["generate", "qlora", "--prompt", "ab", "--max_tokens", "3"])


@pytest.mark.extended
def test_adapters_beside_a_gptq_directory_are_trained_and_used(trained, monkeypatch):
    there, _ = trained
    (there / "qlora.gin").write_text(QLORA)
    monkeypatch.chdir(there)
    gptqs.write(there / "run" / "hf", there / "gptq", group=16, desc_act=True)
    with pytest.raises(ConfigError, match="quantised"):
        load("gptq")  # as any model it is refused
    flags = ["--gin.Run.base_storage='gptq'", "--gin.Loop.steps=4"]
    flags += ["--gin.Run.start_from='gptq'", "--gin.Run.directory='llmtune'"]
    tiny.train(there, *flags, gin="qlora.gin")
    used = load("llmtune", compute="float32")
    kernels = [x for x in flatten(used.params).values() if is_stored(x)]
    assert len(kernels) == 7 and all(x.bits == 4 for x in kernels)
    plain = parse_flags(["--gin_file=qlora.gin", *flags, "--gin.Run.start_from='run/hf'"])
    with pytest.raises(ConfigError, match="no GPTQ directory"):
        assemble(load_run(plain)[0])
