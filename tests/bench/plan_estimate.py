"""The estimate of ``train.py --dry_run`` beside libtpu's account, for the large recipes.

    PYTHONPATH=.cache/libtpu .venv/bin/python tests/bench/plan_estimate.py --out=DIR
        [--cases=palm_62b,palm_540b] [--estimate_only]

A compilation takes minutes; what was compiled is kept in DIR/estimates.jsonl and made once. The
table has GiB of a device: the estimate's total, the compiler's, and their ratio. Nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

GIB = 2**30
_V6E = ("configs/meshes/v6e_256.gin", "Evaluation.batch_size=256", "Loop.microbatches=2")
_V5E = ("configs/meshes/v5e_256.gin", "MeshConfig.data=1", "MeshConfig.fsdp=256")
_ONE = ("Loop.batch_size=256", "Loop.microbatches=1", "Run.remat='save_attention_up'")


@dataclasses.dataclass(frozen=True)
class Case:
    """One recipe on a slice.

    Attributes:
      recipe: its name.
      slice: such as v5p-128.
      slices: how many.
      changes: further gin files, and bindings.
    """

    recipe: str
    slice: str
    slices: int = 1
    changes: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """Flags of gin."""
        files = [f"configs/recipes/{self.recipe}.gin"]
        files += [word for word in self.changes if word.endswith(".gin")]
        bindings = [word for word in self.changes if not word.endswith(".gin")]
        return [f"--gin_file={file}" for file in files] + [f"--gin.{word}" for word in bindings]


CASES = {
    "llama2_7b": Case("llama2_7b", "v5p-128", 1, _ONE),
    "llama2_7b_v5e": Case("llama2_7b", "v5e-256", 1, (*_V5E, "Run.remat='save_attention_up'")),
    "llama2_13b": Case("llama2_13b", "v5p-128"),
    "llama2_70b": Case("llama2_70b", "v5p-256"),
    "llama2_70b_v6e": Case("llama2_70b", "v6e-256", 1, (*_V6E, "Run.remat='full'")),
    "mixtral_8x7b": Case("mixtral_8x7b", "v5p-128"),
    "palm_8b": Case("palm_8b", "v4-512"),
    "palm_62b": Case("palm_62b", "v4-1024"),
    "palm_540b": Case("palm_540b", "v4-3072", 2),
    "bloom_176b": Case("bloom_176b", "v5p-1024"),
    "glm_130b": Case("glm_130b", "v5p-1024"),
    "t5_11b": Case("t5_11b", "v5p-256"),
    "yuan2_2_1b": Case("yuan2_2_1b", "v5p-128"),
    "yuan2_102b": Case("yuan2_102b", "v5p-1024"),
    "falcon_180b": Case("falcon_180b", "v5p-1024"),
}


def estimated(case: Case) -> int:
    """Bytes of a device by the estimate."""
    from t5x_llm.config import parse_flags
    from t5x_llm.plan.describe import planned_mesh
    from t5x_llm.plan.estimate import estimate
    from t5x_llm.run.assembled import assemble
    from t5x_llm.run.config import load_run

    run = load_run(parse_flags(case.flags))[0]
    return estimate(assemble(run, planned_mesh(run)[0])).total


def compiled(case: Case) -> dict[str, Any]:
    """Figures of the plan by the compiler."""
    from t5x_llm.config import parse_flags
    from t5x_llm.plan.planned import parse_machines, plan_run
    from t5x_llm.run.config import load_run

    run = load_run(parse_flags(case.flags))[0]
    figures = plan_run(run, parse_machines(case.slice, case.slices), case.slices).figures()
    return {"memory": figures["memory"]["total"], "step": figures["time"]["total"]}


def main() -> None:
    """Compiles what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="where results are kept")
    parser.add_argument("--cases", default=",".join(CASES), help="some of: " + ", ".join(CASES))
    parser.add_argument("--estimate_only", action="store_true", help="compile nothing")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    file, known = args.out / "estimates.jsonl", {}
    for line in file.read_text().splitlines() if file.exists() else ():
        known |= json.loads(line)
    print("| recipe | slice | estimate, GiB | compiled | ratio |\n|---|---|---|---|---|")
    for name in args.cases.split(","):
        case = CASES[name]
        told = estimated(case) / GIB
        if name not in known and not args.estimate_only:
            known[name] = compiled(case)
            with file.open("a") as out:
                out.write(json.dumps({name: known[name]}) + "\n")
        many = f"{case.slices} x " if case.slices > 1 else ""
        found = known[name]["memory"] / GIB if name in known else None
        measured = "| - | - |" if found is None else f"| {found:.1f} | {told / found:.2f} |"
        print(f"| {name} | {many}{case.slice} | {told:.1f} {measured}", flush=True)


if __name__ == "__main__":
    main()
