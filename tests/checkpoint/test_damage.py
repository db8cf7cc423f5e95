"""Damage on disk: found before anything is read, told, and passed over."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_llm.checkpoint import CheckpointConfig, Checkpointer, checksums
from t5x_llm.core.errors import CheckpointError

STATE = {"step": jnp.int32(3), "params": {"w": jax.random.normal(jax.random.key(0), (64, 96))}}
ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Checkpoints 1, 2, 3."""
    directory = tmp_path_factory.mktemp("original") / "c"
    keeper = Checkpointer(directory, CheckpointConfig(keep=3))
    for step in (1, 2, 3):
        keeper.save(step, STATE, {"n": step, "rewinds": 0})
    keeper.close()
    return directory


@pytest.fixture
def directory(original, tmp_path):
    return shutil.copytree(original, tmp_path / "c")


def reading(directory):
    """(reader, list to which it adds what it is told of damage)."""
    told = []
    return Checkpointer(directory, read_only=True, on_damage=lambda *w: told.append(w)), told


def files_of(original):
    return [p for p in sorted((original / "3").rglob("*")) if p.is_file()]


def kinds(original):
    """One file of every kind: the largest of those in one place."""
    by_place = {}
    for path in files_of(original):
        place = path.parent if path.parent.name == "d" else path
        if place not in by_place or path.stat().st_size > by_place[place].stat().st_size:
            by_place[place] = path
    return [p.relative_to(original) for p in by_place.values()]


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def deleted(path):
    path.unlink()


@pytest.mark.parametrize("harm", [truncated, flipped, deleted])
def test_every_kind_of_file(original, directory, harm):
    names = kinds(original)
    said = {str(name.relative_to("3")) for name in names}
    assert {"_CHECKPOINT_METADATA", "meta/metadata", "checksums.0of1.json"} <= said
    assert any(name.startswith("state/") and "/d/" in name for name in said)
    for name in names:
        shutil.rmtree(directory / "3")
        shutil.copytree(original / "3", directory / "3")
        harm(directory / name)
        reader, told = reading(directory)
        assert reader.newest_sound() == 2, name
        assert [step for step, _ in told] == [3], name
        # A damaged record of the commit or of the checksums looks like a save that was cut off.
        short = str(name.relative_to("3"))
        assert short in told[0][1] or short.startswith(("_CHECKPOINT", "checksums")), told
        assert reader.restore(ABSTRACT)[1]["n"] == 2
        assert len(told) == 1, "told once"
        with pytest.raises(CheckpointError, match="step 3"):
            reader.restore(ABSTRACT, 3)


def test_each_bit_of_a_small_file_counts(original, directory):
    path = directory / "3" / "meta" / "metadata"
    whole = path.read_bytes()
    for i in range(0, 8 * len(whole), 7):
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        path.write_bytes(data)
        assert "meta/metadata" in Checkpointer(directory, read_only=True).verify(3)
    path.write_bytes(whole)
    assert Checkpointer(directory, read_only=True).verify(3) is None


