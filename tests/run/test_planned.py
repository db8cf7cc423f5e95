"""What is planned is what is trained: the arguments of the step, over all recipes."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))

from stores import make_store

from t5x_llm.config import parse_flags
from t5x_llm.data.row_objective import make_row_objective
from t5x_llm.data.sources import Data
from t5x_llm.data.stream import Stream
from t5x_llm.plan.describe import planned_mesh
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.run.data import OpenData
from t5x_llm.text import Tokenizer

RECIPES = pathlib.Path(__file__).parents[2] / "configs" / "recipes"
NAMES = sorted(str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.gin"))


class AnyPiece(Tokenizer):
    """A tokenizer that has every special piece it is asked for."""

    def __init__(self, vocab_size):
        self.vocab_size, self._ids = vocab_size, {}
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = 1, 2, 0, None

    def id_of(self, piece):
        if piece == "<extra_id_300>":
            return None
        return self._ids.setdefault(piece, self.vocab_size - 1 - len(self._ids))

    def _encode(self, texts, threads):
        raise NotImplementedError

    _decode = save = piece = spell = _encode


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Long documents, for rows of any recipe."""
    rng = np.random.default_rng(0)
    documents = [[1, *rng.integers(3, 60, 2998).tolist(), 2] for _ in range(24)]
    path = tmp_path_factory.mktemp("stores") / "text"
    return make_store(path, documents, scores=np.linspace(0, 1, 24))


def recipe(name, *bindings):
    flags = [f"--gin_file={RECIPES / name}.gin", *(f"--gin.{b}" for b in bindings)]
    return load_run(parse_flags(flags))[0]


def prepared(run, store, sources):
    """What training would open: the recipe's sources and objective over one small store."""
    length, data = run.loop.sequence_length, run.data
    objective = make_row_objective(data.denoising, AnyPiece(run.model.vocab_size), length)
    stores, weights = dict.fromkeys(sources, store), dict.fromkeys(sources, 1.0)
    stream = Stream(stores, weights, length, run.loop.seed, data.packing, objective=objective)
    return OpenData(None, stream)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape[1:], np.dtype(x.dtype)), tree)


@pytest.mark.parametrize("name", NAMES)
def test_the_planned_arguments_are_the_trained_ones(name, store):
    run = recipe(name)
    mesh, _ = planned_mesh(run)
    data = prepared(run, store, [s.name for s in run.data.mixture.sources])
    planned, trained = assemble(run, mesh), assemble(run, mesh, data)
    for a, b in ((planned.state, trained.state), (planned.batch, trained.batch)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
    # And what the stream really gives.
    assert shapes(planned.batch) == shapes(data.stream.batch(0, 2))
    assert planned.task.measures == trained.task.measures


def test_glm_is_planned_with_its_prefix_and_t5_with_its_own_targets():
    glm, t5 = (assemble(run, planned_mesh(run)[0]) for run in map(recipe, ("glm_130b", "t5_11b")))
    assert set(glm.batch.extra) == {"prefix", "block_positions"}
    # t5's random_spans_helper for 512 tokens, density 0.15, spans of 3: 114 targets.
    assert t5.batch.tokens.shape[1] == 114
    assert t5.batch.extra["encoder_tokens"].shape[1] == 512


def test_a_seqio_mixture_is_planned_with_all_its_sources(tmp_path, monkeypatch):
    (tmp_path / "mine_to_mix.py").write_text(
        "import seqio\n"
        "def read(split, shuffle_files, seed=None): pass\n"
        "source = seqio.FunctionDataSource(read, splits=['train'])\n"
        "for name in ('one.a', 'two'):\n"
        "    seqio.TaskRegistry.add(name, source, preprocessors=[], output_features={})\n"
        "seqio.MixtureRegistry.add('planned_mixture', [('one.a', 1), ('two', 3)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = recipe("quickstart")
    data = Data(
        name="seqio",
        store_dir=str(tmp_path / "store"),
        tokenizer=run.data.tokenizer,
        seqio_mixture="planned_mixture",
        modules=("mine_to_mix",),
    )
    made = assemble(dataclasses.replace(run, data=data), planned_mesh(run)[0])
    assert made.task.measures.labels["loss_by_source"] == ("one_a", "two")
