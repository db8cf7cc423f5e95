"""Plans by arithmetic: against the tables' definition, and against published throughput."""

import dataclasses
import itertools
import json
import math

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType

from t5x_llm.cli import plan as command
from t5x_llm.config import parse_flags
from t5x_llm.core import units
from t5x_llm.core.errors import ConfigError
from t5x_llm.core.gpus import GPUS
from t5x_llm.optim import Optimizer
from t5x_llm.parallel import AXES, MeshConfig
from t5x_llm.plan import search
from t5x_llm.plan.gpus import parse_machine
from t5x_llm.plan.of_run import reckon_run
from t5x_llm.plan.remedies import remedies
from t5x_llm.plan.report import text
from t5x_llm.run.config import load_run
from t5x_llm.train.state import abstract_state, place
from t5x_llm.train.task import LmTask


def run_of(recipe, **bindings):
    flags = [f"--gin_file=configs/recipes/{recipe}.gin"]
    flags += [f"--gin.{name.replace('__', '.')}={value!r}" for name, value in bindings.items()]
    return load_run(parse_flags(flags))[0]


def fsdp(recipe, n, rows, length, microbatches, remat):
    mesh = dict(MeshConfig__data=1, MeshConfig__fsdp=n, MeshConfig__tensor=1)
    loop = dict(Loop__batch_size=rows, Loop__sequence_length=length)
    loop |= dict(Loop__microbatches=microbatches, Evaluation__batch_size=n, Run__remat=remat)
    return run_of(recipe, **mesh, **loop)


# Tokens a second of a GPU, MosaicML's table of MPT models (llm-foundry, scripts/train/benchmarking,
# torch's FSDP in bf16); recomputing all where the table says checkpointing.
PUBLISHED = [
    ("h100-8", "llama2_7b", 48, 2048, 1, "save_projections", 10643),
    ("h100-8", "llama2_7b", 256, 4096, 2, "full", 8611),
    ("h100-64", "llama2_70b", 2048, 2048, 4, "full", 1039),
    ("a100-8", "llama2_7b", 96, 2048, 2, "save_projections", 4641),
    ("a100-64", "llama2_70b", 2048, 2048, 4, "full", 410),
]


@pytest.mark.parametrize("name, recipe, rows, length, parts, remat, published", PUBLISHED)
def test_published_throughput(name, recipe, rows, length, parts, remat, published):
    """Shapes are nearly the same, efficiencies are those of other software: within 30%."""
    machine = parse_machine("--slice", name)
    plan, work = reckon_run(fsdp(recipe, machine.chips, rows, length, parts, remat), machine)
    assert plan.fits and plan.analytic
    assert rows * length / plan.time.total / machine.chips == pytest.approx(published, rel=0.3)
    assert "ANALYTIC" in text(plan, work)


def test_what_fsdp_sends():
    """Weights in bfloat16 gathered twice and gradients scattered once: ZeRO's 3 P a microbatch."""
    machine = parse_machine("--slice", "h100-8")
    run = fsdp("llama2_7b", 8, 64, 2048, 2, "full")
    plan, work = reckon_run(run, machine)
    moved = sum(c.bytes * c.times for c in plan.collectives if c.kind != "all-reduce")
    norms = (2 * 32 + 1) * 4096  # lie whole
    assert moved == 3 * 2 * 2 * (work.parameters - norms)
    assert {c.axes for c in plan.collectives} == {("fsdp",)}


def test_what_tensor_sends():
    """Four sums of activations a layer, forward and back (arXiv 1909.08053, section 3)."""
    run = fsdp("llama2_7b", 1, 8, 2048, 1, "none")
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, tensor=8))
    plan = reckon_run(run, parse_machine("--slice", "h100-8"))[0]
    sums = [c for c in plan.collectives if c.axes == ("tensor",)]
    assert sum(c.bytes * c.times for c in sums) == (4 * 32 + 2) * 8 * 2048 * 4096 * 2


def test_a_node_is_faster_than_the_network():
    near, far = (
        reckon_run(fsdp("llama2_7b", n, 8 * n, 2048, 1, "full"), parse_machine("--slice", name))[0]
        for n, name in ((8, "h100-8"), (64, "h100-64"))
    )
    assert near.time.hidden < far.time.hidden < 3 * near.time.hidden


