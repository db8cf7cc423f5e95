"""How memory and time grow: layers, batch, sequence and devices doubled, one at a time.

    .venv/bin/python tests/bench/plan_sweep.py --out=DIR [--image=docs/images/plan_sweep.png]
        [--generation=v5e]

A small LLaMA is compiled for 16 and 32 devices under every strategy: host devices, or with
``--generation`` chips of a described slice, by libtpu. What the compiler says of memory is drawn
beside what the rule tables and the shapes say (``t5x_llm/plan/estimate.py``). What a 7B gives on
more and more TPU chips with the same batch is reckoned (``t5x_llm/plan/analytic.py``) and says
where a strategy stops paying. Results are kept in DIR, and what is there is not compiled again;
nothing is run. Prints tables of Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BASE = {"layers": 4, "batch": 64, "length": 512, "devices": 16}
CHIPS = (16, 32, 64, 128, 256, 512, 1024)
# MeshConfig of each strategy on n devices.
STRATEGIES: dict[str, Any] = {
    "fsdp": lambda n: {"fsdp": n},
    "zero1": lambda n: {"fsdp": n, "strategy": "zero1"},
    "tensor": lambda n: {"fsdp": n // 4, "tensor": 4, "sequence_sharded": True},
    "context": lambda n: {"fsdp": n // 4, "context": 4},
    "data": lambda n: {"fsdp": n, "strategy": "data"},
    "zero2": lambda n: {"fsdp": n, "strategy": "zero2"},
}
MODEL = (
    *("Llama.vocab_size = 4096", "Llama.n_heads = 8", "Llama.n_kv_heads = 8"),
    *("Llama.max_length = 8192", "TokenizerTraining.vocab_size = 4096", "Run.remat = 'save_qkv'"),
)
# Heads of 128 for TPU: its attention kernel pads smaller ones.
WIDTH = {"cpu": 256, "tpu": 1024}


@dataclasses.dataclass(frozen=True)
class Point:
    """One compilation.

    Attributes:
      strategy: key of ``STRATEGIES``.
      layers: of the model.
      batch: rows of a step.
      length: T.
      devices: chips.
    """

    strategy: str
    layers: int
    batch: int
    length: int
    devices: int

    @property
    def key(self) -> str:
        """Name in the file of results."""
        return "-".join(map(str, dataclasses.astuple(self)))


def points(strategies: Sequence[str]) -> list[Point]:
    """All of the sweep."""
    wanted = [BASE, *(BASE | {name: 2 * BASE[name]} for name in BASE)]
    return [Point(s, *(each[n] for n in BASE)) for s in strategies for each in wanted]


def run_of(recipe: str, lines: list[str], mesh: dict[str, Any]) -> Any:
    """A recipe with gin lines and another mesh."""
    from t5x_llm.config import parse_flags
    from t5x_llm.run.config import load_run

    flags = [f"--gin_file=configs/recipes/{recipe}.gin"]
    run = load_run(parse_flags([*flags, *(f"--gin_bindings={line}" for line in lines)]))[0]
    return dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, **mesh))


def measure(point: Point, generation: str | None) -> dict[str, Any]:
    """What the compiler says of one point, and what arithmetic says."""
    import jax

    from t5x_llm.core.slices import parse_slice
    from t5x_llm.parallel import make_mesh
    from t5x_llm.plan.chips import described_devices
    from t5x_llm.plan.compile import held
    from t5x_llm.plan.estimate import estimate
    from t5x_llm.run.assembled import assemble

    width = WIDTH["tpu" if generation else "cpu"]
    lines = [
        *MODEL,
        f"Llama.d_model = {width}",
        f"Llama.d_ff = {4 * width}",
        f"Llama.n_layers = {point.layers}",
        f"Loop.batch_size = {point.batch}",
        f"Loop.sequence_length = {point.length}",
        f"Evaluation.batch_size = {point.batch}",
    ]
    run = run_of("quickstart", lines, STRATEGIES[point.strategy](point.devices))
    if generation:
        slice_ = parse_slice("--generation", f"{generation}-{point.devices}")
        mesh = make_mesh(run.mesh, described_devices(slice_))
    else:
        mesh = make_mesh(run.mesh, jax.devices()[: point.devices])
    made = assemble(run, mesh)
    stats = made.step.lower(*made.arguments).compile().memory_analysis()
    told = estimate(made)
    inputs = held(made.batch) + held(made.control) + 4  # and the count of steps
    return {
        **dataclasses.asdict(point),
        "state": stats.argument_size_in_bytes - inputs,
        "working": stats.temp_size_in_bytes,
        "predicted_state": told.params + told.optimizer,
        "predicted_working": told.gradients
        + told.activations
        + told.casts
        + told.working
        + told.scores,
    }


def paying(chips: Sequence[int]) -> dict[str, list[float | None]]:
    """Tokens a second of a chip, by strategy, for LLaMA-2 7B with 1M tokens a step on v5p."""
    from t5x_llm.core.errors import ConfigError
    from t5x_llm.core.slices import parse_slice
    from t5x_llm.plan.of_run import reckon_run

    found: dict[str, list[float | None]] = {}
    for name, mesh_of in STRATEGIES.items():
        for n in chips:
            lines = ["Loop.batch_size = 256", "Evaluation.batch_size = 256", "Run.remat = 'full'"]
            run = run_of(
                "llama2_7b", [*lines, "Loop.microbatches = 1"], mesh_of(n) | {"replica": 1}
            )
            try:
                plan = reckon_run(run, parse_slice("--slice", f"v5p-{2 * n}"))[0]
            except ConfigError:  # fewer rows than the mesh cuts them into
                found.setdefault(name, []).append(None)
                continue
            assert plan.time is not None
            speed = 256 * 4096 / plan.time.total / n
            found.setdefault(name, []).append(speed if plan.fits else -speed)
    return found


def tables(rows: list[dict[str, Any]], speeds: dict[str, list[float | None]]) -> str:
    """Growth by what is doubled, measured and predicted; then where strategies stop paying."""
    by = {(r["strategy"], *(r[n] for n in BASE)): r for r in rows}
    lines = ["| strategy | of a device | base | layers x2 | batch x2 | sequence x2 | devices x2 |"]
    lines.append("|---|---|---|---|---|---|---|")
    for strategy in dict.fromkeys(r["strategy"] for r in rows):
        base = by[(strategy, *BASE.values())]
        for part in ("state", "working"):
            cells = [f"{base[part] / 2**20:.1f} ({base['predicted_' + part] / 2**20:.1f}) MiB"]
            for name in BASE:
                grown = by[(strategy, *(BASE | {name: 2 * BASE[name]}).values())]
                measured, told = (grown[k] / base[k] for k in (part, f"predicted_{part}"))
                cells.append(f"{measured:.2f} ({told:.2f})")
            lines.append(f"| {strategy} | {part} | {' | '.join(cells)} |")
    lines += ["", f"| strategy | {' | '.join(f'{n} chips' for n in CHIPS)} |"]
    lines.append("|---" * (1 + len(CHIPS)) + "|")
    for strategy, row in speeds.items():
        cells = [
            "-" if v is None else f"{abs(v):,.0f}" + (" (too large)" if v < 0 else "") for v in row
        ]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], speeds: dict[str, list[float | None]], to: Path) -> None:
    """Measured memory against predicted, and speed against chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), dpi=90)
    for i, strategy in enumerate(STRATEGIES):
        mine = [r for r in rows if r["strategy"] == strategy]
        for part, marker in (("state", "o"), ("working", "^")):
            x, y = ([r[k] / 2**20 for r in mine] for k in (f"predicted_{part}", part))
            left.plot(x, y, marker, color=f"C{i}", ms=5, mfc="none" if part == "working" else None)
        line = [abs(v) if v is not None else float("nan") for v in speeds[strategy]]
        right.plot(CHIPS, line, "o-", color=f"C{i}", label=strategy, ms=4)
    low, high = left.get_xlim()
    left.plot([1, high], [1, high], color="0.7", lw=1, zorder=0)
    left.set(xscale="log", yscale="log", xlabel="by the tables, MiB", ylabel="by the compiler, MiB")
    left.set_title("Memory of a device: state (full), working (open)", fontsize=9)
    right.set(xscale="log", xlabel="v5p chips, the batch the same", ylabel="tokens/s of a chip")
    right.set_title("LLaMA-2 7B, 1M tokens a step, by arithmetic", fontsize=9)
    right.set_xticks(CHIPS, [str(n) for n in CHIPS], minor=False)
    right.minorticks_off()
    right.set_ylim(0)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(to)


def main() -> None:
    """Compiles what is missing, then draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where results are kept")
    parser.add_argument("--image", type=Path, help="where the picture goes")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="some of the default's")
    parser.add_argument("--generation", choices=("v5e", "v6e"), help="of TPU, by libtpu")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if not args.generation:  # the machine code is not looked at, so LLVM need not try
        flags = f"--xla_force_host_platform_device_count={2 * BASE['devices']}"
        flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ["XLA_FLAGS"] = flags
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"sweep{'_' + args.generation if args.generation else ''}.jsonl"
    known = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        known[Point(*(row[f.name] for f in dataclasses.fields(Point))).key] = row
    wanted = points(args.strategies.split(","))
    for point in wanted:
        if point.key not in known:
            known[point.key] = row = measure(point, args.generation)
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{point.key}: {row['state']} and {row['working']} bytes", flush=True)
    rows, speeds = [known[point.key] for point in wanted], paying(CHIPS)
    print(tables(rows, speeds))
    if args.image:
        draw(rows, speeds, args.image)


if __name__ == "__main__":
    main()
