"""What a plan of this machine or a former run compiled, training does not compile again."""

import subprocess
import sys

import pytest
import tiny

FLAGS = ["--gin.Export.enabled=False", "--gin.Samples.prompts=()", "--gin.Loop.eval_every=0"]
FLAGS += ["--gin.Loop.steps=2", "--gin.Schedule.warmup_steps=1"]


@pytest.mark.slow
def test_the_step_is_compiled_once(tmp_path):
    tiny.corpus(tmp_path)
    cache = tmp_path / "compiled"
    env = tiny.environment() | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run(*words):
        argv = [sys.executable, "-m", "t5x_llm.cli.main", *words, "--gin_file=tiny.gin", *FLAGS]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return sorted(p.name for p in cache.glob("jit_train_step-*-cache"))

    planned = run("plan", "--slice=here")
    assert len(planned) == 1
    assert run("train") == planned
    assert run("train", "--gin.Run.directory='again'") == planned
    assert run("train", "--gin.Run.directory='other'", "--gin.Llama.d_ff=96") != planned