@pytest.mark.parametrize("name", ["h100-12", "h101-8", "v5p-7", "8", "h100-0"])
def test_names_that_are_none(name):
    with pytest.raises(ConfigError, match="--slice"):
        parse_machine("--slice", name)
    for kind in GPUS:
        assert parse_machine("--slice", f"{kind}-8").facts is GPUS[kind]


MODEL = run_of("quickstart").build_model()
TASK = LmTask(MODEL, 16, ("a",))
TX = Optimizer("adamw").build(2000, MODEL.logical_axes())
WAYS = st.sampled_from([1, 2, 4, 8])


def pieces(table, names, shape, mesh):
    """What the tables say, by themselves: axes that divide, each for the first that asks for it."""
    used, count = set(), 1
    for name, size in zip(names, shape, strict=True):
        target = table[name] if name else ()
        own = 1
        for axis in (target,) if isinstance(target, str) else target or ():
            if axis not in used and size % (own * mesh[axis]) == 0:
                used.add(axis)
                own *= mesh[axis]
        count *= own
    return count


@settings(deadline=None, max_examples=30)
@given(fsdp=WAYS, tensor=WAYS, context=WAYS, strategy=st.sampled_from(["data", "zero1", "fsdp"]))
def test_state_is_what_the_tables_say(fsdp, tensor, context, strategy):
    """Bytes of parameters and of both moments on a device, of every parameter its share."""
    config = MeshConfig(fsdp=fsdp, tensor=tensor, context=context, strategy=strategy)
    sizes, rules = config.shape(fsdp * tensor * context), config.rules()
    mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    state, shardings = abstract_state(TASK, TX), place(TASK, TX, mesh, rules).state
    held = [
        sum(
            math.prod(s.shard_shape(x.shape)) * 4
            for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True)
            if x.ndim
        )
        for tree, placed in (
            (state.params, shardings.params),
            (state.opt_state, shardings.opt_state),
        )
    ]
    axes = jax.tree.leaves(MODEL.logical_axes(), is_leaf=lambda x: isinstance(x, tuple))
    flat = [x.shape for x in jax.tree.leaves(MODEL.abstract_params())]
    wanted = [
        sum(4 * math.prod(s) // pieces(table, a, s, sizes) for s, a in zip(flat, axes, strict=True))
        for table in (rules.params, rules.optimizer)
    ]
    assert held == [wanted[0], 2 * wanted[1]]


def test_a_search_compiles_no_hopeless_candidate(monkeypatch):
    every = search._changes
    monkeypatch.setattr(search, "_changes", lambda *a: itertools.islice(every(*a), 0, None, 23))
    machine = parse_machine("--slice", "v5e-16")
    wide = dict(Llama__d_model=2048, Llama__n_layers=64, Llama__d_ff=8192, Llama__n_heads=16)
    wide |= dict(Llama__n_kv_heads=16, Evaluation__batch_size=16, Export__enabled=False)
    run = run_of("quickstart", Loop__batch_size=4096, MeshConfig__fsdp=16, **wide)
    found = search.candidates(run, machine, 1, None, None)
    assert found[0].run == run and len(
        {(c.run.mesh, c.run.loop, c.run.remat) for c in found}
    ) == len(found)
    asked = []

    def plan_of(other):
        asked.append(other)
        return next((c.reckoned, c.work) for c in found if c.run is other)

    done = search.search(found, 5, plan_of)
    assert len(asked) == 5 and asked[0] is run
    excluded = [c for c in found[1:] if c.exceeds_memory]
    assert excluded and not any(c.run in asked for c in excluded)
    fits = [c.plan.fits for c in done if c.plan]
    assert fits == sorted(fits, reverse=True)
    rows = "\n".join(search.table(done))
    assert "by arithmetic: over by" in rows and "MFU" in rows
    lines = search.bindings(done[0])
    assert f"Run.remat = {done[0].run.remat!r}" in lines and len(lines) == 9


def plan(capsys, *words):
    flags = ["--gin_file=configs/recipes/quickstart.gin", "--gin.Loop.batch_size=16"]
    command.main([*flags, "--gin.Evaluation.batch_size=16", *words])
    return capsys.readouterr().out


def test_the_command_for_gpus(capsys):
    found = json.loads(plan(capsys, "--slice=a100-8", "--json", "--tokens=1e9", "--price=2"))
    assert found["analytic"] and found["fits"] and found["slice"] == "a100-8"
    assert found["cost"] == pytest.approx(found["days"] * 24 * 8 * 2) and 0 < found["mfu"] < 1
    assert found["textbook_days"] == pytest.approx(8e9 * 1_450_624 / (8 * 156e12) / 86400, rel=1e-6)


@pytest.mark.parametrize("words", [("--slice=here", "--search"), ("--slice=h100-8", "--most=0")])
def test_flags_that_do_not_go_together(capsys, words):
    with pytest.raises(SystemExit) as left:
        plan(capsys, *words)
    assert left.value.code == 2 and "ConfigError" in capsys.readouterr().err


def test_a_failed_fit_says_what_to_change():
    machine = parse_machine("--slice", "h100-8")
    run = fsdp("llama2_7b", 8, 1024, 4096, 4, "save_projections")
    found = remedies(run, machine, 1)
    plan, work = reckon_run(run, machine)
    assert not plan.fits and found.reckoned == plan.memory.total
    assert any(c.fits for c in found.changes) and found.larger is None
    assert all(c.fits == (c.bytes <= plan.available) for c in found.changes)
    said = text(plan, work, found)
    assert "DOES NOT FIT" in said and "Run.remat = 'full'" in said and "alone" not in said


def test_a_state_that_is_too_large():
    """Smaller activations are not proposed; a slice is, and room on the host."""
    run = run_of("llama2_70b", MeshConfig__fsdp=4)
    machine = parse_machine("--slice", "v5p-8")
    found = remedies(run, machine, 1)
    # 69 G parameters in float32 with two moments, on 4 chips; norms and scalars aside.
    assert found.state == pytest.approx(68_976_648_192 * 12 / 4, rel=1e-3)
    hosted = "MeshConfig.optimizer_on_host = True"
    assert found.changes and all(hosted in c.binding for c in found.changes)
    assert not any(c.fits for c in found.changes)
    assert found.larger is not None and found.larger.fits
    assert found.larger.binding.startswith("--slice=v5p-32; MeshConfig.fsdp = 16")
    said = text(*reckon_run(run, machine), found)
    said_of = f"alone take {units.size(found.state)} of {units.size(found.available)}"
    assert said_of in said and found.larger.binding in said


def test_slices_pay_for_the_network():
    """What is between slices is sent there once for each piece, and a third slice costs more."""
    found = {}
    for slices in (1, 2, 3):
        lines = dict(MeshConfig__replica=slices, Loop__batch_size=1536, Evaluation__batch_size=384)
        run = run_of("llama2_7b", MeshConfig__fsdp=64, **lines)
        plan, work = reckon_run(run, parse_machine("--slice", "v5p-128"), slices)
        found[slices] = plan
        far = [c for c in plan.collectives if c.network]
        assert bool(far) == (slices > 1) == (plan.time.network > 0)
        assert all(c.axes == ("replica",) and c.group == slices for c in far)
        sent = 2 * (slices - 1) / slices * 4 * 6_738_415_616 * 2 / 64  # bf16, 4 microbatches
        assert sum(c.sent for c in far) == pytest.approx(sent, rel=0.05)
        assert ("between slices" in text(plan, work)) == (slices > 1)
    assert found[3].time.network > 1.3 * found[2].time.network


def test_a_plan_that_does_not_fit_ends_with_status_1(capsys):
    big = ["--gin.Llama.d_model=8192", "--gin.Llama.n_layers=40", "--gin.Llama.d_ff=32768"]
    words = ["--gin_file=configs/recipes/quickstart.gin", "--gin.MeshConfig.fsdp=8"]
    words += ["--gin.Loop.batch_size=32", "--gin.Evaluation.batch_size=32"]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            command.main([*words, *big, "--slice=a100-40gb-8", *more])
        assert left.value.code == 1 and "its" in capsys.readouterr().out
