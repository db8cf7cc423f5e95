"""Equal and unequal stages for a model with a large vocabulary: a cost model and a simulation.

  python tests/bench/pipeline_balance.py [--vocab=256000 --d_model=4096 --layers=32 --stages=4 ...]

Nothing is measured. Costs are FLOPs over a peak; the timeline is ``parallel.pipeline.simulate``, in
which messages take no time. Two ways to place embedding and head are compared:

  on the ends   the embedding on the first stage, the head and its loss on the last (Megatron-LM,
                Yuan 2.0), with equal stages and with the best unequal ones
  over all      both cut over the stages by vocabulary, as this project does; its stages all take
                the time of the largest
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools

from t5x_llm.parallel.pipeline import Pipeline, PipelineSchedule, simulate

PEAK = 459e12  # FLOP/s of a TPU v5p chip, bfloat16 (vendor)
ADAM = 16  # bytes of a parameter: float32 master, gradient, two moments


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes; layers are attention with all heads and a gated feed-forward layer of 8/3 D."""

    vocab: int
    d_model: int
    layers: int
    length: int

    @property
    def layer_params(self) -> int:
        """4 D^2 + 3 * 8/3 D^2."""
        return 12 * self.d_model**2

    @property
    def table_params(self) -> int:
        """V D, of the embedding and again of the head."""
        return self.vocab * self.d_model

    def layer_flops(self) -> float:
        """Forward FLOPs of one layer for a token: 2 a parameter, and causal attention."""
        return 2 * self.layer_params + 2 * self.length * self.d_model

    def head_flops(self) -> float:
        """Forward FLOPs of the logits of a token; a lookup costs none."""
        return 2 * self.table_params


def timeline(
    model: Model, schedule: PipelineSchedule, layers: tuple[int, ...], head: str, tokens: int
) -> tuple[float, float, list[float]]:
    """(seconds of a step, share idle or in vain, seconds of each stage for a microbatch both ways).

    A table over all stages is worked on by all at once when the layers are done: no bubble.
    """
    p, m = schedule.stages, schedule.microbatches
    layer, logits = (f * tokens / PEAK for f in (model.layer_flops(), model.head_flops()))
    forward = [layer * (n if head == "ends" else max(layers)) for n in layers]
    if head == "ends":
        forward[-1] += logits
    time, _ = simulate(schedule, [[s] for s in forward], [[2 * s] for s in forward])
    if head == "all":
        time += 3 * m * logits / p
        forward = [f + logits / p for f in forward]
    useful = 3 * m * (model.layers * layer + logits)
    return time, 1 - useful / (p * time), [3 * s for s in forward]


def memory(model: Model, layers: tuple[int, ...], head: str) -> list[float]:
    """GB of parameters, gradients and Adam's moments of each stage, tables untied."""
    held = [n * model.layer_params for n in layers]
    if head == "ends":
        held[0] += model.table_params
        held[-1] += model.table_params
    else:
        held = [h + 2 * model.table_params / len(layers) for h in held]
    return [ADAM * h / 1e9 for h in held]


def best_unequal(
    model: Model, schedule: PipelineSchedule, tokens: int, spread: int = 6
) -> tuple[int, ...]:
    """Layers of the stages with the shortest simulated step, tables on the ends; then by memory."""
    p, even = schedule.stages, model.layers // schedule.stages
    least = max(1, even - spread)
    choices = itertools.product(range(least, even + 4), repeat=2)

    def candidates() -> list[tuple[int, ...]]:
        found = []
        for first, last in choices:  # between the ends, as equal as may be
            rest = model.layers - first - last
            if p > 2 and rest >= p - 2:
                low, more = divmod(rest, p - 2)
                middle = tuple(low + (i < more) for i in range(p - 2))
                found.append((first, *middle, last))
            elif p == 2 and rest == 0:
                found.append((first, last))
        return found

    def cost(layers: tuple[int, ...]) -> tuple[float, float]:
        return timeline(model, schedule, layers, "ends", tokens)[0], max(
            memory(model, layers, "ends")
        )

    return min(candidates(), key=cost)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("vocab", 256_000), ("d_model", 4096), ("layers", 32), ("length", 4096), ("stages", 4),
        ("microbatches", 16),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = Model(args.vocab, args.d_model, args.layers, args.length)
    schedule = Pipeline(args.microbatches).schedule(args.stages)
    low, more = divmod(args.layers, args.stages)
    equal = tuple(low + (i < more) for i in range(args.stages))
    unequal = best_unequal(model, schedule, args.length)
    print(
        f"simulated, not measured: {args.layers} layers of width {args.d_model}, vocabulary "
        f"{args.vocab:,}, {args.stages} stages, {args.microbatches} microbatches of "
        f"{args.length} tokens, {PEAK / 1e12:.0f} TFLOP/s a stage"
    )
    print(
        f"the head costs as much as {model.head_flops() / model.layer_flops():.1f} layers; "
        f"bubble of balanced stages {schedule.bubble:.1%}\n"
    )
    print(f"{'stages':<34} {'ms a step':>10} {'lost':>7}   ms of a stage's microbatch; GB held")
    for label, layers, head in (
        ("equal, tables on the ends", equal, "ends"),
        ("unequal, tables on the ends", unequal, "ends"),
        ("equal, tables over all stages", equal, "all"),
        ("unequal, tables over all stages", unequal, "all"),
    ):
        time, idle, stages = timeline(model, schedule, layers, head, args.length)
        held = memory(model, layers, head)
        print(
            f"{label:<34} {time * 1e3:>10.1f} {idle:>7.1%}   "
            f"{', '.join(f'{s * 1e3:.1f}' for s in stages)}; "
            f"{', '.join(f'{h:.1f}' for h in held)}"
        )
        print(f"  layers {layers}")


if __name__ == "__main__":
    main()
