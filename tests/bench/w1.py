"""W1: the CPU train step of a 30 M parameter LLaMA, ours beside transformers + torch, interleaved.

    .venv/bin/python tests/bench/w1.py --peer_python=.venv-parity/bin/python

LLaMA, d 512, 8 layers, 8 heads, SwiGLU 1408, vocabulary 8192, untied, batch 8 x 512, AdamW, global
clip 1.0 (configs/models/llama/w1.gin). Each side is a process of its own that waits while another
one works; rounds go A B A B. A figure is the median over rounds [smallest, largest]. Peak memory is
the largest resident set of the process. The first step is from the start of the process to the end
of step 1, imports and compilation in it; ours is then started again with a warm compilation cache.

FLOPs: 6 N a token, N with the head and without the input table, plus causal attention; no
recomputation. W1: 6 x 29.89 M + 6 x 8 x 512 x 512 = 191.9 MFLOP a token.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROWS, LENGTH, VOCAB = 8, 512, 8192
TOKENS = ROWS * LENGTH
FLOPS = 6 * 29.89e6 + 6 * 8 * 512 * 512


def ours(dtype: str, remat: str) -> Callable[[], float]:
    """Our step: the real model, optimizer and train step, on a mesh of one device."""
    import jax
    import numpy as np

    from t5x_llm.cli.run import load_run
    from t5x_llm.config import parse_flags
    from t5x_llm.data.batch import Batch
    from t5x_llm.parallel import make_mesh
    from t5x_llm.train.state import init_state, state_shardings
    from t5x_llm.train.step import make_train_step

    flags = ["configs/recipes/quickstart.gin", "configs/models/llama/w1.gin"]
    run, _ = load_run(
        parse_flags(
            [f"--gin_file={f}" for f in flags]
            + [f"--gin.Policy.compute='{dtype}'", f"--gin.Run.remat='{remat}'"]
        )
    )
    mesh, rules, model = make_mesh(run.mesh), run.mesh.rules(), run.build_model()
    tx = run.optimizer.build(1000, model.logical_axes())
    state = init_state(model, tx, jax.random.key(0), mesh, rules)
    step = make_train_step(
        model, tx, run.optimizer.schedule.build(1000), mesh=mesh, rules=rules,
        state_shardings=state_shardings(model, tx, mesh, rules), n_sources=1,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    ones = np.ones((ROWS, LENGTH), np.int32)
    batch = Batch(
        tokens[:, :-1], tokens[:, 1:], positions, ones, ones.astype(np.float32),
        np.zeros(ROWS, np.int32),
    )  # fmt: skip

    def advance() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return advance


def torch_peer(dtype: str) -> Callable[[], float]:
    """transformers' LLaMA in torch: bf16 autocast, or float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(2)
    model: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            intermediate_size=1408,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
            use_cache=False,
        )  # fmt: skip
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH + 1))

    def advance() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return advance


def serve(side: str, dtype: str, remat: str, start: float) -> None:
    """A child: makes a step for every line of input, and answers with its seconds."""
    advance = ours(dtype, remat) if side == "ours" else torch_peer(dtype)
    advance()
    first = time.time() - start
    print(json.dumps({"first": first}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            loss = advance()
        seconds = (time.perf_counter() - begin) / int(line)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak": peak, "loss": loss}), flush=True)


class Child:
    """One side in its own process."""

    def __init__(self, python: str, side: str, dtype: str, remat: str, cache: str = ""):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
        # The numpy-only workarounds of some machines slow torch and jax down alike; leave them out.
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            environment.pop(name, None)
        command = [python, __file__, "--child", side, dtype, remat, str(time.time())]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._answer()["first"]
        self.rounds: list[float] = []
        self.peak = 0.0

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a side ended with status {self.process.wait()}; see above")

    def steps(self, count: int) -> None:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.rounds.append(answer["seconds"])
        self.peak = answer["peak"]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def show(name: str, child: Child) -> None:
    rates = [TOKENS / s for s in child.rounds]
    middle = statistics.median(rates)
    print(
        f"  {name:<22} {middle:7.0f} tokens/s [{min(rates):.0f}, {max(rates):.0f}]  "
        f"{middle * FLOPS / 1e9:5.0f} GFLOP/s  peak {child.peak:.2f} GiB  "
        f"first step {child.first:.1f} s",
        flush=True,
    )


def compare(dtype: str, args: argparse.Namespace) -> None:
    """All sides of one dtype."""
    with tempfile.TemporaryDirectory() as cache:
        cold = Child(sys.executable, "ours", dtype, args.remat, cache)
        sides = {"t5x_llm": cold}
        if args.peer_python:
            sides["transformers + torch"] = Child(args.peer_python, "torch", dtype, args.remat)
        for _ in range(args.rounds):
            for child in sides.values():
                child.steps(args.steps)
        for child in sides.values():
            child.close()
        print(f"{dtype}, remat {args.remat}, {args.rounds} rounds of {args.steps} steps")
        for name, child in sides.items():
            show(name, child)
        warm = Child(sys.executable, "ours", dtype, args.remat, cache)
        warm.close()
        print(f"  first step of ours with a warm compilation cache: {warm.first:.1f} s")
    if args.peer_python:
        peer = sides["transformers + torch"]
        ratios = [b / a for a, b in zip(cold.rounds, peer.rounds, strict=True)]
        print(
            f"  ours / torch: speed {statistics.median(ratios):.2f}x "
            f"[{min(ratios):.2f}, {max(ratios):.2f}], memory {cold.peak / peer.peak:.2f}x"
        )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        side, dtype, remat, start = sys.argv[2:]
        return serve(side, dtype, remat, float(start))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer_python", help="a python with torch and transformers")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--remat", default="none")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    args = parser.parse_args()
    print(f"{FLOPS / 1e6:.1f} MFLOP a token: 6 N + causal attention, recomputation not counted")
    for dtype in args.dtypes:
        compare(dtype, args)


if __name__ == "__main__":
    main()
