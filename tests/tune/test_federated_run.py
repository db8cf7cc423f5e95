"""Federated runs: from a gin file to the end, resumed, in several processes, against one place."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from compiling import QUICKLY
from four_parties import ALPHABETS

from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError, SpikeError
from t5x_llm.nn.adapters import roots
from t5x_llm.run import base
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.run.federated import Federated
from t5x_llm.run.load import load
from t5x_llm.run.start import imported
from t5x_llm.train.state import state_from_params
from t5x_llm.tune.federated import session
from t5x_llm.tune.federated.averaging import Averager
from t5x_llm.tune.federated.exchange import Exchange
from t5x_llm.tune.federated.parties import LocalRound, Trainee, open_party, party_run
from t5x_llm.tune.federated.rounds import Rounds, Server

ROOT = pathlib.Path(__file__).parents[2]
NAMES = list(ALPHABETS)


def configured(*bindings):
    run, resolved = load_run(parse_flags(["--gin_file=fed.gin", *(f"--gin.{b}" for b in bindings)]))
    return run, resolved.operative_config_text()


@pytest.fixture(scope="module")
def done(made):
    """The directory with a finished ``run``."""
    before = os.getcwd()
    os.chdir(made)
    try:
        run, text = configured()
        session.train(run, text)
    finally:
        os.chdir(before)
    return made


@pytest.fixture
def here(done, monkeypatch):
    monkeypatch.chdir(done)
    return done


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved(directory, step):
    """Every array of a checkpoint's adapter, by path."""
    import orbax.checkpoint as ocp

    path = directory.absolute() / "checkpoints" / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    whole = ocp.RestoreArgs(restore_type=np.ndarray)
    wanted = jax.tree.map(lambda _: whole, handler.metadata(path).tree)
    tree = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in flat}


