"""Work of kernels that carry no estimate: 2 FLOPs a row and element of its expert's kernel."""

import pytest

from t5x_llm.plan.hlo import parse
from t5x_llm.plan.time import kernel_flops

TEXT = """HloModule step

ENTRY %main (x: bf16[64,32], w: bf16[4,32,16], dy: bf16[64,16], n: s32[4]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[4,32,16]{2,1,0} parameter(1)
  %dy = bf16[64,16]{1,0} parameter(2)
  %n = s32[4]{0} parameter(3)
  %xt = bf16[32,64]{1,0} transpose(%x), dimensions={1,0}
  %up.1 = bf16[64,16]{1,0} custom-call(%n, %x, %w), CALL "jit(step)/jit(gmm)/pallas_call"}
  %dw.1 = bf16[4,32,16]{2,1,0} custom-call(%n, %xt, %dy), CALL "jit(step)/jit(tgmm)/pallas_call"}
  %other.1 = bf16[64,32]{1,0} custom-call(%x, %w), CALL "jit(step)/jit(sorted)/pallas_call"}
  ROOT %done = bf16[64,16]{1,0} copy(%up.1)
}
""".replace("CALL ", 'custom_call_target="tpu_custom_call", metadata={op_name=')


@pytest.mark.parametrize("name", ["up.1", "dw.1"])
def test_products_of_experts(name):
    module = parse(TEXT)
    assert kernel_flops(module.named[name], module) == 2 * 64 * 32 * 16


def test_other_kernels_are_not_estimated():
    module = parse(TEXT)
    assert kernel_flops(module.named["other.1"], module) is None
