"""What goes between slices, in libtpu's own lines (0.0.52, two v5p-128), shortened."""

import pytest

from t5x_llm.core.slices import parse_slice
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.collectives import collectives
from t5x_llm.plan.hlo import parse
from t5x_llm.plan.memory import allocated
from t5x_llm.plan.time import step_time

ALL = "replica_groups={{" + ",".join(map(str, range(64))) + "}}"
FAR = (
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM",'
    '_xla_megascale_target="{1,2}x{0:63}",_xla_megascale_transfer_type="ALL_REDUCE"}'
)
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=64

%piece (param_0.9: bf16[8192,1024], param_1.9: bf16[128,1024], param_2.3: u32[]) -> bf16[8192,1024] {
  %param_0.9 = bf16[8192,1024]{1,0} parameter(0)
  %param_1.9 = bf16[128,1024]{1,0} parameter(1)
  %param_2.3 = u32[]{:T(128)} parameter(2)
  %constant.27 = u32[]{:T(128)} constant(0)
  ROOT %dynamic-update-slice.1 = bf16[8192,1024]{1,0} dynamic-update-slice(%param_0.9, %param_1.9, %param_2.3, %constant.27)
}

%cut (param_0.8: bf16[8192,1024]) -> bf16[128,1024] {
  %param_0.8 = bf16[8192,1024]{1,0} parameter(0)
  ROOT %slice = bf16[128,1024]{1,0} slice(%param_0.8), slice={[0:128], [0:1024]}
}

