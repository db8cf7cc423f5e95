"""A small base model with a tokenizer of bytes, and four sources of their own kind of text."""

import json
import random

import jax
import pytest

ALPHABETS = {"ant": "abcdefgh", "bee": "ijklmnop", "cat": "qrstuvwx", "dog": "abqrijyz"}
GIN = """
Run.directory = 'run'
Run.start_from = 'base'
Run.base_storage = 'float32'
Run.adapter = @LoRA()
Run.federated = @Federated()
LoRA.rank = 4
LoRA.alpha = 8
Federated.local_steps = 2
Run.model = @Llama()
Llama.vocab_size = 257
Llama.d_model = 16
Llama.n_layers = 2
Llama.n_heads = 2
Llama.n_kv_heads = 1
Llama.d_ff = 32
Llama.max_length = 64
Policy.compute = 'float32'
Data.store_dir = 'store'
Data.tokenizer = 'base'
Data.validation_fraction = 0.1
Data.mixture = @Mixture()
Mixture.sources = (@ant/Source(), @bee/Source(), @cat/Source(), @dog/Source())
Mixture.rates = (1, 1, 1, 1)
Loop.steps = 6
Loop.batch_size = 2
Loop.sequence_length = 32
Loop.log_every = 1
CheckpointConfig.every_steps = 2
CheckpointConfig.keep = 10
Optimizer.weight_decay = 0.0
Schedule.peak = 2e-2
Schedule.warmup_steps = 1
"""


def write_sources(directory):
    draw = random.Random(0)
    for number, (name, letters) in enumerate(ALPHABETS.items()):
        words = ["".join(draw.choices(letters, k=3)) for _ in range(8)]
        rows = [
            json.dumps({"text": " ".join(draw.choices(words, k=30))})
            for _ in range(40 + 20 * number)
        ]
        (directory / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


def gin():
    sources = "".join(
        f"{name}/Source.name = '{name}'\n{name}/Source.files = '{name}.jsonl'\n"
        for name in ALPHABETS
    )
    return GIN + sources


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A directory with ``fed.gin``, its sources and ``base``, a model that knows nothing yet."""
    from t5x_llm.core.dtypes import Policy
    from t5x_llm.hf.export import export_hf
    from t5x_llm.models.families import FAMILIES
    from t5x_llm.models.model import Model
    from t5x_llm.text import load_tokenizer

    directory = tmp_path_factory.mktemp("federated")
    write_sources(directory)
    (directory / "fed.gin").write_text(gin())
    family = FAMILIES["llama"](
        vocab_size=257, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=32, max_length=64
    )
    model = Model(family.decoder(), Policy(compute="float32"))
    params = jax.device_get(model.init(jax.random.key(0)))
    export_hf(params, family, load_tokenizer("bytes"), str(directory / "base"))
    return directory
