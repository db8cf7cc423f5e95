"""The time of a schedule whose parts are known."""

import pytest

from t5x_llm.core.slices import parse_slice
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.collectives import collectives
from t5x_llm.plan.hlo import parse
from t5x_llm.plan.time import step_time

SLICE = parse_slice("slice", "v5p-16")
CHIP = CHIPS["v5p"]
MESH = {"fsdp": 8}
ALL = "replica_groups=[1,8]<=[8], dimensions={0}"
_RING = '{"phase_rings":[{"ring_dim":"X","ring_type":"ICI_RING_TYPE_UNIDIR_CW"}]}'
RINGS = f'"color_strategies":[{", ".join([_RING] * 4)}]'
# A gather that libtpu carries on in the fusions between; a sum by the SparseCores, which begins
# with the update; a slice that is copied meanwhile; and a sum over three axes that all wait for.
TEXT = """HloModule m, is_scheduled=true

%begin (p: bf16[1024,1024]) -> bf16[8192,1024] {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %g = bf16[8192,1024]{1,0} all-gather(%p), channel_id=1, ALL
  ROOT %g.1 = bf16[8192,1024]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%carry (p: bf16[1024,1024]) -> bf16[8192,1024] {
  %p.1 = bf16[1024,1024]{1,0} parameter(0)
  ROOT %g.2 = bf16[8192,1024]{1,0} all-gather(%p.1), channel_id=1, ALL
}

%end (p: bf16[1024,1024]) -> bf16[8192,1024] {
  %p.2 = bf16[1024,1024]{1,0} parameter(0)
  %g.3 = bf16[8192,1024]{1,0} all-gather(%p.2), channel_id=1, ALL
  ROOT %g.4 = bf16[8192,1024]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%sum (q: bf16[4096,1024]) -> bf16[4096,1024] {
  %q = bf16[4096,1024]{1,0} parameter(0)
  ROOT %r = bf16[4096,1024]{1,0} all-reduce(%q), channel_id=2, ALL, backend_config={"estimated_cycles":"999999", RINGS}
}, execution_thread="sparsecore"

%other (q: bf16[4096,1024]) -> bf16[4096,1024] {
  %q.1 = bf16[4096,1024]{1,0} parameter(0)
  ROOT %c = bf16[4096,1024]{1,0} custom-call(%q.1), custom_call_target="offloaded", called_computations={%sum}
}, execution_thread="sparsecore"

%cut (q: bf16[4096,1024]) -> bf16[1024,1024] {
  %q.2 = bf16[4096,1024]{1,0} parameter(0)
  ROOT %d = bf16[1024,1024]{1,0} slice(%q.2), slice={[0:1024], [0:1024]}
}

%body (t: bf16[1024,1024]) -> bf16[1024,1024] {
  %t = bf16[1024,1024]{1,0} parameter(0)
  %f = bf16[8192,1024]{1,0} fusion(%t), kind=kLoop, calls=%begin
  %f.1 = bf16[8192,1024]{1,0} fusion(%f), kind=kOutput, calls=%carry, backend_config={"estimated_cycles":"BESIDE"}
  %f.2 = bf16[8192,1024]{1,0} fusion(%f.1), kind=kLoop, calls=%end
  %k = bf16[1024,1024]{1,0} fusion(%f.2), kind=kLoop, calls=%carry.none, backend_config={"estimated_cycles":"1750"}
  ROOT %s = bf16[1024,1024]{1,0} all-reduce(%k), channel_id=3, ALL, backend_config={"debug":"\\nUniDirectionNDRingStrategy{colors:6 phases:3}"}
}

%carry.none (p: bf16[1024,1024]) -> bf16[1024,1024] {
  ROOT %p.3 = bf16[1024,1024]{1,0} parameter(0)
}

ENTRY %main (x: bf16[1024,1024], y: bf16[4096,1024]) -> bf16[4096,1024] {
  %x = bf16[1024,1024]{1,0} parameter(0)
  %y = bf16[4096,1024]{1,0} parameter(1)
  %w = bf16[1024,1024]{1,0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %a = ((), (), s32[8]{0}) async-start(), async_execution_thread="sparsecore", calls=%other
  %b = ((bf16[4096,1024]{1,0}), bf16[1024,1024]{1,0}) async-start(%y), calls=%cut
  %h = bf16[4096,1024]{1,0} fusion(%w), kind=kLoop, calls=%carry.none, backend_config={"estimated_cycles":"17500"}
  %a.1 = ((bf16[4096,1024]{1,0}), bf16[4096,1024]{1,0}) async-update(%a, %h)
  %h.1 = bf16[4096,1024]{1,0} fusion(%w), kind=kLoop, calls=%carry.none, backend_config={"estimated_cycles":"35000"}
  ROOT %a.2 = bf16[4096,1024]{1,0} async-done(%a.1)
}
""".replace("ALL", ALL).replace("RINGS", RINGS)  # noqa: E501
GATHER = 8192 * 1024 * 2 * 7 / 8 / CHIP.link
SUM = 2 * 1024 * 1024 * 2 * 7 / 8 / (3 * CHIP.link)
FAR = 2 * 4096 * 1024 * 2 * 7 / 8 / (2 * CHIP.link)


@pytest.mark.parametrize("share", (0.25, 1.0, 3.0))
def test_what_is_awaited_waits_for_the_rest(share):
    beside = round(share * GATHER * CHIP.clock)
    module = parse(TEXT.replace("BESIDE", str(beside)))
    found = collectives(module, MESH)
    assert {c.start: (c.end, c.times, c.links, c.hidden) for c in found} == {
        "f": ("f.2", 5, None, 1),
        "s": ("s", 5, 3, 0),
        "a.1": ("a.2", 1, 2, 1),
    }
    time, found = step_time(module, found, SLICE)
    cycles = 5 * (beside + 1750) + 17500 + 35000
    assert time.compute * CHIP.clock == pytest.approx(cycles)
    hidden = {c.start: c.hidden for c in found}
    assert hidden["f"] == pytest.approx(min(share, 1), rel=1e-4) and hidden["s"] == 0
    assert hidden["a.1"] == pytest.approx(35000 / CHIP.clock / FAR)
    waited = 5 * max(1 - share, 0) * GATHER + 5 * SUM + FAR - 35000 / CHIP.clock
    assert time.exposed == pytest.approx(waited, rel=1e-4)
    assert time.total == time.compute + time.exposed and time.kernels == 0
