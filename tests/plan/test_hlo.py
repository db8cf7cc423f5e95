"""The reading of compiled modules, on programs whose loops and collectives are known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_llm.plan.collectives import collectives, summed
from t5x_llm.plan.hlo import parse
from t5x_llm.plan.memory import activations, largest_live, refused

LOOPS = 5


@functools.cache
def mesh():
    import numpy as np

    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@functools.cache
def module():
    """A scan of LOOPS over x @ w, w in pieces over ``fsdp``, then a mean over all rows."""

    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh(), P(None, None)))
        return jnp.tanh(x @ w), None

    def program(x, ws):
        x, _ = jax.lax.scan(layer, x, ws)
        return jnp.sum(x)

    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh(), P("data")))
    spec = NamedSharding(mesh(), P(None, "fsdp", None))
    ws = jax.ShapeDtypeStruct((LOOPS, 64, 64), jnp.float32, sharding=spec)
    return parse(jax.jit(program).lower(x, ws).compile().as_text())


def test_loops_are_counted():
    found = module()
    loops = [i for i, _ in found.scheduled() if i.opcode == "while"]
    assert [found.trips(loop) for loop in loops] == [LOOPS]
    body = loops[0].called["body"][0]
    assert found.runs[body] == LOOPS and found.runs[found.entry] == 1


def test_computations_that_another_core_runs():
    inside = "  ROOT %y = f32[3]{0} parameter(0)\n"
    text = f'%inner (y: f32[3]) -> f32[3] {{\n{inside}}}, execution_thread="sparsecore"\n\n'
    found = parse(text + f"ENTRY %main (y: f32[3]) -> f32[3] {{\n{inside}}}\n")
    assert [len(found.computations[name]) for name in ("inner", "main")] == [1, 1]


def test_collectives_have_their_axes_bytes_and_counts():
    found = {(c.kind, c.axes): c for c in collectives(module(), dict(mesh().shape))}
    gathered = [c for (kind, _), c in found.items() if kind == "all-gather"]
    # Either w is gathered in every turn, or all of ws once, before the loop.
    assert sum(c.bytes * c.times for c in gathered) == LOOPS * 64 * 64 * 4
    assert {c.axes for c in gathered} == {("fsdp",)} and {c.group for c in gathered} == {4}
    assert sum(c.sent for c in gathered) == LOOPS * 64 * 64 * 4 * 3 / 4
    reduced = found["all-reduce", ("data",)]
    assert (reduced.bytes, reduced.group, reduced.times) == (4, 2, 1)
    assert reduced.sent == 2 * 4 / 2
    assert {(row.kind, row.axes) for row in summed(list(found.values()))} == set(found)


def test_lines_lead_to_the_source():
    dots = [i for i in module().named.values() if "dot_general" in i.op_name]
    assert dots and all("test_hlo.py:" in module().line(i) for i in dots)


def test_the_fullest_moment():
    """Two arrays of a megabyte are alive together; a third lives when they are gone."""

    def program(x):
        a = jnp.sort(x)
        b = jnp.sort(-x)
        c = jnp.sort(a * b)
        return jnp.sum(c[:3])

    x = jax.ShapeDtypeStruct((2**18,), jnp.float32)
    found = parse(jax.jit(program).lower(x).compile().as_text())
    alive = largest_live(found)
    assert alive[0].shape == "f32[262144]"
    assert 2 <= sum(b.count for b in alive if b.bytes == 2**20) <= 4


TEXT = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[32,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %g.1 = bf16[32,128]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (p: bf16[8,128]) -> bf16[32,128] {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %g.2 = bf16[32,128]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%awaited (p: bf16[8,128]) -> bf16[32,128] {
  %p.2 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g.3 = bf16[32,128]{1,0} all-gather(%p.2), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %g.4 = bf16[32,128]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.2.clone.1 (q: f32[8,128]) -> f32[4,128] {
  %q = f32[8,128]{1,0} parameter(0)
  %s = f32[8,128]{1,0} all-reduce(%q), channel_id=9, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %d = f32[4,128]{1,0} dynamic-slice(%s, %z, %z), dynamic_slice_sizes={4,128}
}

%cond (t: (s32[], f32[4])) -> pred[] {
  %t = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t.1 = (s32[], /*index=1*/f32[4]{0}) parameter(0)
  %f = bf16[32,128]{1,0} fusion(%t.1), kind=kLoop, calls=%fused
  %f.1 = bf16[32,128]{1,0} fusion(%f), kind=kOutput, calls=%beside, backend_config={"estimated_cycles":"100"}
  %f.2 = bf16[32,128]{1,0} fusion(%f.1), kind=kLoop, calls=%awaited
  %e = f32[4,128]{1,0} fusion(%t.1), kind=kCustom, calls=%all-reduce-scatter.2.clone.1
  %r = f32[4]{0} all-reduce(%t.1), channel_id=8, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %o = (s32[], f32[4]{0}) tuple(%t.1, %r)
}

ENTRY %main (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]{0}) parameter(0)
  ROOT %w = (s32[], f32[4]{0}) while(%x), condition=%cond, body=%body
}
"""  # noqa: E501


