"""A run that takes seconds: two small sources, a small model, and ways to start commands."""

import json
import os
import pathlib
import random
import subprocess
import sys

from compiling import QUICKLY

ROOT = pathlib.Path(__file__).parents[2]
CACHE = str(ROOT / ".cache" / "jax-tests")
GIN = """
Run.directory = 'run'
Run.model = @Llama()
Llama.vocab_size = 400
Llama.d_model = 32
Llama.n_layers = 2
Llama.n_heads = 4
Llama.n_kv_heads = 2
Llama.d_ff = 64
Llama.max_length = 64
Data.store_dir = 'store'
Data.tokenizer = @TokenizerTraining()
Data.validation_fraction = 0.1
TokenizerTraining.vocab_size = 400
Data.mixture = @Mixture()
Mixture.sources = (@en/Source(), @zh/Source())
en/Source.name = 'en'
en/Source.files = 'en.jsonl'
en/Source.language = 'en'
zh/Source.name = 'zh'
zh/Source.files = 'zh.jsonl'
zh/Source.language = 'zh'
Loop.steps = 8
Loop.batch_size = 8
Loop.sequence_length = 32
Loop.eval_every = 4
Loop.log_every = 1
CheckpointConfig.every_steps = 2
CheckpointConfig.keep = 10
Samples.prompts = ('ab', '春')
Sampling.max_tokens = 4
Schedule.peak = 1e-2
Schedule.warmup_steps = 2
"""


def corpus(directory, documents=60):
    """``tiny.gin`` and its two sources in ``directory``."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(200)]
    texts = {
        "en": [" ".join(draw.choices(words, k=60)) for _ in range(documents)],
        "zh": [
            "".join(draw.choices("春风花月夜山水人天地日云雨雪", k=80)) for _ in range(documents)
        ],
    }
    for name, lines in texts.items():
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in lines]
        (directory / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (directory / "tiny.gin").write_text(GIN, encoding="utf-8")


def environment(devices=1, long=False):
    """Of a command: few devices, no accelerator; quick compilation unless it runs ``long``."""
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if not long:
        flags += QUICKLY
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": CACHE,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def python(*arguments, cwd, check=True, long=False, **more):
    """Runs the interpreter and gives what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(long=long),
        capture_output=True,
        text=True,
        timeout=900 if long else 300,
        **more,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def train(cwd, *flags, gin="tiny.gin", check=True, **more):
    """``python train.py`` in ``cwd``."""
    return python(ROOT / "train.py", f"--gin_file={gin}", *flags, cwd=cwd, check=check, **more)


def losses(run):
    """{step: loss} of the lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def arrays(run, step):
    """Every array of a checkpoint, by path, whatever devices it was saved from."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = run.absolute() / "checkpoints" / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    whole = ocp.RestoreArgs(restore_type=np.ndarray)
    wanted = jax.tree.map(lambda _: whole, handler.metadata(path).tree)
    tree = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in flat}
