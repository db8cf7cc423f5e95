"""Checkpoints: round trips, other meshes, other models, what is picked and what is kept."""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clocks import no_hang
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_llm.checkpoint import (
    CheckpointConfig,
    Checkpointer,
    check_compatible,
    differences,
)
from t5x_llm.config.describe import to_dict
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.train.state import TrainState


def make_state(seed=0, width=64):
    params = {
        "embed": {"table": jax.random.normal(jax.random.key(seed), (128, width))},
        "mlp": {"kernel": jax.random.normal(jax.random.key(seed + 1), (2, width, 256))},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(jnp.int32(seed), params, tx.init(params))


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture
def saved(tmp_path):
    state = make_state()
    keeper = Checkpointer(tmp_path / "c", CheckpointConfig(keep=3))
    for step in (1, 2):
        assert keeper.save(step, dataclasses.replace(state, step=jnp.int32(step)), {"n": step})
    keeper.close()
    return tmp_path / "c", state


def test_round_trip_is_bit_exact(saved):
    directory, state = saved
    reader = Checkpointer(directory, read_only=True)
    assert reader.steps() == [1, 2] and reader.latest_step() == 2
    got, meta = reader.restore(abstract(state))
    assert meta == {"n": 2} and int(got.step) == 2
    assert isinstance(got, TrainState)
    assert same(got.params, state.params) and same(got.opt_state, state.opt_state)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    got, meta = reader.restore(abstract(state), step=1)
    assert meta == {"n": 1} and int(got.step) == 1
    reader.close()


def test_save_twice_is_once(saved):
    directory, state = saved
    keeper = Checkpointer(directory)
    assert not keeper.save(2, make_state(seed=9), {})
    got, _ = keeper.restore(abstract(state), 2)
    assert same(got.params, state.params)
    keeper.close()


def test_params_alone(saved):
    directory, state = saved
    reader = Checkpointer(directory, read_only=True)
    assert same(reader.restore_params(abstract(state.params)), state.params)


def test_retention(tmp_path):
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=2, keep_period=3))
    state = make_state()
    for step in range(1, 9):
        keeper.save(step, state, {})
    keeper.wait()
    assert keeper.steps() == [3, 6, 7, 8]
    keeper.close()


def test_onto_other_meshes(tmp_path):
    devices = jax.devices()
    assert len(devices) == 8
    state = make_state()
    wide = Mesh(np.array(devices).reshape(4, 2), ("fsdp", "tensor"))
    cut = NamedSharding(wide, PartitionSpec("fsdp", "tensor"))
    whole = NamedSharding(wide, PartitionSpec())
    placed = jax.tree.map(lambda x: jax.device_put(x, cut if x.ndim == 2 else whole), state)
    keeper = Checkpointer(tmp_path)
    keeper.save(5, placed, {})
    keeper.wait()
    for count, spec in ((1, ("fsdp",)), (2, (None, "fsdp")), (8, ("fsdp",))):
        mesh = Mesh(np.array(devices[:count]), ("fsdp",))
        cut = NamedSharding(mesh, PartitionSpec(*spec))
        whole = NamedSharding(mesh, PartitionSpec())
        target = jax.tree.map(
            lambda x, cut=cut, whole=whole: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=cut if x.ndim == 2 else whole
            ),
            state,
        )
        got, _ = keeper.restore(target)
        assert same(got, state)
        assert got.params["embed"]["table"].sharding == cut
    keeper.close()


def test_state_may_be_donated_while_it_is_written(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = step(make_state(width=512))
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=10))
    wanted = {}
    for i in range(1, 6):
        wanted[i] = jax.tree.map(lambda x: np.array(x, copy=True), state)
        keeper.save(i, state, {})
        for _ in range(3):
            state = step(state)
    keeper.wait()
    for i, want in wanted.items():
        assert same(keeper.restore(abstract(state), i)[0], want)
    keeper.close()


