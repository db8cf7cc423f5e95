"""Compile the real train step for a slice that is not here, and say what a run would take."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from t5x_llm.cli.main import guard
from t5x_llm.cli.train import gin_parser
from t5x_llm.config import parse_flags
from t5x_llm.core.slices import parse_slice

DESCRIPTION = """Compile the train step of a run for a described TPU slice, on this CPU.

  t5x-llm plan --gin_file=RECIPE.gin --slice=v5p-128
  t5x-llm plan --gin_file=RECIPE.gin --slice=v5e-256 --search --tokens=2e12 --price=1.2

The step is the one that training runs, compiled by libtpu: memory is the compiler's, time is
estimated from its schedule. --search also tries other meshes, microbatches and remat choices, and
recommends the fastest that fits."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``t5x-llm plan``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    parser = gin_parser("t5x-llm plan", DESCRIPTION)
    add = parser.add_argument
    add("--slice", required=True, help="such as v5p-128")
    add("--slices", type=int, default=1, help="how many, joined by the data-centre network")
    add("--tokens", type=float, help="of the run: adds days")
    add("--price", type=float, help="of a chip-hour: adds money")
    add("--search", action="store_true", help="try other meshes, microbatches and remat choices")
    add("--most", type=int, default=12, help="compilations of a search (default 12)")
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args(flags.rest)
    # The described devices are the only TPU; this machine's own are not asked.
    os.environ["JAX_PLATFORMS"] = "cpu"

    from t5x_llm.cli.precision import no_faster_on
    from t5x_llm.cli.run import load_run
    from t5x_llm.plan.report import figures, text

    run = load_run(flags)[0]
    slice_ = parse_slice("--slice", args.slice)
    if reason := no_faster_on(run.precision, slice_.generation):
        print(f"warning: {reason}", file=sys.stderr)
    made = []
    runs = _candidates(run, slice_.chips * args.slices, args.most) if args.search else [run]
    for i, candidate in enumerate(runs):
        plan, work = _plan(candidate, slice_, args)
        made.append((candidate, plan, work))
        if args.search:
            print(_row(i + 1, len(runs), plan, work), file=sys.stderr, flush=True)
    if args.search:
        made.sort(key=lambda m: (not m[1].fits, m[1].time.total if m[1].time else m[1].over))
    if args.json:
        found = [figures(plan, work) for _, plan, work in made]
        print(json.dumps(found if args.search else found[0], indent=1))
        return
    best, plan, work = made[0]
    if args.search:
        for i, (_, other, other_work) in enumerate(made):
            print(_row(i + 1, len(made), other, other_work))
        print("\nThe fastest that fits:" if plan.fits else "\nNone fits; the nearest:")
        print("\n".join(f"  {binding}" for binding in _bindings(best)) + "\n")
    print(text(plan, work))


def _plan(run: Any, slice_: Any, args: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    from t5x_llm.cli.assemble import make_step, token_flops
    from t5x_llm.cli.run import check_fits
    from t5x_llm.data.batch import Batch
    from t5x_llm.data.objective import ENCODER
    from t5x_llm.parallel import batch_sharding, make_mesh
    from t5x_llm.plan.chips import described_devices
    from t5x_llm.plan.compile import plan_step
    from t5x_llm.plan.report import Work
    from t5x_llm.train.state import abstract_state, state_shardings, with_shardings
    from t5x_llm.train.step import control_sharding, quiet_control

    mesh = make_mesh(run.mesh, described_devices(slice_, args.slices))
    rules = run.mesh.rules()
    check_fits(run, mesh)
    model = run.build_model()
    sources = len(run.data.mixture.sources) if run.data.mixture else 1
    tx, step = make_step(run, model, mesh, rules, sources)
    rows, length = run.loop.batch_size, run.loop.sequence_length

    def array(dtype: Any, *shape: int) -> Any:
        sharding = batch_sharding(mesh, rules, len(shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    ids = array(jnp.int32, rows, length)
    extra = dict.fromkeys(ENCODER, ids) if model.config.kind == "encoder_decoder" else {}
    mask, source = array(jnp.float32, rows, length), array(jnp.int32, rows)
    batch = Batch(ids, ids, ids, ids, mask, source, extra)
    state = with_shardings(abstract_state(model, tx), state_shardings(model, tx, mesh, rules))
    control = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        quiet_control(mesh),
        control_sharding(mesh),
    )
    work = Work(
        name=type(run.model).__name__,
        slice=slice_,
        slices=args.slices,
        mesh=dict(mesh.shape),
        rows=rows,
        length=length,
        parameters=model.parameter_count()["total"],
        flops_per_token=token_flops(run, model),
        tokens=args.tokens,
        price=args.price,
        settings=f"{run.loop.microbatches} microbatches, remat {run.remat}"
        + (f", {run.precision.quantized} linear layers" if run.precision.quantized else ""),
    )
    return plan_step(step, (state, batch, control), slice_, work.mesh), work


def _candidates(run: Any, chips: int, most: int) -> list[Any]:
    """The run, and others like it, the likeliest first."""
    from t5x_llm.core.errors import ConfigError

    found = [run]

    def offer(**changes: Any) -> None:
        mesh = dataclasses.replace(run.mesh, **changes.pop("mesh", {}))
        loop = dataclasses.replace(run.loop, **changes.pop("loop", {}))
        try:
            other = dataclasses.replace(run, mesh=mesh, loop=loop, **changes)
        except ConfigError:
            return
        if other not in found:
            found.append(other)

    for mesh, microbatches, remat in itertools.product(
        _meshes(run, chips), (1, 2, 4), ("save_projections", "save_qkv", "full")
    ):
        if run.loop.batch_size % microbatches == 0:
            offer(mesh=mesh, loop={"microbatches": microbatches}, remat=remat)
    # Unlike ones early: a search that is cut short has seen something of everything.
    order = sorted(range(1, len(found)), key=lambda i: (i % 5, i))
    return [found[0], *(found[i] for i in order)][:most]


def _meshes(run: Any, chips: int) -> Iterator[dict[str, int]]:
    """Splits of a slice between fsdp and tensor; the other axes stay."""
    mesh = run.mesh
    rest = max(mesh.replica, 1) * mesh.stage * mesh.expert * mesh.context
    free = chips // rest
    for tensor in (1, 2, 4, 8):
        if free % tensor == 0:
            yield {"data": 1, "fsdp": free // tensor, "tensor": tensor}


def _bindings(run: Any) -> list[str]:
    """Gin lines of what a search chooses."""
    axes = ("replica", "data", "fsdp", "expert", "context", "tensor")
    lines = [f"MeshConfig.{axis} = {getattr(run.mesh, axis)}" for axis in axes]
    lines += [f"Loop.microbatches = {run.loop.microbatches}", f"Run.remat = {run.remat!r}"]
    return lines


def _row(i: int, n: int, plan: Any, work: Any) -> str:
    from t5x_llm.core.units import size
    from t5x_llm.plan.report import figures

    axes = " ".join(f"{axis}={size}" for axis, size in work.mesh.items() if size > 1)
    said = f"over by {size(plan.over)}"
    if plan.time is not None:
        mfu = figures(plan, work)["mfu"]
        said = f"{size(plan.memory.total):>10}  {plan.time.total:8.4f} s  MFU {mfu:5.1%}"
        said += "" if plan.fits else f"  over by {size(plan.over)}"
    return f"{i:>3}/{n} {axes:<26} {work.settings:<40} {said}"