def same(one, other):
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def test_a_run_is_a_run(here):
    rounds = [line for line in lines(here / "run" / "journal.jsonl") if line["event"] == "round"]
    assert [line["step"] for line in rounds] == [2, 4, 6]
    assert all(set(line["loss"]) == set(NAMES) for line in rounds)
    start = lines(here / "run" / "journal.jsonl")[0]
    tokens = start["parties"]
    assert tokens["dog"] > 2 * tokens["ant"]
    for name in NAMES:  # weighted by data
        share = tokens[name] / sum(tokens.values())
        assert rounds[0]["weights"][name] == pytest.approx(share, rel=1e-12)
    metrics = [line for line in lines(here / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    (held_out,) = [line for line in lines(here / "run" / "metrics.jsonl") if line["kind"] == "eval"]
    assert set(held_out["results"]) == {*NAMES, "all"}
    results = held_out["results"]
    nats = sum(results[name]["loss"] * results[name]["tokens"] for name in NAMES)
    total = sum(results[name]["tokens"] for name in NAMES)
    assert results["all"]["loss"] == pytest.approx(nats / total)
    # A store a party, and none of all together.
    stores = here / "store"
    assert sorted(p.name for p in stores.iterdir()) == ["parties"]
    for name in NAMES:
        there = [p.name.split("-")[0] for p in (stores / "parties" / name).iterdir()]
        assert set(there) & set(NAMES) == {name}
    assert (here / "run" / "adapter" / "adapter_model.safetensors").exists()
    arrays = saved(here / "run", 6)
    assert not any("base" in path for path in arrays) and len(arrays) == 15


def test_the_model_that_is_used_has_the_average(here):
    used, bare = load("run", compute="float32"), load("base")
    prompt = np.arange(3, 11, dtype=np.int32)[None]
    with_, without = (
        np.asarray(m.model.logits(m.params, m.model.apply(m.params, prompt)[0]))
        for m in (used, bare)
    )
    assert np.abs(with_ - without).max() > 1e-4 and used.step == 6


def test_a_killed_run_goes_on_to_the_same_bits(here, tmp_path):
    """What a kill in the last round leaves: the checkpoint of step 4, no end in the journal."""
    shutil.copytree(here / "run", tmp_path / "run")
    wanted = saved(tmp_path / "run", 6)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    journal = (tmp_path / "run" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_text("".join(journal[:5]))
    run, text = configured(f"Run.directory='{tmp_path}/run'")
    session.train(run, text)
    same(saved(tmp_path / "run", 6), wanted)
    steps = [x["step"] for x in lines(tmp_path / "run" / "metrics.jsonl") if x["kind"] == "train"]
    assert steps == [2, 4, 6]


@pytest.mark.parametrize(
    "bindings, match",
    [
        (["Run.adapter=None"], r"Run\.adapter.*Set Run\.adapter = @LoRA"),
        (["Run.adapter=@AdaLoRA()"], r"Run\.adapter"),
        (["Loop.steps=7"], r"Loop\.steps = 7.*multiple of Federated\.local_steps = 2"),
        (["Mixture.sources=(@ant/Source(),)", "Mixture.rates=(1,)"], r"at least two sources"),
        (
            ["Data.tokenizer=@TokenizerTraining()", "TokenizerTraining.vocab_size=300"],
            r"Data\.tokenizer.*no party has the text",
        ),
        (["Federated.weights='dta'"], r"Federated\.weights.*Did you mean 'data'"),
        (["Federated.local_steps=0"], r"Federated\.local_steps = 0"),
        (["Federated.secure=1"], r"Federated\.secure = 1"),
        (["Run.federated=@LoRA()"], r"Run\.federated.*Federated or None"),
    ],
)
def test_what_cannot_be_averaged_is_refused(here, bindings, match):
    with pytest.raises(ConfigError, match=match):
        configured(*bindings)


class Laboratory:
    """Four parties and one place with all of their rows, from the same adapters.

    Args:
      optimizer: bindings.
      scale: standard deviation of what is added to fresh adapters.
    """

    def __init__(self, *optimizer, scale=0.0):
        run, _ = configured(*optimizer)
        self.run = run
        self.assembled = assemble(run)
        self.parties = {i: open_party(party_run(run, i), i) for i in range(4)}
        state = base.begin(self.assembled, imported(self.assembled))
        self.base = jax.device_get(state.params[roots.BASE])
        self.axes = self.assembled.task.logical_axes()[roots.ADAPTER]
        draw = np.random.default_rng(0)
        # With b of any value, as after some rounds.
        self.adapter = jax.tree.map(
            lambda x: x + scale * draw.normal(size=x.shape).astype(np.float32),
            jax.device_get(state.params[roots.ADAPTER]),
        )
        self.trainee = Trainee(self.assembled, state)
        self.averager = Averager(self.adapter, self.axes)

    def server(self, **more):
        config = Federated(**more)
        return Server(
            config, self.averager, Exchange(4), NAMES, [p.tokens for p in self.parties.values()]
        )

    def rounds(self, **more):
        return Rounds(self.trainee, self.parties, self.server(**more), Exchange(4), NAMES)

    def central(self, steps):
        """Trains on the rows of all parties together; returns adapter and losses."""
        pooled = dataclasses.replace(
            self.run,
            loop=dataclasses.replace(self.run.loop, batch_size=4 * self.run.loop.batch_size),
        )
        made = assemble(dataclasses.replace(pooled, federated=None))
        params = {roots.BASE: self.base, roots.ADAPTER: self.adapter}
        state = state_from_params(params, made.task, made.tx, made.placement)
        step, losses = made.make_step(guarded=False), []
        rows = self.run.loop.batch_size
        for number in range(steps):
            parts = [p.data.stream.batch(number * rows, rows) for p in self.parties.values()]
            batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
            state, metrics = step(state, jax.device_put(batch, made.placement.batch))
            losses.append(float(metrics["loss"]))
        return jax.device_get(state.params[roots.ADAPTER]), losses


def pairs(tree):
    """{path: (a, b)} as matrices [layers, I, r] and [layers, r, O] in float64."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *owner, name = (key.key for key in path)
        found.setdefault(tuple(owner), {})[name] = np.asarray(leaf, np.float64)
    matrices = {}
    for owner, factors in found.items():
        a, b = factors["a"], factors["b"]
        layers, rank = 1 if owner[0] == "head" else a.shape[0], a.shape[-1]
        matrices[owner] = (a.reshape(layers, -1, rank), b.reshape(layers, rank, -1))
    return matrices


def norm(x):
    return float(np.sqrt(np.sum(np.square(x))))


SGD = ("Optimizer.name='sgd'", "Optimizer.b1=0.0", "Optimizer.clip_norm=None")
RATE = 0.5
PLAIN = (*SGD, f"Schedule.peak={RATE}", "Schedule.name='constant'", "Schedule.warmup_steps=0")


def test_one_local_step_is_central_training_but_for_a_covariance(here):
    """One step of plain SGD at rate h from the same A and B, weights by the tokens of the step.

    With g the gradients of the parties, and m their weighted means, which are the gradients of the
    pooled batch:

      sum w (A - h g_A) (B - h g_B) = (A - h m_A) (B - h m_B) + h^2 sum w (g_A - m_A) (g_B - m_B).

    So the average before truncation differs from central training by this covariance exactly, whose
        spread = [
            np.sqrt(sum(x * norm(g) ** 2 for x, g in zip(w, each, strict=True))) for each in off
        ]
    training's product has rank r, so the truncation, the nearest of rank r, at most doubles it.
    """
    lab = Laboratory(*PLAIN, scale=0.1)
    trained, said = zip(
        *(lab.trainee.train(p, lab.adapter, 0, 1) for p in lab.parties.values()), strict=True
    )
    server = lab.server(weights="tokens")
    averaged, weights, _ = server.average(dict(enumerate(trained)), said, 1)
    w = list(weights.values())
    np.testing.assert_allclose(w, np.array([s.tokens for s in said]) / sum(s.tokens for s in said))
    central, (loss,) = lab.central(1)
    assert sum(x * s.loss for x, s in zip(w, said, strict=True)) == pytest.approx(loss, rel=1e-6)
    start, made, pooled, own = pairs(lab.adapter), pairs(averaged), pairs(central), [
        pairs(t) for t in trained
    ]  # fmt: skip
    moved = 0.0
    for path, (a, b) in start.items():
        exact = sum(x * (o[path][0] @ o[path][1]) for x, o in zip(w, own, strict=True))
        one_place = pooled[path][0] @ pooled[path][1]
        steps = [[s - o[path][i] for o in own] for i, s in enumerate((a, b))]
        means = [sum(x * g for x, g in zip(w, each, strict=True)) for each in steps]
        off = [[g - m for g in each] for each, m in zip(steps, means, strict=True)]
        covariance = sum(x * (p @ q) for x, p, q in zip(w, *off, strict=True))
        spread = [
            np.sqrt(sum(x * norm(g) ** 2 for x, g in zip(w, each, strict=True))) for each in off
        ]
        # Float32 rounds a and b, of size 1, to 6e-8; products of them are as exact.
        rounding = 1e-6 * max(norm(a), norm(b), 1.0)
        np.testing.assert_allclose(exact - one_place, covariance, atol=rounding)
        bound = spread[0] * spread[1]
        assert norm(exact - one_place) <= bound + rounding * np.sqrt(exact.size)
        cut = made[path][0] @ made[path][1]
        assert norm(cut - one_place) <= 2 * bound + rounding * np.sqrt(exact.size)
        moved = max(moved, norm(one_place - a @ b) / max(bound, 1e-12))
    assert moved > 20  # the bound is a small part of what the step did


def test_the_first_step_of_fresh_adapters_is_central_training(here):
    """While B is zero A has no gradient, and with it the covariance is zero."""
    lab = Laboratory(*PLAIN)
    averaged, record = lab.rounds(weights="tokens").run(lab.adapter, 0, 1)
    central, _ = lab.central(1)
    assert record.dropped < 1e-10
    one, other = pairs(averaged), pairs(central)
    for path in one:
        product = other[path][0] @ other[path][1]
        assert norm(product) > 1e-5
        np.testing.assert_allclose(one[path][0] @ one[path][1], product, rtol=0, atol=1e-7)


@pytest.fixture
def lab(here):
    return Laboratory(
        "Schedule.peak=1e-2",
        "Schedule.name='constant'",
        "Loop.steps=40",
        "LoRA.rank=8",
        "LoRA.targets=('all_linear', 'head')",
    )


def test_ten_local_steps_converge_and_masks_change_nothing(lab):
    """Forty steps of AdamW a party, ten a round, against forty on the rows of all."""
    adapter = lab.adapter
    rounds = lab.rounds(weights="equal", local_steps=10)
    losses = [rounds.evaluate(adapter)["all"]["loss"]]
    for first in range(0, 40, 10):
        adapter, _ = rounds.run(adapter, first, 10)
        losses.append(rounds.evaluate(adapter)["all"]["loss"])
    central = rounds.evaluate(lab.central(40)[0])["all"]["loss"]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - central > 1.0
    # No two parties have a word in common, and the optimizer begins each round anew.
    assert losses[0] - losses[-1] > 0.75 * (losses[0] - central)
    _masked_is_plain(lab)
    _not_finite(lab)


def _masked_is_plain(lab):
    trained = {i: lab.trainee.train(p, lab.adapter, 0, 2)[0] for i, p in lab.parties.items()}
    said = [LocalRound(1.0, 10.0, 1.0, 0.1, True)] * 4
    plain, weights, dropped = lab.server().average(trained, said, 2)
    masked, same_weights, same_dropped = lab.server(secure=True).average(trained, said, 2)
    assert weights == same_weights and dropped == pytest.approx(same_dropped, abs=1e-6)
    one, other = pairs(plain), pairs(masked)
    for path in one:
        a, b = (x[path][0] @ x[path][1] for x in (one, other))
        np.testing.assert_allclose(a, b, atol=1e-6 * max(norm(a), 1.0))


def _not_finite(lab):
    """FATE-LLM#144: a NaN of one party became that of all."""
    adapter = jax.tree.map(lambda x: np.full_like(x, np.nan), lab.adapter)
    with pytest.raises(SpikeError, match=r"steps 3 to 4 of ant, bee, cat, dog.*Schedule\.peak"):
        lab.rounds().run(adapter, 2, 2)


def start(here, directory, *flags, processes=0):
    command = [sys.executable, str(ROOT / "train.py"), "--gin_file=fed.gin"]
    command += [f"--gin.Run.directory='{directory}'", *(f"--gin.{f}" for f in flags)]
    if processes:
        launch = [sys.executable, "-m", "t5x_llm", "launch", f"--processes={processes}"]
        command = [*launch, "--devices=1", "--restarts=2", "--backoff=0.1", "--", *command]
    xla = ["--xla_force_host_platform_device_count=1", *QUICKLY]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(xla),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.extended
def test_several_processes_are_one(here):
    """Two processes with two parties each, masked, end in the bits of one process."""
    for name, processes in (("one", 0), ("two", 2)):
        done = start(here, name, "Federated.secure=True", "Loop.steps=4", processes=processes)
        assert done.returncode == 0, done.stderr
    same(saved(here / "two", 4), saved(here / "one", 4))
    assert len(lines(here / "two" / "metrics.jsonl")) == len(lines(here / "one" / "metrics.jsonl"))


@pytest.mark.extended
def test_more_processes_than_parties_are_refused(here):
    done = start(here, "five", processes=5)
    assert done.returncode == 2
    assert "JAX_NUM_PROCESSES = 5: expected at most 4" in done.stderr
