"""Our plans beside MaxText's own, for the same model, slice, sequence and tokens a step.

    PYTHONPATH=.cache/libtpu .venv/bin/python tests/bench/plan_maxtext.py --out=DIR
        --maxtext_python=.../bin/python [--cases=7b_v5p,7b_v5e,70b_v5p,70b_v6e,mixtral_v5p]

Nothing is run, and one compilation takes minutes. MaxText compiles its own step in its own
environment, with ``plan_maxtext_peer.py``; what it gives is kept in DIR and made once. Ours is what
``t5x-llm plan`` says of a recipe at the size of MaxText's step, with the microbatches and the remat
policy that the case names. Both are read by the same reader, ``t5x_llm/plan``, and compiled by the
same libtpu.

Settings of MaxText: those of its own scripts for the model and generation
(``maxtext/configs/tpu``), at the batch and length that the case says, experts without dropping
(its default, Pallas megablox). Ours has the compiler's options of its mesh files; MaxText's scripts
for v5e and v5p have flags that this libtpu has by default or refuses, and ``--option`` gives
MaxText's step one of ours.

  peak      arguments, temporaries, fresh results and program, of the compiler's own account
  cycles    libtpu's estimated cycles, loops by their trips, over an assumed clock
  kernels   Pallas kernels, which carry no estimate, by their products (``t5x_llm/plan/time.py``)
  step      with the collectives that are waited for, by the planner's model
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GIB = 2**30
MAXTEXT = (
    *("compile_topology_num_slices=1", "run_name=plan", "dataset_type=synthetic"),
    *("enable_checkpointing=false", "use_iota_embed=true"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      slice: such as v5p-128.
      chips: of it; the mesh is fsdp over all.
      rows: of a chip.
      length: T.
      theirs: MaxText's settings.
      recipe: of ours, and the files on top of it.
      microbatches: of ours.
      remat: of ours.
    """

    slice: str
    chips: int
    rows: int
    length: int
    theirs: tuple[str, ...]
    recipe: tuple[str, ...]
    microbatches: int
    remat: str

    @property
    def maxtext(self) -> list[str]:
        """Arguments of ``train_compile``."""
        sizes = (f"per_device_batch_size={self.rows}", f"max_target_length={self.length}")
        return [f"compile_topology={self.slice}", *sizes, *MAXTEXT, *self.theirs]

    @property
    def plan(self) -> list[str]:
        """Arguments of ``t5x-llm plan``."""
        files = (f"--gin_file=configs/{name}.gin" for name in self.recipe)
        bindings = {
            "MeshConfig.data": 1,
            "MeshConfig.fsdp": self.chips,
            "Loop.batch_size": self.rows * self.chips,
            "Loop.sequence_length": self.length,
            "Loop.microbatches": self.microbatches,
            "Evaluation.batch_size": self.chips,
            "Run.remat": repr(self.remat),
        }
        sizes = (f"--gin.{name}={value}" for name, value in bindings.items())
        return [*files, *sizes, f"--slice={self.slice}", "--json"]


_MIXTRAL = ("model_name=mixtral-8x7b", "remat_policy=full", "attention=flash")
CASES = {
    "7b_v5p": Case(
        *("v5p-128", 64, 4, 4096),
        ("model_name=llama2-7b", "remat_policy=minimal"),
        ("recipes/llama2_7b",),
        *(1, "save_attention_up"),
    ),
    "7b_v5e": Case(
        *("v5e-256", 256, 4, 2048),
        ("model_name=llama2-7b", "remat_policy=save_qkv_proj"),
        ("recipes/llama2_7b", "meshes/v5e_256"),
        *(2, "save_attention"),
    ),
    "70b_v5p": Case(
        *("v5p-256", 128, 4, 4096),
        ("model_name=llama2-70b", "remat_policy=save_dot_except_mlpwi"),
        ("recipes/llama2_70b",),
        *(2, "save_attention"),
    ),
    "70b_v6e": Case(
        *("v6e-256", 256, 4, 4096),
        ("model_name=llama2-70b", "remat_policy=full"),
        ("recipes/llama2_70b", "meshes/v6e_256"),
        *(2, "full"),
    ),
    "mixtral_v5p": Case(
        *("v5p-128", 64, 8, 4096), _MIXTRAL, ("recipes/mixtral_8x7b",), *(1, "offload_stream")
    ),
}


