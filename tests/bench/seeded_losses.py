"""The losses of short seeded runs, in full: a change meant to be neutral prints the same lines.

  python tests/bench/seeded_losses.py > before.txt
  python tests/bench/seeded_losses.py | diff before.txt -

Five kinds of run: the quickstart, a mixture of experts with microbatches, T5 on span corruption,
Mamba, and GLM's blank filling on a decoder. Each line has the run's name, the step, and the loss as
a hexadecimal float.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))

import tiny

DENOISING = "TokenizerTraining.extra_ids = 32\nData.denoising = @Denoising()\n"
SIZES = "d_model = 32|n_layers = 2"


def preset(name: str, *fields: str) -> str:
    """Gin lines that make ``name`` the run's model, with these fields and 400 tokens."""
    lines = [f"{name}.{field}" for field in ("vocab_size = 400", *SIZES.split("|"), *fields)]
    return "\n".join([f"Run.model = @{name}()", *lines]) + "\n"


RUNS = {
    "moe": preset("Mixtral", "n_heads = 4", "n_kv_heads = 2", "d_ff = 64", "n_experts = 4")
    + "Loop.microbatches = 2\nRun.z_loss = 1e-4\n",
    "t5": preset("T5", "d_ff = 64", "n_heads = 4", "head_dim = 8", "start_id = 3")
    + DENOISING
    + "Denoising.objective = 'span_corruption'\n",
    "mamba": preset("Mamba"),
    "glm": DENOISING + "Denoising.objective = 'blank_filling'\nRun.neftune = 5.0\n",
}
# Said here, so that checkouts of any age compile alike.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
FLAGS = (
    *("--gin.Export.enabled=False", "--gin.Samples.prompts=()", "--gin.Loop.log_every=1"),
    "--gin.CheckpointConfig.every_steps=1000",
)


def losses(root: pathlib.Path, directory: pathlib.Path, *flags: str) -> dict[int, float]:
    """Trains in ``directory`` and gives {step: loss}."""
    subprocess.run(
        [sys.executable, str(root / "train.py"), *flags, *FLAGS],
        cwd=root if "quickstart" in flags[0] else directory,
        env=tiny.environment() | {"PYTHONPATH": str(root), "XLA_FLAGS": XLA_FLAGS},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return tiny.losses(directory / "run")


def main() -> None:
    """Prints the losses of all runs, or of those named."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", help="quickstart, moe, t5, mamba, glm; all if none")
    parser.add_argument("--root", type=pathlib.Path, default=tiny.ROOT, help="checkout to run")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    for name in args.names or ("quickstart", *RUNS):
        with tempfile.TemporaryDirectory() as made:
            directory = pathlib.Path(made)
            flags = [f"--gin.Loop.steps={args.steps}"]
            if name == "quickstart":
                flags = ["--gin_file=configs/recipes/quickstart.gin", *flags]
                flags += [f"--gin.Run.directory='{made}/run'", "--gin.Schedule.warmup_steps=4"]
                flags += [f"--gin.Data.store_dir='{made}/store'"]
            else:
                tiny.corpus(directory)
                (directory / "run.gin").write_text(tiny.GIN + RUNS[name])
                flags = ["--gin_file=run.gin", *flags]
            for step, loss in losses(args.root, directory, *flags).items():
                print(name, step, json.loads(json.dumps(loss)).hex(), flush=True)


if __name__ == "__main__":
    main()
