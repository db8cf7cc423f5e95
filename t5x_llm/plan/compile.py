"""The real train step, compiled for devices that are not here."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax

from t5x_llm.core.slices import Slice
from t5x_llm.plan.chips import CHIPS
from t5x_llm.plan.collectives import Collective, collectives
from t5x_llm.plan.hlo import Module, parse
from t5x_llm.plan.host import Here, host_time
from t5x_llm.plan.memory import Buffer, Memory, largest_live, memory_of, refused
from t5x_llm.plan.time import StepTime, step_time


@dataclasses.dataclass(frozen=True)
class Plan:
    """Findings of the compiler about a step.

    Attributes:
      memory: of a device, or None where the compiler refused the step.
      refused: (bytes wanted, bytes available) where it did.
      buffers: the largest that are alive at once.
      collectives: of a step.
      time: of a step, or None.
      seconds: that tracing and compiling took.
      cpu_seconds: that all threads of the process worked meanwhile.
      analytic: nothing was compiled: all is reckoned.
    """

    memory: Memory | None
    refused: tuple[float, float] | None
    buffers: tuple[Buffer, ...]
    collectives: tuple[Collective, ...]
    time: StepTime | None
    seconds: float
    cpu_seconds: float
    analytic: bool = False

    @property
    def available(self) -> float:
        """Bytes of a device."""
        return self.memory.available if self.memory is not None else (self.refused or (0, 0))[1]

    @property
    def fits(self) -> bool:
        """True where the step can run."""
        return self.memory is not None and self.memory.fits

    @property
    def over(self) -> float:
        """Bytes that a device lacks; negative where some are left."""
        if self.memory is not None:
            return self.memory.total - self.memory.available
        wanted, available = self.refused or (0.0, 0.0)
        return wanted - available


def plan_step(
    step: Any, arguments: tuple[Any, ...], machine: Slice | Here, mesh_shape: Mapping[str, int]
) -> Plan:
    """Compiles a jitted step for a slice and reads the result.

    Args:
      step: (state, batch, ...) -> ..., with a donated ``TrainState`` first.
      arguments: abstract, with shardings on described devices.
      machine: what those devices are. For this one, the options are those of training, so that
        JAX's compilation cache has the step when training asks for it.
      mesh_shape: axis sizes of the mesh.
    """
    started = time.monotonic(), time.process_time()
    try:
        compiled, text = _compile(step.lower(*arguments), isinstance(machine, Here))
    except Exception as e:
        limits = refused(str(e))
        if limits is None:
            raise
        return Plan(None, limits, (), (), None, *since(started))
    seconds, cpu_seconds = since(started)
    state = arguments[0]
    available = machine.memory if isinstance(machine, Here) else CHIPS[machine.generation].hbm
    module = parse(text)
    memory = memory_of(compiled, module, held(state.params), held(state.opt_state), available)
    spent, found = _time(module, collectives(module, mesh_shape), machine)
    return Plan(
        memory=memory,
        refused=None,
        buffers=tuple(largest_live(module)),
        collectives=tuple(found),
        time=spent,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def _time(
    module: Module, found: list[Collective], machine: Slice | Here
) -> tuple[StepTime | None, list[Collective]]:
    if isinstance(machine, Here):
        return None if machine.rates is None else host_time(module, machine.rates), found
    return step_time(module, found, machine)


def _compile(lowered: Any, plain: bool) -> tuple[Any, str]:
    """The compiled step and its scheduled HLO, as libtpu itself writes it.

    ``compiled.as_text()`` parses it once more with jaxlib's XLA, which refuses what a newer libtpu
    has (collectives on the SparseCores of v5p).
    """
    if plain:
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = sorted(pathlib.Path(folder).glob("*.after_codegen.txt"))
        return compiled, written[-1].read_text() if written else compiled.as_text()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """Seconds by the clock, and of this process's CPU time, since both were read."""
    return time.monotonic() - started[0], time.process_time() - started[1]


def held(tree: Any) -> int:
    """Bytes of an abstract tree in one device's own memory."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != "pinned_host"
    )
