"""Two real processes: shares of the checksums, one verdict, one failure known to both."""

PROGRAM = """
import os, sys, time
from t5x_llm.parallel import initialize
assert initialize()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from t5x_llm.checkpoint import CheckpointConfig, Checkpointer, checksums
from t5x_llm.core.errors import CheckpointError

me, directory = jax.process_index(), sys.argv[1]
mesh = Mesh(np.array(jax.devices()), ("x",))
cut = NamedSharding(mesh, P("x"))
values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
array = jax.make_array_from_callback((8, 8), cut, lambda i: values[i])
state, wanted = {"w": array}, {"w": jax.ShapeDtypeStruct((8, 8), "float32", sharding=cut)}
told = []
keeper = Checkpointer(directory, CheckpointConfig(keep=2), on_damage=lambda *w: told.append(w))
for step in (1, 2):
    assert keeper.save(step, state, {"n": step})
    keeper.wait()
    assert keeper.completed == step
assert not keeper.save(2, state, {})
names = sorted(p.name for p in keeper.path(2).iterdir() if p.name.startswith("checksums"))
assert names == ["checksums.0of2.json", "checksums.1of2.json"], names

# The second process cannot write its share: both hear of it, soon.
write = checksums.write
def fails(path, index, count):
    if index == 1:
        raise OSError(28, "No space left on device")
    write(path, index, count)
checksums.write = fails
assert keeper.save(3, state, {})
try:
    keeper.wait()
    raise SystemExit("no failure")
except CheckpointError as e:
    print("FAILED", "No space" in str(e), "another process" in str(e))
checksums.write = write

# Orbax's part fails on the second process, before it meets the others.
orbax = keeper._saver._make()
keeper._saver._orbax = orbax
original = orbax._handler.async_save
async def broken(*args, **kwargs):
    ops = await original(*args, **kwargs)
    class Op:
        def result(self, timeout=None):
            raise OSError(28, "No space left on device")
        def cancel(self):
            pass
    return [*ops, Op()] if me == 1 else ops
orbax._handler.async_save = broken
assert keeper.save(3, state, {})
try:
    keeper.wait()
    raise SystemExit("no failure")
except CheckpointError as e:
    print("FAILED", "No space" in str(e), "another process" in str(e))

assert keeper.steps() == [1, 2], keeper.steps()
# Old ones are gone for every process, however slowly the first removes them.
retire = keeper.folder.retire
waiting, gone = (os.path.join(os.path.dirname(directory), n) for n in ("waiting", "gone"))
def slowly(*a):
    while not os.path.exists(waiting):
        time.sleep(0.01)
    retire(*a)
    open(gone, "w").close()
keeper.folder.retire = slowly
assert keeper.save(3, state, {"n": 3})
if me == 1:
    open(waiting, "w").close()
keeper.wait()
assert os.path.exists(gone) and keeper.steps() == [2, 3]
got, meta = keeper.restore(wanted)
assert meta == {"n": 3}
for shard in got["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, values[shard.index])

# Damage in a file that only one process reads.
import json
from t5x_llm.checkpoint import agree
if me == 0:
    share = checksums.names(keeper.path(3))
    print("FILES", len(share))
    name = next(n for n in share[1::2] if n.startswith("state"))
    data = bytearray((keeper.path(3) / name).read_bytes())
    data[len(data) // 2] ^= 4
    (keeper.path(3) / name).write_bytes(bytes(data))
agree.meet("damaged")
reader = Checkpointer(directory, read_only=True, on_damage=lambda *w: told.append(w))
print("NEWEST", reader.newest_sound(), [step for step, _ in told])
print("SAID", reader.verify(3))
assert reader.newest_sound(accept=lambda meta: False) is None
keeper.drop_after(2)
assert keeper.steps() == [2]
keeper.close()
print("END")
"""


def test_two_processes(two_processes, tmp_path):
    results = two_processes(PROGRAM, tmp_path / "c", timeout=90)
    first, second = (out.splitlines() for out in results)
    assert [line for line in first if line.startswith("FAILED")] == ["FAILED False True"] * 2
    assert [line for line in second if line.startswith("FAILED")] == ["FAILED True False"] * 2
    assert "NEWEST 2 [3]" in first and "NEWEST 2 []" in second
    said = [next(x for x in lines if x.startswith("SAID")) for lines in (first, second)]
    assert said[0] == said[1] and "checksum is another" in said[0]
