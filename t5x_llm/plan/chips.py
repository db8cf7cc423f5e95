"""Constants of a chip of each generation, and libtpu's names of slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.slices import Slice
from t5x_llm.core.units import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of JAX (``Generation.devices`` says how many a chip has).

    Attributes:
      hbm: bytes that a program may use, as libtpu's refusals state them.
      hbm_bandwidth: bytes/s.
      link: bytes/s out of the device over one axis of the torus, both directions together.
      dcn: bytes/s out of the device to other slices.
      clock: Hz, for libtpu's estimated cycles; assumed, as nobody publishes it for all.
    """

    hbm: float
    hbm_bandwidth: float
    link: float
    dcn: float
    clock: float


# Bandwidths: Google Cloud's pages on each version. ICI per chip is spread over the torus's links:
# v4 and v5p have six, v5e and v6e four; an axis has two. DCN: 100 (v4) to 400 Gbit/s a host of 4.
CHIPS = {
    "v4": Chip(30.75 * GIB, 1228e9, 100e9, 3.1e9, 1.05e9),
    "v5e": Chip(15.75 * GIB, 819e9, 100e9, 3.1e9, 1.5e9),
    "v5p": Chip(95.73 * GIB, 2765e9, 200e9, 6.2e9, 1.75e9),
    "v6e": Chip(31.24 * GIB, 1640e9, 200e9, 12.5e9, 1.75e9),
    "v7x": Chip(94.74 * GIB, 3690e9, 200e9, 12.5e9, 1.75e9),
}
_LIBTPU = {"v7x": "tpu7x"}


def wrapped(slice_: Slice) -> tuple[bool, bool, bool]:
    """Along which axes of its grid a slice's links close to a ring (Google Cloud's pages).

    v4, v5p and v7x are made of cubes of 4 x 4 x 4, whose faces are joined by optical switches; in
    a pod of v5e or v6e, 16 x 16, only a whole row or column closes. libtpu takes a described slice
    to be open, and then all-gathers become all-reduces of arrays filled with zeros.
    """
    sizes = slice_.topology
    if len(sizes) == 3:
        whole = all(n % 4 == 0 for n in sizes)
        return whole, whole, whole
    return sizes[0] == 16, sizes[1] == 16, False


def described_devices(slice_: Slice, slices: int = 1) -> Sequence[Any]:
    """JAX devices of slices that need not exist.

    Raises:
      ConfigError: libtpu is not installed.
    """
    import os

    # Ask nobody what machine this is; without a type and a host libtpu warns that it knows none.
    alone = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        **alone,
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    generation = _LIBTPU.get(slice_.generation, slice_.generation)
    options: dict[str, Any] = {"wrap": wrapped(slice_)}
    if slice_.generation == "v4":
        options["chip_config_name"] = "megacore"
    if slices > 1:
        options["num_slices"] = slices
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{generation}:{slice_.topology_name}", **options
        )
    except (RuntimeError, ImportError, NotImplementedError) as e:
        raise ConfigError(
            "--slice",
            slice_.accelerator_type or slice_.generation,
            f"libtpu, whose compiler is asked ({str(e).splitlines()[0][:200]})",
            "Install it: .uv/bin/uv pip install --python .venv libtpu==0.0.52",
        ) from e
    return topology.devices