def test_meta_may_change_while_it_is_written(tmp_path):
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=100))
    for step in range(20):
        meta = {"sums": {"n": step}}
        keeper.save(step, {"x": jnp.zeros(3)}, meta)
        meta["sums"]["n"] = -1
        keeper.wait()
        assert keeper.meta(step) == {"sums": {"n": step}}
    keeper.close()


def test_save_returns_while_the_state_is_being_written(tmp_path):
    class Held:
        def __init__(self, write):
            self.write = write

        def result(self, timeout=None):
            release.wait()
            return self.write.result(timeout)

        def cancel(self):
            self.write.cancel()

    async def held(*args, **kwargs):
        return [Held(write) for write in await original(*args, **kwargs)]

    release, state = threading.Event(), make_state(width=512)
    keeper = Checkpointer(tmp_path, CheckpointConfig(keep=2))
    keeper.save(0, state, {})
    keeper.wait()
    handler = keeper._saver._orbax._handler
    original, handler.async_save = handler.async_save, held
    with no_hang():
        keeper.save(1, state, {})
    assert keeper.completed == 0 and keeper.steps() == [0]
    release.set()
    keeper.wait()
    assert keeper.completed == 1 and keeper.steps() == [0, 1]
    keeper.close()


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "state", "meta", "checksums.0of1.json"])
def test_half_written_is_never_picked(saved, name):
    directory, state = saved
    target = directory / "2" / name
    target.rename(directory / "gone")
    told = []
    keeper = Checkpointer(directory, on_damage=lambda *what: told.append(what))
    assert keeper.steps() == [1] and keeper.latest_step() == 1
    assert keeper.restore(abstract(state))[1] == {"n": 1}
    assert [step for step, _ in told] == [2] and "half-written" in told[0][1]
    # The step is made again when the run comes by.
    assert keeper.save(2, state, {"n": "again"})
    keeper.wait()
    assert keeper.restore(abstract(state))[1] == {"n": "again"}
    keeper.close()


def test_uncommitted_record_is_half_written(saved):
    """Where directories cannot be renamed, it lies under its final name from the start."""
    directory, _ = saved
    path = directory / "2" / "_CHECKPOINT_METADATA"
    record = json.loads(path.read_text())
    assert record["commit_timestamp_nsecs"] > 0
    path.write_text(json.dumps({**record, "commit_timestamp_nsecs": None}))
    assert Checkpointer(directory, read_only=True).steps() == [1]


def test_interrupted_save_is_not_seen(saved):
    directory, _ = saved
    (directory / "3.orbax-checkpoint-tmp-7").mkdir()
    (directory / "4").mkdir()
    reader = Checkpointer(directory, read_only=True)
    assert reader.steps() == [1, 2]
    assert (directory / "3.orbax-checkpoint-tmp-7").exists(), "a reader must not clean up"
    with pytest.raises(CheckpointError, match="No step 4 in .*there are 1, 2"):
        reader.meta(4)


def test_missing_directory(tmp_path):
    reader = Checkpointer(tmp_path / "none", read_only=True)
    assert reader.latest_step() is None
    with pytest.raises(CheckpointError, match="there is none"):
        reader.restore({})
    assert not (tmp_path / "none").exists()


def test_other_model_names_the_parameter(saved):
    directory, _ = saved
    reader = Checkpointer(directory, read_only=True)
    with pytest.raises(CheckpointError) as e:
        reader.restore(abstract(make_state(width=32)))
    text = str(e.value)
    assert "params.embed.table: float32[128, 64] in the checkpoint, float32[128, 32]" in text
    with pytest.raises(CheckpointError, match=r"params.embed.other: not in the checkpoint"):
        reader.restore_params({"embed": {"other": jax.ShapeDtypeStruct((2,), jnp.float32)}}, step=2)


def test_no_pickle_is_read_or_written(saved):
    directory, _ = saved
    for file in directory.rglob("*"):
        if file.is_file():
            assert not file.read_bytes().startswith(b"\x80"), file


