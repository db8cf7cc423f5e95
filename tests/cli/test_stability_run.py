"""Options of stable training, from a gin file to the end of a run."""

import json

import jax
import numpy as np
import pytest
import tiny

from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError
from t5x_llm.data.batch import Batch
from t5x_llm.parallel import make_mesh
from t5x_llm.run.assembled import assemble
from t5x_llm.run.checks import check_start_from
from t5x_llm.run.config import load_run
from t5x_llm.train.state import init_state

OPTIONS = """
Run.stability = @Stability()
Stability.qk_norm = 'head'
Stability.sandwich_norm = True
Stability.embed_norm = True
Stability.attention_softcap = 20.0
Stability.logit_softcap = 10.0
Run.z_loss = 1e-4
Run.neftune = 5.0
Run.embed_gradient = @Piecewise()
Piecewise.points = ((0, 0.1), (6, 1.0))
Export.enabled = False
"""


def flags(directory, *bindings):
    (directory / "stable.gin").write_text(tiny.GIN + OPTIONS)
    return parse_flags([f"--gin_file={directory}/stable.gin", *(f"--gin.{b}" for b in bindings)])


def test_every_option_is_set_from_gin_and_reaches_the_step(tmp_path):
    run, _ = load_run(flags(tmp_path, "MeshConfig.data=1"))
    assembled = assemble(run, make_mesh(run.mesh, jax.devices()[:1]))
    config = assembled.model.config
    (block,) = config.groups[0].blocks
    assert block.mixer.qk_norm.scope == "head" and block.mixer.softcap == 20.0
    assert block.residual.out is not None and config.embed_norm is not None
    assert config.logit_softcap == 10.0 and config.neftune == 5.0
    assert run.shared()["stability"] == run.stability
    step, parts = assembled.make_step(guarded=False), (assembled.task, assembled.tx)
    rows = np.random.default_rng(0).integers(0, 400, (8, 33)).astype(np.int32)
    shape = (8, 32)
    batch = Batch(
        *(rows[:, :-1], rows[:, 1:]),
        positions=np.broadcast_to(np.arange(32, dtype=np.int32), shape),
        segment_ids=np.ones(shape, np.int32),
        loss_mask=np.ones(shape, np.float32),
        source=np.zeros(8, np.int32),
    )
    losses = []
    for _ in range(2):  # the noise of a step is its own, and the same again
        state, metrics = step(init_state(*parts, jax.random.key(0), assembled.placement), batch)
        losses += [float(metrics["loss"]), float(step(state, batch)[1]["loss"])]
    assert losses[:2] == losses[2:] and losses[0] != losses[1] and metrics["z_loss"] > 0


@pytest.mark.parametrize(
    ("binding", "named"),
    [
        ("Export.enabled=True", "Stability.qk_norm and Stability.attention_softcap"),
        ("Run.neftune=0.0", "Run.neftune"),
        ("Run.label_smoothing=1.5", "Run.label_smoothing"),
        ("Piecewise.points=((0, 2.0),)", "Run.embed_gradient"),
        ("Stability.qk_norm='every'", "Stability.qk_norm"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, binding, named):
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        load_run(
            flags(
                tmp_path,
                "Stability.sandwich_norm=False",
                "Stability.embed_norm=False",
                "Stability.logit_softcap=None",
                binding,
            )
        )


def test_given_weights_have_no_place_for_new_norms(tmp_path):
    start = f"Run.start_from='{tmp_path}'"
    run, _ = load_run(flags(tmp_path, start))
    (tmp_path / "config.json").write_text(json.dumps(run.model.to_hf_config()))
    with pytest.raises(ConfigError, match=r"Run\.stability.*Run\.start_from"):
        check_start_from(run)
    caps = ("sandwich_norm=False", "embed_norm=False", "qk_norm=None")
    check_start_from(load_run(flags(tmp_path, start, *(f"Stability.{c}" for c in caps)))[0])


@pytest.mark.slow
def test_a_run_with_all_of_them(tmp_path):
    tiny.corpus(tmp_path)
    flags(tmp_path)
    done = tiny.train(tmp_path, gin="stable.gin")
    assert "Next: t5x-llm generate run" in done.stderr
    losses = tiny.losses(tmp_path / "run")
    assert losses[8] < losses[1] and not (tmp_path / "run" / "hf").exists()
    assert "[春]" in (tmp_path / "run" / "samples.txt").read_text()
    refused = tiny.python("-m", "t5x_llm.cli.main", "export", "run", cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "Stability.qk_norm" in refused.stderr
    more = ("--gin.Loop.steps=10", "--gin.Run.neftune=None", "--gin.Run.z_loss=0.0")
    refused = tiny.train(
        tmp_path, *more, "--gin.Stability.logit_softcap=5.0", gin="stable.gin", check=False
    )
    assert refused.returncode == 2 and "Stability.logit_softcap: 10.0 -> 5.0" in refused.stderr
    tiny.train(tmp_path, *more, gin="stable.gin")
    assert max(tiny.losses(tmp_path / "run")) == 10