%body (t: (bf16[128,1024], bf16[8192,1024])) -> (bf16[128,1024], bf16[8192,1024]) {
  %t = (bf16[128,1024]{1,0}, bf16[8192,1024]{1,0}) parameter(0)
  %w = bf16[128,1024]{1,0} get-tuple-element(%t), index=0
  %zeros = bf16[8192,1024]{1,0} get-tuple-element(%t), index=1
  %at = u32[]{:T(128)} constant(64)
  %filled = bf16[8192,1024]{1,0} fusion(%zeros, %w, %at), kind=kLoop, calls=%piece
  %copied = (bf16[8192,1024]{1,0:S(1)}, bf16[8192,1024]{1,0}, u32[]{:S(2)}) copy-start(%filled)
  %there = bf16[8192,1024]{1,0:S(1)} copy-done(%copied)
  %grad = bf16[8192,1024]{1,0} fusion(%w), kind=kOutput, calls=%piece.none
  %both = (bf16[8192,1024]{1,0}, bf16[8192,1024]{1,0}) all-reduce(%there, %grad), channel_id=1, ALL, to_apply=%add
  %sum = bf16[8192,1024]{1,0} get-tuple-element(%both), index=1
  %mine = bf16[128,1024]{1,0} fusion(%sum), kind=kLoop, calls=%cut
  %token = token[] after-all()
  %bitcast.1 = bf16[128,8,128]{2,1,0} bitcast(%mine)
  %send = (bf16[128,8,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%bitcast.1, %token), channel_id=2, is_host_transfer=true, FAR
  %recv = (bf16[128,8,128]{2,1,0}, u32[]{:S(2)}, token[]) recv(%token), channel_id=3, is_host_transfer=true, FAR
  %busy = bf16[128,1024]{1,0} fusion(%w), kind=kLoop, calls=%busy.none, backend_config={"estimated_cycles":"BUSY"}
  %send-done = token[] send-done(%send), channel_id=2
  %recv-done = (bf16[128,8,128]{2,1,0}, token[]) recv-done(%recv), channel_id=3
  %got = bf16[128,8,128]{2,1,0} get-tuple-element(%recv-done), index=0
  %new = bf16[128,1024]{1,0} bitcast(%got)
  ROOT %o = (bf16[128,1024]{1,0}, bf16[8192,1024]{1,0}) tuple(%new, %zeros)
}

%piece.none (w.1: bf16[128,1024]) -> bf16[8192,1024] {
  %w.1 = bf16[128,1024]{1,0} parameter(0)
  ROOT %dot = bf16[8192,1024]{1,0} convolution(%w.1, %w.1), dim_labels=fb_io->bf
}

%busy.none (w.2: bf16[128,1024]) -> bf16[128,1024] {
  ROOT %w.2 = bf16[128,1024]{1,0} parameter(0)
}

ENTRY %main (x: bf16[128,1024]) -> bf16[128,1024] {
  %x = bf16[128,1024]{1,0} parameter(0)
  %zero = bf16[]{:T(256)} constant(0)
  %broadcast = bf16[8192,1024]{1,0} broadcast(%zero), dimensions={}
  %start = (bf16[128,1024]{1,0}, bf16[8192,1024]{1,0}) tuple(%x, %broadcast)
  %loop = (bf16[128,1024]{1,0}, bf16[8192,1024]{1,0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %y = bf16[128,1024]{1,0} get-tuple-element(%loop), index=0
}
""".replace("ALL", ALL).replace("FAR", FAR)  # noqa: E501
TWO, THREE = {"replica": 2, "fsdp": 64}, {"replica": 3, "fsdp": 64}
WHOLE, PIECE = 8192 * 1024 * 2, 128 * 1024 * 2


def read(busy=0, text=TEXT, mesh=TWO):
    module = parse(text.replace("BUSY", str(busy)))
    return module, collectives(module, mesh)


def test_transfers_between_slices_are_collectives():
    module, found = read()
    [far] = [c for c in found if c.network]
    assert (far.kind, far.axes, far.group, far.times) == ("all-reduce", ("replica",), 2, 5)
    assert far.bytes == PIECE and far.sent == 5 * PIECE  # twice half of it
    assert (far.start, far.end, far.hidden) == ("send", "recv-done", 1)
    three = TEXT.replace("{1,2}x{0:63}", "{1:3}x{0:63}")
    [more] = [c for c in read(text=three, mesh=THREE)[1] if c.network]
    assert (more.group, more.sent) == (3, pytest.approx(5 * PIECE * 4 / 3))


@pytest.mark.parametrize(
    "written, kind, share",
    [
        ("REDUCE_SCATTER", "reduce-scatter", 1 / 2),
        ("ALL_GATHER", "all-gather", 1 / 2),
        ("ALL_TO_ALL", "all-to-all", 1 / 2),
        ("ONE_TO_ONE", "collective-permute", 1),
    ],
)
def test_kinds_of_transfers(written, kind, share):
    text = TEXT.replace('type="ALL_REDUCE"', f'type="{written}"')
    [far] = [c for c in read(text=text)[1] if c.network]
    assert (far.kind, far.sent) == (kind, 5 * PIECE * share)


def test_a_sum_of_one_piece_and_zeros_is_a_gather():
    near = {c.kind: c for c in read()[1] if not c.network}
    assert {kind: (c.bytes, c.axes, c.times) for kind, c in near.items()} == {
        "all-gather": (WHOLE, ("fsdp",), 5),
        "all-reduce": (WHOLE, ("fsdp",), 5),
    }
    assert near["all-reduce"].sent == 2 * near["all-gather"].sent
    ones = TEXT.replace(
        "%zero = bf16[]{:T(256)} constant(0)", "%zero = bf16[]{:T(256)} constant(1)"
    )
    assert {c.kind: c.bytes for c in read(text=ones)[1] if not c.network} == {
        "all-reduce": 2 * WHOLE
    }


@pytest.mark.parametrize("share", (0.25, 3.0))
def test_the_network_takes_its_time(share):
    chip, slice_ = CHIPS["v5p"], parse_slice("slice", "v5p-128")
    one = PIECE / chip.dcn
    module, found = read(round(share * one * chip.clock))
    time, found = step_time(module, found, slice_)
    assert time.network == pytest.approx(5 * one)
    assert time.network_exposed == pytest.approx(5 * max(1 - share, 0) * one, rel=1e-3)
    [far] = [c for c in found if c.network]
    assert far.hidden == pytest.approx(min(share, 1), rel=1e-3)
    links = sum(c.sent for c in found if not c.network) / chip.link
    assert time.exposed == pytest.approx(time.network_exposed + links)


def test_copies_in_one_slice_have_its_links():
    """``replica`` is of the network only where slices are joined."""
    text = """HloModule m, is_scheduled=true, num_partitions=2

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  ROOT %s = f32[1024]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}
"""
    module, found = read(text=text, mesh={"replica": 2})
    assert [(c.axes, c.network) for c in found] == [(("replica",), False)]
    time, _ = step_time(module, found, parse_slice("slice", "v5p-8"))
    assert time.network == 0 and time.exposed == pytest.approx(4096 / CHIPS["v5p"].link)


def test_what_is_sent_is_no_copy():
    module = read()[0]
    made = {n: allocated(module, module.named[n]) for n in ("send", "send-done", "recv-done")}
    assert not any(made.values())
    assert [str(s) for s in allocated(module, module.named["recv"])] == ["bf16[128,8,128]"]