def test_what_is_said(directory, capsys):
    largest = max((directory / "3" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    size = largest.stat().st_size
    truncated(largest)
    reader = Checkpointer(directory, read_only=True)
    wanted = f"{largest.relative_to(directory / '3')} has {size // 2:,} bytes, {size:,} were saved"
    assert reader.verify(3) == wanted
    with pytest.raises(CheckpointError) as e:
        reader.restore(ABSTRACT, 3)
    assert f"{directory / '3'}: {wanted}. Other checkpoints here: 1, 2." in str(e.value)
    assert reader.restore(ABSTRACT)[1]["n"] == 2
    assert f"warning: {directory / '3'} is passed over: {wanted}." in capsys.readouterr().err


def test_a_file_that_is_gone_is_called_missing(directory):
    name = "state/manifest.ocdbt"
    (directory / "3" / name).unlink()
    assert Checkpointer(directory, read_only=True).verify(3) == f"{name} is missing"


def test_added_data_is_damage(directory):
    (directory / "3" / "state" / "d" / "more").write_bytes(b"x")
    reader = Checkpointer(directory, read_only=True)
    assert "state/d/more is not among the files that were saved" in reader.verify(3)
    assert reader.newest_sound() == 2


def test_damage_is_found_before_parameters_are_read(directory):
    """Also where what is asked for lies in sound files: nothing of the checkpoint is trusted."""
    flipped(directory / "3" / "meta" / "metadata")
    reader = Checkpointer(directory, read_only=True)
    with pytest.raises(CheckpointError, match="meta/metadata"):
        reader.restore_params(ABSTRACT["params"], 3)
    got = reader.restore_params(ABSTRACT["params"])
    assert np.array_equal(got["w"], STATE["params"]["w"])


def test_meta_of_a_checkpoint_with_a_damaged_state(directory):
    """Its own files are sound, and configurations may be compared with it."""
    shutil.rmtree(directory / "3" / "state" / "d")
    assert Checkpointer(directory, read_only=True).meta(3)["n"] == 3
    assert Checkpointer(directory, read_only=True).newest_meta() == (3, {"n": 3, "rewinds": 0})
    flipped(directory / "3" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match="step 3 cannot be read.*meta/metadata"):
        Checkpointer(directory, read_only=True).meta(3)
    assert Checkpointer(directory, read_only=True).newest_meta() == (2, {"n": 2, "rewinds": 0})
    assert Checkpointer(directory, read_only=True).meta()["n"] == 2


def test_all_damaged(directory):
    for step in (1, 2, 3):
        flipped(directory / str(step) / "meta" / "metadata")
    reader = Checkpointer(directory, read_only=True, on_damage=lambda *_: None)
    assert reader.newest_sound() is None
    assert reader.newest_meta() is None
    with pytest.raises(CheckpointError, match="there are 1, 2, 3, all damaged"):
        reader.restore(ABSTRACT)


def test_at_most_and_accept(directory):
    reader, told = reading(directory)
    assert reader.newest_sound(at_most=2) == 2
    assert reader.newest_sound(accept=lambda meta: meta["n"] < 2) == 1
    assert reader.newest_sound(at_most=0) is None
    assert told == [], "of another course is not damaged"
    meta = directory / "2" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace("2", "5"))
    reader, told = reading(directory)
    assert reader.newest_sound(accept=lambda meta: meta["n"] < 3) == 1
    assert [step for step, _ in told] == [2], "what a damaged meta says is not asked"


def test_retention_does_not_count_damaged_ones(directory):
    """keep=2 with 3 and 2 damaged: 1, the last sound one, stays when 4 comes."""
    for step in (2, 3):
        flipped(directory / str(step) / "meta" / "metadata")
    keeper = Checkpointer(directory, CheckpointConfig(keep=2), on_damage=lambda *_: None)
    assert keeper.newest_sound() == 1
    keeper.save(4, STATE, {})
    keeper.wait()
    assert keeper.steps() == [1, 2, 3, 4]
    keeper.save(5, STATE, {})
    keeper.wait()
    assert keeper.steps() == [4, 5]
    keeper.close()


def test_a_damaged_checkpoint_is_made_again(directory):
    flipped(directory / "3" / "meta" / "metadata")
    keeper = Checkpointer(directory, on_damage=lambda *_: None)
    assert keeper.newest_sound() == 2
    assert keeper.save(3, STATE, {"n": "again"})
    keeper.wait()
    assert keeper.newest_sound() == 3 and keeper.meta()["n"] == "again"
    assert not keeper.save(3, STATE, {"n": "twice"})
    keeper.close()


def test_drop_after(directory):
    (directory / "9.orbax-checkpoint-tmp").mkdir()
    (directory / "8").mkdir()
    keeper = Checkpointer(directory)
    assert keeper.verify(3) is None
    keeper.drop_after(1)
    assert sorted(p.name for p in directory.iterdir()) == ["1"]
    assert keeper.verify(3) is not None, "what was known of it is forgotten"
    assert keeper.save(3, STATE, {"n": "new"})
    keeper.wait()
    assert keeper.newest_sound() == 3
    keeper.drop_after(-1)
    assert not list(directory.iterdir()) and keeper.newest_sound() is None
    keeper.close()


def test_cut_off_removal_is_half_written(directory, monkeypatch):
    """The directory goes file by file; what is left must not pass for a damaged or whole one."""
    keeper = Checkpointer(directory)
    monkeypatch.setattr(type(keeper.path(3)), "rmtree", lambda self, **_: None)
    keeper.drop_after(2)
    assert keeper.steps() == [1, 2]
    keeper.close()


def test_parts_of_several_processes(original, directory):
    """Every process its share; all are needed, and any number of readers."""
    path = directory / "3"
    (path / "checksums.0of1.json").unlink()
    for index in range(3):
        assert checksums.parts(path) == []
        assert "half-written" in checksums.check(path)
        checksums.write(path, index, 3)
    assert len(checksums.parts(path)) == 3
    shares = [set(json.loads(part.read_text())) for part in checksums.parts(path)]
    assert set.union(*shares) == set(checksums.names(path))
    assert sum(map(len, shares)) == len(set.union(*shares))
    assert [checksums.check(path, i, 2) for i in range(2)] == [None, None]
    flipped(path / "meta" / "metadata")
    assert [bool(checksums.check(path, i, 2)) for i in range(2)].count(True) == 1