def test_the_forms_that_tpus_have():
    found = parse(TEXT)
    [loop] = [i for i, _ in found.scheduled() if i.opcode == "while"]
    assert found.trips(loop) == 3
    fused = {"fused", "beside", "awaited", "all-reduce-scatter.2.clone.1", "add"}
    assert found.fused == fused
    assert sum(i.cycles * n for i, n in found.scheduled() if i.cycles) == 300
    gather, scatter, reduce = collectives(found, {"fsdp": 4, "tensor": 2})
    assert (scatter.kind, scatter.axes, scatter.times) == ("reduce-scatter", ("tensor",), 3)
    assert scatter.bytes == 8 * 128 * 4 and scatter.sent == 3 * scatter.bytes / 2
    assert (gather.axes, gather.group, gather.times, gather.hidden) == (("fsdp",), 4, 3, 1)
    assert (gather.start, gather.end) == ("f", "f.2")
    assert gather.bytes == 32 * 128 * 2
    assert (reduce.axes, reduce.group, reduce.times, reduce.hidden) == (("tensor",), 2, 3, 0)
    assert found.named["p"].shapes[0].space == 1


IN_PLACE = """HloModule m, is_scheduled=true

%write (p: f32[8,1024], q: f32[1,1024]) -> f32[8,1024] {
  %p = f32[8,1024]{1,0} parameter(0)
  %q = f32[1,1024]{1,0} parameter(1)
  %i = s32[] constant(0)
  ROOT %u = f32[8,1024]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}

%body (t: (f32[8,1024])) -> (f32[8,1024]) {
  %t = (f32[8,1024]{1,0}) parameter(0)
  %old = f32[8,1024]{1,0} get-tuple-element(%t), index=0
  %k = f32[1,1024]{1,0} custom-call(%old), custom_call_target="tpu_custom_call", frontend_attributes={kernel={
"sizes":"{512}"
}}, metadata={op_name="jit(f)/jvp()/kernel" stack_frame_id=3}
  %w = f32[8,1024]{1,0} fusion(%old, %k), kind=kLoop, calls=%write, metadata={op_name="jit(f)/jvp()/while/body/dot"}
  ROOT %o = (f32[8,1024]{1,0}) tuple(%w)
}

ENTRY %main (x: f32[512]) -> f32[512] {
  %x = f32[512]{0} parameter(0)
  %empty = f32[8,1024]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %into = (f32[512]{0:S(1)}, f32[512]{0}, u32[]{:S(2)}) copy-start(%x)
  %there = f32[512]{0:S(1)} copy-done(%into)
  %start = (f32[8,1024]{1,0}) tuple(%empty)
  %loop = (f32[8,1024]{1,0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %all = f32[8,1024]{1,0} get-tuple-element(%loop), index=0
  ROOT %new = f32[512]{0} custom-call(%all, %there), custom_call_target="other"
}
"""  # noqa: E501


@pytest.mark.parametrize("writes", ["dynamic-update-slice", "scatter"])
def test_what_is_updated_in_place_is_there_once(writes):
    """A stack that a loop fills is alive once, and belongs to what fills it; views are nothing."""
    found = parse(IN_PLACE.replace("dynamic-update-slice", writes))
    assert found.line(found.named["k"]) == "" and "jvp()/kernel" in found.named["k"].op_name
    assert [i.name for i in found.computations["body"]] == ["t", "old", "k", "w", "o"]
    stack, kernel = largest_live(found)
    assert (stack.bytes, stack.count, stack.op_name) == (2**15, 1, "jit(f)/jvp()/while/body/dot")
    assert (kernel.bytes, kernel.count) == (2**12, 1)
    assert activations(found) == 2**15 + 2**12


