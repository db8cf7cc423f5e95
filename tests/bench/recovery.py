"""Planned changes and true spikes on the shipped text: false alarms, and spikes healed.

    .venv/bin/python tests/bench/recovery.py plan                # nothing may alarm
    .venv/bin/python tests/bench/recovery.py spikes              # all seven kinds, far from changes
    .venv/bin/python tests/bench/recovery.py spikes --near       # the same, soon after a stage

Runs are real: ``train.py``'s session on the quickstart's text, d 64, in this process. ``plan`` goes
through stages of three languages, a batch ramp, and, resumed each time, other rates, another peak
of the learning rate, thawed parameters and more steps. ``spikes`` does harm to rows of the stream
(so that a rewind, which jumps over them, heals) or once to a parameter, with the guard and without,
beside a run without harm. Results go to --out as JSON lines, and the series of losses and gradient
norms with them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_llm.config import parse_flags
from t5x_llm.run import session
from t5x_llm.run.resolved import resolve
from t5x_llm.train.journal import read_journal

ROOT = pathlib.Path(__file__).parents[2]
GIN = """
include 'configs/recipes/quickstart.gin'
Optimizer.name = 'adamw'
Optimizer.update_rms = None
Schedule.peak = 6e-3
TokenizerTraining.vocab_size = 4096
TokenizerTraining.character_coverage = 0.98
Llama.vocab_size = 4096
Llama.d_model = 64
Llama.n_layers = 2
Llama.d_ff = 176
Loop.batch_size = 8
Loop.sequence_length = 64
Loop.log_every = 1
Loop.eval_every = 0
Samples.prompts = ()
Export.enabled = False
Evaluation.limit = 4000
CheckpointConfig.every_steps = 20
CheckpointConfig.keep = 100
"""
EN, ZH, MAN = "en_sotu", "zh_poetry", "zh_manpages"
MARK = 1 << 20  # added to the positions of rows whose update is scaled


@dataclasses.dataclass(frozen=True)
class Harm:
    """Harm to the rows [first, stop) of the stream.

    Attributes:
      kind: one of ``KINDS``.
      first, stop: stream positions.
    """

    kind: str
    first: int
    stop: int

    def rows(self, batch: Any, at: np.ndarray) -> Any:
        """Returns the batch with the rows at these stream positions changed."""
        here = np.flatnonzero((at >= self.first) & (at < self.stop))
        if not len(here) or self.kind == "flipped bit":
            return batch
        if self.kind.startswith("rate"):
            places = np.array(batch.positions)
            places[here] += MARK
            return dataclasses.replace(batch, positions=places)
        tokens, targets = np.array(batch.tokens), np.array(batch.targets)
        draw = np.random.default_rng(int(at[0]))
        for row in here:
            text = np.append(tokens[row], targets[row, -1])
            if self.kind == "one token":
                text[:] = 1234
            elif self.kind == "random tokens":
                text = draw.integers(300, 4096, len(text))
            elif self.kind == "half random":
                noise = draw.integers(300, 4096, len(text))
                text = np.where(draw.random(len(text)) < 0.5, noise, text)
            if self.kind == "shuffled targets":
                targets[row] = draw.permutation(targets[row])
            else:
                tokens[row], targets[row] = text[:-1], text[1:]
        return dataclasses.replace(batch, tokens=tokens, targets=targets)


KINDS = ("rate x10", "rate x30", "one token", "random tokens", "half random", "shuffled targets",
         "flipped bit")  # fmt: skip


@contextlib.contextmanager
def harmed(harm: Harm | None) -> Iterator[None]:
    """Does the harm to every run in the body."""
    if harm is None:
        yield
        return
    from t5x_llm.data.stream import Stream

    old_batch, old_ahead = Stream.batch, session.compile_ahead
    flipped = []

    def batch(self: Stream, position: int, size: int, rows: slice | None = None) -> Any:
        made = old_batch(self, position, size, rows)
        index = np.arange(position, position + size)[rows or slice(None)]
        return harm.rows(made, self._skips.stream_positions(index))

    def ahead(assembled: Any, found: int | None) -> Any:
        inner = old_ahead(assembled, found)
        size = assembled.run.loop.batch_size

        def step(state: Any, batch: Any, control: Any) -> Any:
            if harm.kind == "flipped bit" and int(state.step) * size >= harm.first and not flipped:
                flipped.append(True)
                state = flip(state)
            if harm.kind.startswith("rate"):
                factor = float(harm.kind.split("x")[1])
                marked = bool(np.asarray(batch.positions).max() >= MARK)
                batch = dataclasses.replace(batch, positions=batch.positions % MARK)
                scale = np.float32(control.update_scale * (factor if marked else 1.0))
                control = dataclasses.replace(control, update_scale=scale)
            return inner(state, batch, control)

        return step

    Stream.batch, session.compile_ahead = batch, ahead  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stream.batch, session.compile_ahead = old_batch, old_ahead  # type: ignore[method-assign]


def flip(state: Any) -> Any:
    """Returns the state with the highest bit of the exponent of one weight turned."""
    leaves, tree = jax.tree.flatten(state.params)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].ndim * 10**9 + leaves[i].size)
    array = np.array(leaves[largest])
    bits = array.view(np.uint32)
    bits.reshape(-1)[array.size // 2] ^= np.uint32(1 << 30)
    leaves[largest] = jax.device_put(jnp.asarray(array), leaves[largest].sharding)
    return dataclasses.replace(state, params=jax.tree.unflatten(tree, leaves))


def go(root: pathlib.Path, name: str, **bindings: Any) -> dict[str, Any]:
    """Trains, or goes on with, the run ``name``; returns its series and what its journal holds."""
    (root / "small.gin").write_text(GIN)
    flags = ["--gin_file=small.gin", f"--gin_search_paths={ROOT}"]
    bindings = {"Run.directory": str(root / name), "Data.store_dir": str(root / "store")} | bindings
    # Names with dots are given as they are; a value that begins with @ or % is gin's.
    for key, value in bindings.items():
        gins = isinstance(value, str) and value[:1] in "@%"
        flags.append(f"--gin.{key}={value if gins else repr(value)}")
    with contextlib.chdir(root):
        run = resolve(parse_flags(flags))
        failed = ""
        try:
            session.train(run.config, run.operative_config)
        except Exception as e:
            failed = f"{type(e).__name__}: {e}"
    lines = [json.loads(x) for x in (root / name / "metrics.jsonl").read_text().splitlines()]
    journal = read_journal(root / name / "journal.jsonl")
    held = [x["results"]["all"]["loss"] for x in lines if x["kind"] == "eval"]
    alarms = [x for x in journal if x["event"] in ("peak", "skip", "spike", "rewind")]
    return {
        "name": name,
        "held_out": held[-1] if held else None,
        "alarms": [[x["event"], x["step"], x.get("kind", ""), x.get("to_step")] for x in alarms],
        "failed": failed,
        "series": [
            [x["step"], _number(x["loss"]), _number(x["grad_norm"])]
            for x in lines
            if x["kind"] == "train"
        ],
    }


def _number(value: float | None) -> float:
    """Returns a figure of the metrics, where null is what is not finite."""
    return float("nan") if value is None else float(f"{value:.6g}")


STAGES = ((200, {ZH: 1}), (400, {MAN: 1}), (600, {EN: 1, ZH: 1, MAN: 1}))


def plan(root: pathlib.Path, say: Callable[[dict[str, Any]], None]) -> None:
    """Everything that is planned, in one run; each life changes one more setting."""
    base: dict[str, Any] = {
        "Mixture.rates": (1.0, 0.0, 0.0),
        "Mixture.stages": STAGES,
        "Loop.steps": 700,
        "Schedule.name": "constant",
        "Schedule.peak": 3e-3,
        "Loop.ramp": "@BatchRamp()",
        "BatchRamp.stages": ((0, 4), (1200, 8)),
        "Optimizer.trained": ("embed", "final_norm", "group_0"),
    }
    allowed = ("Mixture.rates", "Mixture.stages", "Schedule", "Optimizer.trained")
    lives: tuple[tuple[str, dict[str, Any]], ...] = (
        ("stages and ramp", {}),
        ("other rates", {"Mixture.stages": (*STAGES, (700, {ZH: 3, MAN: 1})), "Loop.steps": 800}),
        ("peak x 2", {"Schedule.peak": 6e-3, "Loop.steps": 900}),
        ("thawed", {"Optimizer.trained": (), "Loop.steps": 1000}),
        ("decay", {"Schedule.name": "linear", "Schedule.final_fraction": 0.0, "Loop.steps": 1200}),
        ("more steps", {"Loop.steps": 1600}),
    )
    for enabled in (True, False):
        name, settings = f"plan_{enabled}", dict(base)
        for what, changes in lives:
            settings |= changes
            found = go(root, name, **settings, **{
                "SpikeConfig.enabled": enabled, "CheckpointConfig.allow_changes": allowed,
            })  # fmt: skip
            say({"what": what, "guard": enabled} | found)


def spikes(root: pathlib.Path, say: Callable[[dict[str, Any]], None], near: int | None,
           kinds: tuple[str, ...]) -> None:  # fmt: skip
    """Every kind of spike: beside the run without harm, and without the guard."""
    onset, steps = 300, 500
    settings: dict[str, Any] = {
        "Schedule.total_steps": steps,
        "SpikeConfig.rewind_steps": 40,
        "SpikeConfig.skip_batches": 100,
    }
    if near is not None:  # the spike begins so many steps after a stage
        settings["Mixture.rates"] = (1.0, 0.0, 0.0)
        settings["Mixture.stages"] = ((onset - near, {EN: 1, ZH: 1, MAN: 1}),)
    before = f"before_{near}"
    go(root, before, **settings, **{"Loop.steps": onset - 10})
    settings["Loop.steps"] = steps

    def branch(name: str, **more: Any) -> dict[str, Any]:
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(root / before, root / name)
        return go(root, name, **settings, **more)

    say({"what": "no harm", "near": near} | branch(f"clean_{near}"))
    for kind in kinds:
        harm = Harm(kind, 8 * onset, 8 * (onset + 60))
        for enabled in (True, False):
            name = f"{kind.replace(' ', '_')}_{near}_{enabled}"
            with harmed(harm):
                found = branch(name, **{"SpikeConfig.enabled": enabled})
            say({"what": kind, "near": near, "guard": enabled} | found)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("plan", "spikes"))
    parser.add_argument("--near", type=int, help="steps between a stage and the spike")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--root", type=pathlib.Path, help="where runs are kept; a temporary one")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines")
    args = parser.parse_args()
    root = args.root or pathlib.Path(tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "data").exists():
        (root / "data").symlink_to(ROOT / "data")

    def say(found: dict[str, Any]) -> None:
        shown = {k: v for k, v in found.items() if k != "series"}
        print(json.dumps(shown), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(found) + "\n")

    try:
        if args.what == "plan":
            plan(root.absolute(), say)
        else:
            spikes(root.absolute(), say, args.near, tuple(args.kinds))
    finally:
        if args.root is None:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
