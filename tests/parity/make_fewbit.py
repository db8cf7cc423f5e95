"""Makes tests/nn/fewbit_golden.npz: a weight in few bits by bitsandbytes on the CPU.

Run by hand in an environment that has bitsandbytes (requirements/parity.txt):

    python tests/parity/make_fewbit.py
"""

from __future__ import annotations

import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch

OUTPUTS, INPUTS = 192, 128


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(17)
    weight = (rng.standard_normal((OUTPUTS, INPUTS)) * 0.02).astype(np.float16)
    weight[3, 64:] = 0  # a block without a scale
    weight[5, 7] = 1.5  # an outlier
    tensor = torch.from_numpy(weight.astype(np.float32))
    packed, state = bnb.quantize_4bit(
        tensor, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    rows, row_scales, _ = bnb.int8_vectorwise_quant(tensor.clone())
    np.savez_compressed(
        pathlib.Path(__file__).parents[1] / "nn" / "fewbit_golden.npz",
        weight=weight,
        packed=packed.numpy().reshape(-1),
        table=state.code.numpy(),
        scales=state.absmax.numpy(),
        scale_table=state.state2.code.numpy(),
        groups=state.state2.absmax.numpy(),
        offset=state.offset.numpy(),
        whole=bnb.dequantize_4bit(packed, state).numpy(),
        rows=rows.numpy(),
        row_scales=row_scales.numpy(),
    )


if __name__ == "__main__":
    main()
