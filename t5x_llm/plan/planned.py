"""A run's train step planned for machines of a name, with its figures and its report."""

from __future__ import annotations

import dataclasses

from t5x_llm import parallel
from t5x_llm.core.errors import ConfigError, check_number
from t5x_llm.core.slices import Slice
from t5x_llm.plan import report
from t5x_llm.plan.compile import Plan
from t5x_llm.plan.gpus import Cluster, parse_machine
from t5x_llm.plan.host import this_machine
from t5x_llm.plan.of_run import compile_run, reckon_run
from t5x_llm.plan.remedies import remedies
from t5x_llm.plan.report import Work
from t5x_llm.run.config import Run
from t5x_llm.train.ahead import keep_compiled

HERE = "here"


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """The train step of a run on machines that need not be here: memory, time, cost.

    Attributes:
      run: what was planned.
      machine: one slice, or all GPUs; None for the devices of this machine.
      plan: what the compiler, or arithmetic, found; bytes of one device and seconds of a step.
      work: what the step does.
    """

    run: Run
    machine: Slice | Cluster | None
    plan: Plan
    work: Work

    @property
    def fits(self) -> bool:
        """True if the step needs no more memory than a device has."""
        return self.plan.fits

    def figures(self) -> dict[str, object]:
        """Returns the plan as data that JSON takes: bytes, seconds, shares."""
        return report.figures(self.plan, self.work)

    def text(self) -> str:
        """Returns the report that ``t5x-llm plan`` prints, with remedies where it does not fit."""
        if self.plan.fits or self.machine is None:
            return report.text(self.plan, self.work)
        found = remedies(self.run, self.machine, self.work.slices)
        return report.text(self.plan, self.work, found)


def parse_machines(name: str, slices: int = 1) -> Slice | Cluster | None:
    """Returns the machines of a name, None for ``here``.

    Args:
      name: such as ``v5p-128``, ``h100-64`` or ``here``.
      slices: how many.

    Raises:
      ConfigError: the name says nothing, or these machines do not come in slices.
    """
    check_number("--slices", slices, low=1, integer=True)
    if name == HERE:
        if slices > 1:
            expected = "a described slice: with --slice=here the mesh is as it is"
            raise ConfigError("--slices", slices, expected)
        return None
    machine = parse_machine("--slice", name)
    if isinstance(machine, Cluster) and slices > 1:
        raise ConfigError("--slices", slices, "1 for GPUs: their name says how many there are")
    return machine


def plan_run(
    run: Run,
    machine: Slice | Cluster | None,
    slices: int = 1,
    tokens: float | None = None,
    price: float | None = None,
) -> PlannedRun:
    """Compiles the step where there is a compiler, reckons it for GPUs.

    Args:
      run: whose mesh has as many devices as the machines.
      machine: see ``parse_machines``; for None the compiled step is kept for training.
      slices: how many slices, joined by the data-centre network.
      tokens: of the run; adds days.
      price: of a chip-hour; adds money.

    Raises:
      ConfigError: the run does not fit the mesh, libtpu is missing, or the compiler does not take
        ``Run.compiler_options``.
    """
    if isinstance(machine, Cluster):
        return PlannedRun(run, machine, *reckon_run(run, machine, slices, tokens, price))
    if machine is not None:
        return PlannedRun(run, machine, *compile_run(run, machine, slices, tokens, price))
    parallel.initialize()
    keep_compiled(run.directory)
    here = this_machine(run.precision.compute)
    return PlannedRun(run, None, *compile_run(run, here, 1, tokens, price))
