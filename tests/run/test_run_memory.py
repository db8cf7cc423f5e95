"""What cannot fit is refused before it is compiled; running out of memory says what to do."""

import jax
import numpy as np
import pytest

from t5x_llm import api
from t5x_llm.core import memory as core
from t5x_llm.core.errors import ConfigError, OutOfMemory
from t5x_llm.parallel import make_mesh
from t5x_llm.run import memory as room

GIN = ["configs/models/llama/quickstart.gin", "configs/meshes/local.gin"]
LINES = [
    "Run.directory = 'nowhere'", "Data.store_dir = 'nowhere'", "Data.tokenizer = 'bytes'",
    "Data.mixture = @Mixture()", "Mixture.sources = (@s/Source(),)", "s/Source.name = 's'",
    "s/Source.files = 'nowhere.jsonl'", "Loop.steps = 2", "Loop.batch_size = 2",
    "Loop.sequence_length = 32", "Llama.max_length = 2147483647",
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Loop.batch_size", 2**30),
        ("Loop.sequence_length", 2**30),
        ("Evaluation.batch_size", 2**30),
        ("Loop.prefetch", 2**31 - 1),
        ("Llama.d_model", 2**20),
        ("Llama.d_ff", 2**30),
        ("Llama.vocab_size", 2**30),
    ],
)
def test_absurd_sizes_are_refused_by_name(monkeypatch, field, value):
    monkeypatch.setattr(room, "device_memory", lambda device: 64 << 30)
    more = ["Llama.n_heads = 4", "Llama.n_kv_heads = 4"]
    run = api.load_run(*GIN, bindings=[*LINES, *more, f"{field} = {value}"]).config
    with pytest.raises(ConfigError, match=r"there is memory: .* of a device's 64\.00 GiB") as e:
        room.check_memory(run, make_mesh(run.mesh))
    assert e.value.field == field and e.value.value == value


def test_what_may_fit_passes_and_what_hardly_fits_is_warned_of(monkeypatch, capsys):
    run = api.load_run(*GIN, bindings=LINES).config
    mesh = make_mesh(run.mesh)
    room.check_memory(run, mesh)
    assert not capsys.readouterr().err
    needed = room._needs(run, mesh)[0][2]
    monkeypatch.setattr(room, "device_memory", lambda device: needed - 1)
    room.check_memory(run, mesh)
    assert "warning: Llama." in capsys.readouterr().err
    assert room.device_memory(jax.devices()[0]) > 0
    assert core.host_memory() > 1 << 28


def test_running_out_of_memory_is_told_with_a_remedy():
    with pytest.raises(OutOfMemory, match=r"A step does not fit into memory .*Make it smaller"):
        with core.memory_explained("A step", "Make it smaller."):
            np.zeros(1 << 60, np.uint8)
    asked = r"jax does not fit into memory \(\d+ were asked for\)"
    with pytest.raises(OutOfMemory, match=asked), core.memory_explained("jax", "Less."):
        jax.device_put(0.0) + jax.numpy.zeros((1 << 24, 1 << 24), np.float32)
    with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"), core.memory_explained("a", "b"):
        raise ValueError("RESOURCE_EXHAUSTED: no space left on the disk")
