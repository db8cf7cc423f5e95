"""Record that a run begins with, and the report, export and advice it ends with."""

from __future__ import annotations

import sys
import time
from typing import Any

import jax

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.paths import as_path
from t5x_llm.data.data_plan import data_plan
from t5x_llm.nn.adapters import roots
from t5x_llm.run.assembled import Assembled
from t5x_llm.run.card import run_card
from t5x_llm.run.config import Run
from t5x_llm.run.data import OpenData
from t5x_llm.run.load import saved_generation
from t5x_llm.run.reading import read_schedule, reading
from t5x_llm.run.template import with_run_template
from t5x_llm.train.environment import environment
from t5x_llm.train.report import write_report
from t5x_llm.train.state import TrainState


def facts(assembled: Assembled, data: OpenData) -> dict[str, Any]:
    """Returns the JSON that the record of a run begins with: parameters, mixture, mesh, machine."""
    mesh = assembled.placement.devices
    run = assembled.run
    examples = read_schedule(run).examples_after(run.loop.steps)
    budgets = data_plan(data.stream, examples).sources
    return {
        "parameters": assembled.model.parameter_count()["total"],
        "mixture": {name: budget.share for name, budget in budgets.items()},
        "reading": reading(run.loop, data.stream.fingerprint),
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "environment": environment(list(mesh.devices.flat)),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def finish(run: Run, state: TrainState, data: OpenData) -> None:
    """Exports the model, writes the report, and prints on stderr which command comes next."""
    from t5x_llm.hf.export import export_hf

    directory = as_path(run.directory)
    lines = [f"Run directory: {run.directory}"]
    lines.append(f"  report        {write_report(directory)}")
    if run.export.enabled and jax.process_count() > 1:
        lines.append(f"  to export     t5x-llm export {run.directory}")
    elif run.export.enabled and run.task is not None:
        from t5x_llm.hf.scoring import export_scorer

        proof = export_scorer(
            jax.device_get(state.params),
            run.model,
            run.task,
            data.opened.tokenizer,
            directory / "hf",
            run.export.max_shard_bytes,
            run.export.dtype,
        )
        lines.append(f"  Hugging Face  {directory / 'hf'} ({proof.summary()})")
    elif run.export.enabled and run.adapter is None:
        out = directory / "hf"
        params = jax.device_get(state.params)
        parity = export_hf(
            params,
            run.model,
            with_run_template(run.directory, data.opened.tokenizer),
            out,
            max_shard_bytes=run.export.max_shard_bytes,
            dtype=run.export.dtype,
            generation=saved_generation(run.directory),
            card=run_card(run, data.opened, int(jax.device_get(state.step))),
        )
        worst = max(p.max_abs for p in parity.prompts.values())
        lines.append(f"  Hugging Face  {out} (logits within {worst:.1e} of {parity.reference})")
    elif run.export.enabled and run.adapter is not None:
        from t5x_llm.run.adapters import OUT, export_adapter

        made, whole = str(directory / OUT), roots.merge(jax.device_get(state.params))
        try:
            said = f"{made} ({export_adapter(run, whole, made).summary()})"
        except ConfigError as e:  # what peft cannot load is trained all the same
            said = f"in the run alone: {e}"
        lines.append(f"  adapter       {said}")
    if (samples := directory / "samples.txt").exists():
        lines.append(f"  samples       {samples}")
    encoder = run.decoder().kind == "encoder"
    then = f"eval {run.directory}" if encoder else f"generate {run.directory} --prompt '...'"
    if run.task is None:
        lines.append(f"Next: t5x-llm {then}")
    print("\n".join(lines), file=sys.stderr)