def theirs(
    case: Case, name: str, out: Path, python: str | None, options: Sequence[str]
) -> dict[str, Any]:
    """MaxText's figures; compiled where ``out`` does not have them."""
    from t5x_llm.core.slices import parse_slice
    from t5x_llm.plan.collectives import collectives
    from t5x_llm.plan.hlo import parse
    from t5x_llm.plan.time import step_time

    base = out / "_".join(("maxtext", name, *(o.replace("=", "_") for o in options)))
    if not base.with_suffix(".json").exists():
        if python is None:
            sys.exit(f"{base}.json is not there: give --maxtext_python to compile it")
        place = f"base_output_directory={out.resolve()}"
        command = [python, HERE / "plan_maxtext_peer.py", base.resolve(), *case.maxtext, place]
        env = os.environ | {"LIBTPU_INIT_ARGS": " ".join(f"--{option}" for option in options)}
        with open(base.with_suffix(".log"), "w") as log:
            both = {"stdout": log, "stderr": subprocess.STDOUT}
            subprocess.run(command, cwd=out, check=True, env=env, **both)
    data = json.loads(base.with_suffix(".json").read_text())
    module = parse(base.with_suffix(".hlo").read_text())
    found = collectives(module, {"fsdp": case.chips})
    time, _ = step_time(module, found, parse_slice("slice", case.slice))
    peak = sum(data[part] for part in ("arguments", "fresh", "temporaries", "code"))
    return _figures(peak, dataclasses.asdict(time) | {"total": time.total}, data)


def ours(case: Case, name: str, out: Path) -> dict[str, Any]:
    """Ours, planned now."""
    command = [sys.executable, "-m", "t5x_llm.cli.main", "plan", *case.plan]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (out / f"ours_{name}.json").write_text(done.stdout)
    data = json.loads(done.stdout)
    if "memory" not in data:
        sys.exit(f"{name}: the compiler refuses ours, {data['over_bytes'] / GIB:.2f} GiB too much")
    spent = {"seconds": data["compile_seconds"], "cpu_seconds": data["compile_cpu_seconds"]}
    return _figures(data["memory"]["total"], data["time"], spent)


def _figures(peak: float, time: dict[str, Any], spent: dict[str, Any]) -> dict[str, Any]:
    figures = {"peak": peak / GIB, "cycles": time["compute"], "kernels": time["kernels"]}
    figures |= {"exposed": time["exposed"], "step": time["total"]}
    figures |= {"wall": spent["seconds"], "cpu": spent["cpu_seconds"]}
    return figures | {"unknown": ", ".join(time["unknown"])}


def main() -> None:
    """Prints a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="where MaxText's modules are kept")
    parser.add_argument("--maxtext_python", help="of an environment with MaxText")
    parser.add_argument("--option", nargs="*", default=[], help="xla_...=..., for MaxText's step")
    parser.add_argument("--cases", default=",".join(CASES), help="some of: " + ", ".join(CASES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    for name in args.cases.split(","):
        case = CASES[name]
        rows = {
            "MaxText": theirs(case, name, args.out, args.maxtext_python, args.option),
            "ours": ours(case, name, args.out),
        }
        print(f"\n{name}: {case.slice}, {case.rows} x {case.length} a chip, {case.theirs}")
        heads = ("peak GiB", "cycles s", "kernels s", "exposed s", "step s", "wall s", "CPU s")
        print(f"{'':<10}" + "".join(f"{head:>11}" for head in heads))
        for label, row in rows.items():
            figures = [row[key] for key in list(row)[:7]]
            print(f"{label:<10}" + "".join(f"{x:>11.3f}" for x in figures))
            if row["unknown"]:
                print(f"  not estimated: {row['unknown']}")
        ratios = (rows["ours"][key] / rows["MaxText"][key] for key in ("peak", "cycles", "step"))
        print("ours / MaxText: peak {:.3f}, cycles {:.3f}, step {:.3f}".format(*ratios))


if __name__ == "__main__":
    main()