@dataclasses.dataclass(frozen=True)
class Course:
    name: str = "cosine"
    peak: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Toy:
    d_model: int = 256
    parts: tuple[Course, ...] = (Course(), Course("linear"))
    course: Course = Course()


@dataclasses.dataclass(frozen=True)
class Other:
    d_model: int = 256


def test_differences_are_named_as_in_gin():
    assert differences(to_dict(Toy()), to_dict(Toy())) == []
    changed = Toy(d_model=512, parts=(Course(), Course("linear", 2e-3)), course=Course("rsqrt"))
    assert differences(to_dict(Toy()), to_dict(changed)) == [
        "Toy.d_model: 256 -> 512",
        "Course.peak: 0.001 -> 0.002 (in parts[1].peak)",
        "Course.name: 'cosine' -> 'rsqrt'",
    ]
    assert differences(to_dict(Toy()), to_dict(Toy(parts=())))[0].startswith("Toy.parts: [{")
    saved = {"model": to_dict(Toy())}
    assert differences(saved, {"model": to_dict(Other())}) == ["model: Toy -> Other"]
    assert differences({"class": "A", "x": 1}, {"class": "A", "x": 1, "y": None}) == [
        "A.y: (none) -> None"
    ]


def test_check_compatible():
    saved = {"model": to_dict(Toy())}
    check_compatible(saved, {"model": Toy()}, "here")
    with pytest.raises(CheckpointError) as e:
        check_compatible(saved, {"model": Toy(d_model=512)}, "The checkpoint runs/a/7")
    assert "The checkpoint runs/a/7" in str(e.value)
    assert "Toy.d_model: 256 -> 512" in str(e.value)
    assert "CheckpointConfig.allow_changes" in str(e.value)
    check_compatible(saved, {"model": Toy(d_model=512)}, "here", allow=("Toy.d_model",))
    check_compatible(saved, {"model": Toy(course=Course("x"))}, "here", allow=("Course",))


def test_differences_are_named_as_a_user_binds_them():
    names = {"seed": "Loop.seed"}
    saved = {"seed": 0, "parts": [to_dict(Course("a")), to_dict(Course("b"))]}
    changed = {"seed": 1, "parts": [Course("a"), Course("b")]}
    with pytest.raises(CheckpointError, match=r"Loop\.seed: 0 -> 1\n.*\('Loop\.seed',\)"):
        check_compatible(saved, changed, "here", names=names)
    # An operative config of an older version says 'seed'; a scope is asked for, a module is not.
    for entry in ("Loop.seed", "Loop", "seed", "train.config.Loop.seed"):
        assert check_compatible(saved, changed, "here", (entry,), names) == ["Loop.seed: 0 -> 1"]
    assert check_compatible(saved, changed, "here", (), names, free=("Loop.seed",)) == []
    for entry in ("Sampling.seed", "Loop.steps", "en/Loop.seed"):
        with pytest.raises(CheckpointError, match=r"Loop\.seed"):
            check_compatible(saved, changed, "here", (entry,), names)
    second = {"seed": 0, "parts": [Course("a"), Course("b", peak=9.0)]}
    for entry in ("Course.peak", "b/Course.peak", "b/Course"):
        (line,) = check_compatible(saved, second, "here", (entry,))
        assert line.endswith("(in parts[1].peak)")
    with pytest.raises(CheckpointError, match=r"parts\[1\]"):
        check_compatible(saved, second, "here", ("a/Course.peak",))


@pytest.mark.parametrize(
    "bad",
    [
        {"keep": 0},
        {"every_steps": -1},
        {"keep_period": 0},
        {"retry_steps": 0},
        {"give_up_minutes": -1},
    ],
)
def test_config_refuses(bad):
    with pytest.raises(ConfigError, match=f"CheckpointConfig.{next(iter(bad))}"):
        CheckpointConfig(**bad)