OUTER = """
%outer (u: (f32[8,1024])) -> (f32[8,1024]) {
  %u = (f32[8,1024]{1,0}) parameter(0)
  %u.0 = f32[8,1024]{1,0} get-tuple-element(%u), index=0
  %from = (f32[8,1024]{1,0}) tuple(%u.0)
  %inner = (f32[8,1024]{1,0}) while(%from), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %last = f32[8,1024]{1,0} get-tuple-element(%inner), index=0
  %read = (f32[8,1024]{1,0}) tuple(%last)
  %again = (f32[8,1024]{1,0}) while(%read), condition=%c, body=%reading, backend_config={"known_trip_count":{"n":"8"}}
  %kept = f32[8,1024]{1,0} get-tuple-element(%again), index=0
  ROOT %v = (f32[8,1024]{1,0}) tuple(%kept)
}

%reading (r: (f32[8,1024])) -> (f32[8,1024]) {
  %r = (f32[8,1024]{1,0}) parameter(0)
  %r.0 = f32[8,1024]{1,0} get-tuple-element(%r), index=0
  ROOT %r.1 = (f32[8,1024]{1,0}) tuple(%r.0)
}

ENTRY"""  # noqa: E501


def test_what_an_inner_loop_fills_is_its_own():
    """As with microbatches: the buffer is the outer loop's, and another loop reads it."""
    text = IN_PLACE.replace("\nENTRY", OUTER).replace("body=%body,", "body=%outer,")
    text = text.replace("body=%outer,", "body=%body,", 1)  # the inner one's
    named = 'target="AllocateBuffer", metadata={op_name="jit(f)/while/body" stack_frame_id=1}'
    stack, _ = largest_live(parse(text.replace('target="AllocateBuffer"', named)))
    assert (stack.bytes, stack.op_name) == (2**15, "jit(f)/jvp()/while/body/dot")


def test_a_channel_that_many_have():
    """Both permutations of a shard_map, and the sum of it, are on one channel."""
    along = functools.partial(jax.lax.ppermute, axis_name="fsdp", perm=[(0, 1), (1, 0)])

    def program(x):
        return jax.lax.psum(along(jnp.sin(along(x))), "data")

    specs = dict(in_specs=P("data"), out_specs=P(), check_vma=False)
    program = jax.shard_map(program, mesh=mesh(), **specs)
    text = jax.jit(program).lower(jnp.ones((16, 64))).compile().as_text()
    found = summed(collectives(parse(text), dict(mesh().shape)))
    assert {(c.kind, c.axes): c.count for c in found} == {
        ("collective-permute", ("fsdp",)): 2,
        ("all-reduce", ("data",)): 1,
    }


def test_refusals():
    said = (
        "Ran out of memory on HBM, the total memory required for HLO temporaries (1005.94G) exceeds"
    )
    said += " available HBM (30.75G). HLO module: jit__lambda."
    assert refused(said) == (1005.94 * 2**30, 30.75 * 2**30)
    assert refused("something else") is None


def test_what_is_no_module():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("hello")


THROUGH = """HloModule m, is_scheduled=true

%turn (t: (f32[1024], f32[8])) -> (f32[1024], f32[8]) {
  %t = (f32[1024]{0}, f32[8]{0}) parameter(0)
  %t.0 = f32[1024]{0} get-tuple-element(%t), index=0
  %t.1 = f32[8]{0} get-tuple-element(%t), index=1
  ROOT %t.2 = (f32[1024]{0}, f32[8]{0}) tuple(%t.0, %t.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %read = f32[1024]{0} custom-call(%x), custom_call_target="large"
  %sums = f32[8]{0} custom-call(%x), custom_call_target="small"
  %start = (f32[1024]{0}, f32[8]{0}) tuple(%read, %sums)
  %loop = (f32[1024]{0}, f32[8]{0}) while(%start), condition=%c, body=%turn, backend_config={"known_trip_count":{"n":"2"}}
  %found = f32[8]{0} get-tuple-element(%loop), index=1
  %later = f32[1024]{0} custom-call(%found), custom_call_target="large"
  ROOT %y = f32[8]{0} custom-call(%later, %found), custom_call_target="small"
}
"""  # noqa: E501


def test_what_a_loop_only_reads_is_gone_after_it():
    """Another element of the loop's result is read later, and does not keep it."""
    [large, small] = largest_live(parse(THROUGH))
    assert (large.bytes, large.count, small.bytes) == (4096, 1, 32)
