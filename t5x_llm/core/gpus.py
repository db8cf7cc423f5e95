"""GPUs by name: what a device has, and how devices are joined."""

from __future__ import annotations

import dataclasses

from t5x_llm.core.units import GB, GIB


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One kind of GPU, as the vendor's data sheet has it.

    Attributes:
      peak: dense bfloat16 FLOP/s.
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      link: bytes/s out of a device to others of its node.
      node: devices that such links join.
      network: bytes/s out of a device to other nodes, one adapter a device as HGX and DGX have it.
      share: of the peak, what a model's products reach: Ampere and Hopper after published runs
        (docs/planner.md), the others assumed.
    """

    peak: float
    memory: float
    bandwidth: float
    link: float
    node: int
    network: float
    share: float


GPUS = {
    "a100-40gb": Gpu(312e12, 40 * GIB, 1555 * GB, 300 * GB, 8, 25 * GB, 0.8),
    "a100": Gpu(312e12, 80 * GIB, 2039 * GB, 300 * GB, 8, 25 * GB, 0.8),
    "a800": Gpu(312e12, 80 * GIB, 2039 * GB, 200 * GB, 8, 25 * GB, 0.8),
    "h100": Gpu(989e12, 79.6 * GIB, 3350 * GB, 450 * GB, 8, 50 * GB, 0.55),
    "h800": Gpu(989e12, 79.6 * GIB, 3350 * GB, 200 * GB, 8, 50 * GB, 0.55),
    "h20": Gpu(148e12, 95.6 * GIB, 4000 * GB, 450 * GB, 8, 50 * GB, 0.8),
    "h200": Gpu(989e12, 140.4 * GIB, 4800 * GB, 450 * GB, 8, 50 * GB, 0.55),
    "b200": Gpu(2250e12, 179 * GIB, 8000 * GB, 900 * GB, 8, 50 * GB, 0.55),
    "gb200": Gpu(2500e12, 184 * GIB, 8000 * GB, 900 * GB, 72, 50 * GB, 0.55),
    "b300": Gpu(2250e12, 268 * GIB, 8000 * GB, 900 * GB, 8, 100 * GB, 0.55),
    "mi300x": Gpu(1307e12, 192 * GIB, 5300 * GB, 448 * GB, 8, 50 * GB, 0.45),
}
