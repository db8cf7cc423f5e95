"""Facts of a run for its model card: what it learned from, how long, and how well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from t5x_llm.core.paths import as_path
from t5x_llm.data.catalog import Opened
from t5x_llm.hf.card import CardFacts, front_matter, table
from t5x_llm.run.config import Run
from t5x_llm.train.jsonl import Line, read_lines

LIMITS = (
    "This card was written from the records of the run. Nobody has measured whether the model is "
    "safe, fair, truthful or fit for a purpose, and it may repeat what its data says. Whoever "
    "publishes it should write down here what it is for, and under which licence."
)


def run_card(run: Run, opened: Opened, step: int) -> CardFacts:
    """Returns what a model card says of a run.

    Args:
      run: the configuration.
      opened: its data, for languages and licences of sources.
      step: the checkpoint that is exported; records of later steps are left out.
    """
    metrics = as_path(run.directory) / "metrics.jsonl"
    lines = read_lines(metrics) if metrics.exists() else []
    lines = [line for line in lines if line["step"] <= step]

    def newest(kind: str) -> Line:
        return next((line for line in reversed(lines) if line.get("kind") == kind), {})

    trained, start = newest("train"), newest("start")
    front: dict[str, Any] = {"license": run.export.license}
    front["language"] = sorted({x for x in opened.languages.values() if x})
    origin = f"Trained with t5x_llm for {step:,} steps and exported"
    if run.start_from is not None:
        base = front_matter(run.start_from) if "://" not in run.start_from else {}
        origin = f"Trained with t5x_llm for {step:,} steps from `{PurePath(run.start_from).name}`"
        origin += f" (its card says: {_said(base)})" if base else ""
        origin += " and exported"
        front["base_model"] = base.get("base_model")
    sections = [("Training", _training(run, step, trained, start))]
    if results := newest("eval").get("results"):
        sections.append(("Evaluation", _evaluation(newest("eval")["step"], results)))
    sections += [("Data", _data(opened, trained)), ("Limits", LIMITS)]
    return CardFacts(origin, front, tuple(sections))


def _said(base: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in base.items())


def _training(run: Run, step: int, trained: Line, start: Line) -> str:
    loop, schedule, environment = run.loop, run.optimizer.schedule, start.get("environment") or {}
    rows = [
        ["steps", f"{step:,}"],
        ["examples of a step", f"{loop.sizes[-1]:,} of {loop.sequence_length:,} tokens"],
        ["tokens predicted", _number(trained.get("tokens"))],
        ["objective", run.data.denoising.objective],
        ["optimizer", f"{run.optimizer.name}, peak learning rate {schedule.peak:g}"],
        ["dtypes", f"parameters {run.precision.params}, computation {run.precision.compute}"],
        ["training loss at the end", _number(trained.get("loss"))],
        ["rewinds after loss spikes", _number(trained.get("rewinds"))],
        ["devices", str(environment.get("devices", "not recorded"))],
    ]
    packages = environment.get("packages") or {}
    versions = ", ".join(f"{k} {packages[k]}" for k in ("t5x_llm", "jax", "flax") if k in packages)
    rows.append(["software", versions or "not recorded"])
    return table(["", ""], rows)


def _evaluation(step: int, results: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            _number(found.get("bits_per_byte")),
            _number(found.get("loss")),
            _number(found.get("perplexity")),
            _number(found.get("tokens")),
        ]
        for name, found in results.items()
        if isinstance(found, Mapping)
    ]
    said = f"Documents of the same sources that were held out of training, at step {step:,}.\n\n"
    return said + table(["held out of", "bits a byte", "loss", "perplexity", "tokens"], rows)


def _data(opened: Opened, trained: Line) -> str:
    seen = trained.get("tokens_by_source") or {}
    rows = [
        [
            name,
            opened.languages[name] or "not given",
            opened.licenses[name] or "not given",
            _number(seen.get(name)),
            f"{opened.weights[name]:.1%}",
        ]
        for name in opened.stores
    ]
    return table(["source", "language", "licence", "tokens seen", "share"], rows)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not recorded"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
