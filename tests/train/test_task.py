"""A task of another kind than language modelling, through everything that training consists of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from guarded_run import equal, live
from steps import prepare

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.rng import named_key
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.optim import Optimizer, Schedule
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.plan.compile import plan_step
from t5x_llm.plan.host import Here
from t5x_llm.train.config import Loop
from t5x_llm.train.hooks import read_lines
from t5x_llm.train.state import init_state, with_shardings
from t5x_llm.train.step import quiet_control
from t5x_llm.train.task import Measures, TrainTask, check_sums

FAMILY = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48)
MODEL = Model(FAMILY.decoder(), Policy(compute="float32"))
OPTIMIZER = Optimizer(schedule=Schedule("constant", 3e-3, warmup_steps=0))
T, B = 16, 8
FIRST = named_key(0, "params")  # of a fresh run


class Preference(TrainTask):
    """Preference between two rows, by a head on a model beside its frozen bfloat16 copy."""

    measures = Measures("pairs")

    def __init__(self):
        tree = self.abstract_params()
        self.trained = {k: jax.tree.map(lambda _, k=k: k != "frozen", tree[k]) for k in tree}

    def init(self, key):
        policy = MODEL.init(key)
        frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy)
        return {"policy": policy, "frozen": frozen, "head": {"kernel": jnp.zeros(32)}}

    def abstract_params(self):
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self):
        axes = MODEL.logical_axes()
        return {"policy": axes, "frozen": axes, "head": {"kernel": ("embed",)}}

    def abstract_batch(self, rows):
        return dict.fromkeys(("better", "worse"), jax.ShapeDtypeStruct((rows, T), jnp.int32))

    def total(self, batch):
        return jnp.float32(len(batch["better"]))

    def loss(self, params, batch, training):
        def score(tokens):
            new, old = (MODEL.apply(params[k], tokens)[0] for k in ("policy", "frozen"))
            return jnp.mean(2 * new - old, axis=1) @ params["head"]["kernel"]

        margin = score(batch["better"]) - score(batch["worse"])
        loss = -jnp.sum(jax.nn.log_sigmoid(margin))
        sums = {"loss": loss, "accuracy": jnp.sum(margin > 0), "pairs": self.total(batch)}
        return loss, jax.tree.map(jnp.float32, sums)


class Pairs:
    """Rows as a pure function of their position; the better one rises."""

    def at(self, data):
        return self

    def batch(self, position, size, rows=slice(None)):
        index = np.arange(position, position + size)[rows]
        rising = (index[:, None] * 7 + np.arange(T)) % 64
        return {"better": rising.astype(np.int32), "worse": rising[:, ::-1].astype(np.int32)}


def parts(devices):
    """The task's step with all that belongs to it."""
    config = MeshConfig(fsdp=devices // 2, tensor=2) if devices > 1 else MeshConfig(fsdp=1)
    mesh, task = make_mesh(config, jax.devices()[:devices]), Preference()
    options = dict(steps=20, microbatches=2, guarded=True)
    return prepare(MODEL, OPTIMIZER, mesh, config.rules(), task=task, **options)


def train_to(directory, made, steps):
    """Trains through step, loop, guard, metrics and checkpoint, from where the directory is."""
    loop = Loop(steps=steps, batch_size=B, sequence_length=T, log_every=5)
    return live(directory, loop, made, Pairs(), every=5).state


@pytest.mark.parametrize("devices", [1, 8])
def test_pairs_with_a_frozen_copy_and_a_head(devices, tmp_path):
    made = parts(devices)
    whole = train_to(tmp_path / "whole", made, 20)
    train_to(tmp_path / "cut", made, 10)
    again = train_to(tmp_path / "cut", made, 20)
    assert equal(whole, again)
    lines = [x for x in read_lines(tmp_path / "whole" / "metrics.jsonl") if x["kind"] == "train"]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"] and lines[-1]["accuracy"] > 0.9
    assert [line["pairs"] for line in lines] == [5 * B, 10 * B, 15 * B, 20 * B]
    task, fresh = made.task, init_state(made.task, made.tx, FIRST, made.placement)
    assert equal(whole.params["frozen"], fresh.params["frozen"])
    assert not equal(whole.params["policy"], fresh.params["policy"])
    assert {x.dtype for x in jax.tree.leaves(whole.params["frozen"])} == {jnp.dtype("bfloat16")}
    # No moments of what is frozen: those of the trained part, and Adam's two counters.
    count = len(jax.tree.leaves(task.trained_part(task.abstract_params())))
    assert len(jax.tree.leaves(whole.opt_state)) == 2 * count + 2


def test_it_is_planned():
    made = parts(1)
    task, placement = made.task, made.placement
    batch = with_shardings(task.abstract_batch(B), placement.batch)
    quiet, whole = quiet_control(placement.mesh), placement.state.step
    control = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), quiet)
    here = Here("cpu", "cpu", 1, 1e12, None)
    plan = plan_step(made.step, (made.abstract(), batch, control), here, {"data": 1})
    trained = task.trained_part(task.abstract_params())
    held = 4 * sum(x.size for x in jax.tree.leaves(trained))
    assert plan.fits and plan.memory.parameters == held + 2 * MODEL.parameter_count()["total"]
    assert plan.memory.optimizer == 2 * held + 8


def test_sums_are_checked():
    measures = Measures("tokens", {"a": "b"})
    check_sums(dict.fromkeys(("loss", "tokens", "a", "b"), 0.0), measures, ("grad_norm",))
    with pytest.raises(ValueError, match="may not be called grad_norm"):
        check_sums(dict.fromkeys(("loss", "tokens", "b", "grad_norm")), measures, ("grad_norm",))
    with pytest.raises(ValueError, match="lack b, loss"):
        check_sums({"tokens": 0}, measures, ())


def test_what_a_sum_is_averaged_over():
    labels = {"loss_by_kind": ("a", "b")}
    measures = Measures("tokens", {"reward": "rollouts", "loss_by_kind": "tokens"}, labels)
    assert measures.counts == {"tokens", "rollouts"}
    weights = [measures.weight(name) for name in ("loss", "reward", "tokens")]
    assert weights == ["tokens", "rollouts", None]
    # The step divides what its own total divides, and no vector.
    assert [measures.is_mean(k) for k in ("loss", "reward", "loss_by_kind")] == [True, False, False]
