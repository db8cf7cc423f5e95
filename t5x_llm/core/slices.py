"""TPU slices by name: chips, topology, hosts, and what the platforms call them.

Numbers and names are those of Google Cloud's pages on TPU versions and on TPUs in GKE.
"""

from __future__ import annotations

import dataclasses
import math
import re

from t5x_llm.core.errors import ConfigError

_NAME = re.compile(r"(v4|v5e|v5litepod|v5p|v6e|v7x|tpu7x)-(\d{1,5})")
_ALIASES = {"v5litepod": "v5e", "tpu7x": "v7x"}


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU.

    Attributes:
      cores: TensorCores of a chip, where a slice's name counts those; 1 where it counts chips.
      dims: of the torus.
      most: chips of the largest slice.
      accelerator: prefix of Cloud TPU's accelerator type; None where only GKE has it.
      runtime: default runtime version of TPU VMs.
      gke: value of GKE's label ``cloud.google.com/gke-tpu-accelerator``.
      single: chips that one host may hold by itself.
      peak: dense bfloat16 FLOP/s of a chip.
      devices: JAX's devices in a chip.
      quantized: the 8-bit type that its matrix units multiply at twice that rate, as
        ``Policy.quantized`` names it (``jax.experimental.pallas.tpu.get_tpu_info``); '' for none.
      kinds: parts of jax's ``device_kind`` that say it.
    """

    cores: int
    dims: int
    most: int
    accelerator: str | None
    runtime: str | None
    gke: str
    single: tuple[int, ...]
    peak: float
    devices: int
    quantized: str
    kinds: tuple[str, ...]

    @property
    def device_peak(self) -> float:
        """Dense bfloat16 FLOP/s of one of JAX's devices."""
        return self.peak / self.devices


GENERATIONS = {
    "v4": Generation(
        *(2, 3, 4096, "v4", "tpu-ubuntu2204-base", "tpu-v4-podslice", (4,), 275e12),
        *(1, "", ("TPU v4",)),
    ),
    "v5e": Generation(
        *(1, 2, 256, "v5litepod", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", (1, 4, 8)),
        *(197e12, 1, "int8", ("TPU v5 lite", "TPU v5e")),
    ),
    "v5p": Generation(
        *(2, 3, 6144, "v5p", "v2-alpha-tpuv5", "tpu-v5p-slice", (4,), 459e12),
        *(1, "int8", ("TPU v5p", "TPU v5")),
    ),
    "v6e": Generation(
        *(1, 2, 256, "v6e", "v2-alpha-tpuv6e", "tpu-v6e-slice", (1, 4, 8), 918e12),
        *(1, "int8", ("TPU v6 lite", "TPU v6e")),
    ),
    "v7x": Generation(
        *(2, 3, 9216, None, None, "tpu7x", (4,), 2307e12),
        *(2, "fp8", ("TPU7x", "TPU v7x")),
    ),
}
_CHIPS_OF_A_HOST = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPU chips.

    Attributes:
      generation: key of ``GENERATIONS``.
      chips: how many.
      topology: chips along each axis of the torus.
    """

    generation: str
    chips: int
    topology: tuple[int, ...]

    @property
    def facts(self) -> Generation:
        """Constants of the slice's generation."""
        return GENERATIONS[self.generation]

    @property
    def hosts(self) -> int:
        """Machines, each of which runs one process."""
        return 1 if self.chips in self.facts.single else self.chips // _CHIPS_OF_A_HOST

    @property
    def chips_per_host(self) -> int:
        """Chips of each machine."""
        return self.chips // self.hosts

    @property
    def topology_name(self) -> str:
        """The topology in GKE's spelling: ``4x4x4``."""
        return "x".join(map(str, self.topology))

    @property
    def accelerator_type(self) -> str | None:
        """The slice's name in Cloud TPU's API, ``v5p-128``; None where the API has none."""
        prefix = self.facts.accelerator
        return None if prefix is None else f"{prefix}-{self.chips * self.facts.cores}"


def generation_of(device_kind: str) -> str | None:
    """The generation of jax's ``device_kind``; None for what is no known TPU."""
    for name, facts in GENERATIONS.items():  # v5e before v5p, whose kind may be "TPU v5"
        if any(kind in device_kind for kind in facts.kinds):
            return name
    return None


def parse_slice(field: str, name: str) -> Slice:
    """The slice of a name such as ``v5p-128`` or ``v5e-256``.

    Args:
      field: where the name stands, for messages.
      name: generation and size: TensorCores for v4, v5p and v7x, chips for v5e and v6e.

    Raises:
      ConfigError: for a name that is none, or a size that the generation does not have.
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        known = ", ".join(GENERATIONS)
        raise ConfigError(field, name, f"a slice such as 'v5p-128'; generations: {known}")
    generation = _ALIASES.get(match[1], match[1])
    facts, size = GENERATIONS[generation], int(match[2])
    chips, odd = divmod(size, facts.cores)
    shape = None if odd or not 0 < chips <= facts.most else _topology(chips, facts.dims)
    if shape is None:
        unit = "TensorCores, two a chip" if facts.cores == 2 else "chips"
        raise ConfigError(
            field,
            name,
            f"a size that {generation} has, in {unit}",
            f"Sizes are {', '.join(_sizes(facts))} and so on, up to {facts.most * facts.cores}.",
        )
    return Slice(generation, chips, shape)


def _sizes(facts: Generation) -> list[str]:
    found = [n for n in range(1, 65) if _topology(n, facts.dims)]
    return [str(n * facts.cores) for n in found]


def _topology(chips: int, dims: int) -> tuple[int, ...] | None:
    """The roundest torus of so many chips, or None if there is none."""
    if dims == 2:
        side = math.isqrt(chips)
        while side and chips % side:
            side -= 1
        powers = chips == 1 << (chips.bit_length() - 1) and chips != 2
        return (side, chips // side) if powers else None
    small = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
    if chips in small:
        return small[chips]
    cubes = chips // 64
    if chips % 64:
        return None
    shapes = [
        (a, b, cubes // (a * b))
        for a in range(1, round(cubes ** (1 / 3)) + 1)
        for b in range(a, math.isqrt(cubes // a) + 1)
        if cubes % (a * b) == 0
    ]
    best = min(shapes, key=lambda s: s[2] - s[0])
    a, b, c = (4 * n for n in best)
    return (a, b, c)
