"""A run that scores documents: learns, is evaluated, exported, resumed to the bit."""

import json
import pathlib
import random
import shutil
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))

import tiny

from t5x_llm.config import parse_flags
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.catalog import open_stores
from t5x_llm.data.reading import read
from t5x_llm.data.sources import Source
from t5x_llm.data.stretch import Stretch
from t5x_llm.hf.scoring import document_scores, read_scorer
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.plan.estimate import estimate
from t5x_llm.run.assembled import assemble
from t5x_llm.run.config import load_run
from t5x_llm.run.load import load

GIN = """
Run.directory = 'run'
Run.model = @Llama()
Run.task = @Classification()
Classification.labels = ('bad', 'good')
Llama.vocab_size = 300
Llama.d_model = 16
Llama.n_layers = 1
Llama.n_heads = 2
Llama.n_kv_heads = 2
Llama.d_ff = 32
Llama.max_length = 64
Data.store_dir = 'store'
Data.tokenizer = @TokenizerTraining()
Data.validation_fraction = 0.2
Data.packing = 'whole'
TokenizerTraining.vocab_size = 300
Data.mixture = @Mixture()
Mixture.sources = (@reviews/Source(),)
reviews/Source.name = 'reviews'
reviews/Source.files = 'reviews.jsonl'
reviews/Source.score = 'label'
Loop.steps = 40
Loop.batch_size = 8
Loop.sequence_length = 64
Loop.eval_every = 20
Loop.log_every = 1
CheckpointConfig.every_steps = 20
CheckpointConfig.keep = 10
Schedule.peak = 1e-2
Schedule.warmup_steps = 4
"""


def corpus(directory, gin=GIN):
    draw = random.Random(0)
    rows = []
    for i in range(200):
        words = draw.choices(["film", "plot", "scene", "actor", "tune"], k=draw.randint(3, 7))
        words[draw.randrange(len(words))] = "lovely" if i % 2 else "dreadful"
        rows.append({"text": " ".join(words), "label": "good" if i % 2 else "bad"})
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (directory / "reviews.jsonl").write_text(lines, encoding="utf-8")
    (directory / "run.gin").write_text(gin, encoding="utf-8")


def flags(directory, *bindings):
    given = [f"--gin_file={directory}/run.gin", *(f"--gin.{b}" for b in bindings)]
    return parse_flags(given)


def evaluations(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "eval"]


def test_a_classifier_is_learned_exported_and_resumed(tmp_path, monkeypatch):
    corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = tiny.train(tmp_path, gin="run.gin")
    assert "Hugging Face" in done.stderr
    last = evaluations(tmp_path / "run")[-1]["results"]
    assert last["reviews"]["accuracy"] == 1.0 and last["reviews"]["roc_auc"] == 1.0
    losses = tiny.losses(tmp_path / "run")
    assert losses[40] < 0.1 < 0.5 < losses[1]

    scorer = read_scorer(tmp_path / "run" / "hf")
    run, _ = load_run(flags(tmp_path))
    split = open_stores(run.data).stores["reviews"].validation
    rows = [split.document(i)[:-1] for i in range(len(split))]
    guessed = document_scores(scorer, rows).argmax(-1)
    np.testing.assert_array_equal(guessed, split.scores)
    with pytest.raises(ConfigError, match="scores documents"):
        load("run")

    before = tiny.arrays(tmp_path / "run", 40)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    tiny.train(tmp_path, gin="run.gin")
    after = tiny.arrays(tmp_path / "run", 40)
    assert before.keys() == after.keys() and any("score" in name for name in before)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("binding", "named"),
    [
        ("Data.packing='concat'", "Data.packing"),
        ("Source.score=''", "Source.score"),
        ("Run.z_loss=1e-4", "Run.z_loss"),
        ("Classification.labels=('one',)", "Classification.labels"),
        ("Run.model=@Mamba()", "Run.model"),
        ("Samples.prompts=('a',)", "Samples.prompts"),
    ],
)
def test_what_a_head_of_scores_cannot_be_trained_with_is_named(tmp_path, binding, named):
    corpus(tmp_path, GIN.replace("reviews/Source.score = 'label'", "Source.score = 'label'"))
    more = ["Mamba.vocab_size=300", "Mamba.d_model=16", "Mamba.n_layers=1"]
    more = more if "Mamba" in binding else []
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        load_run(flags(tmp_path, binding, *more))


def test_a_label_that_is_not_one_of_the_classes_is_named_with_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "y": "good"}\n{"text": "x", "y": "goood"}\n')
    source = Source("a", str(file), score="y", classes=("bad", "good"))
    stretch = Stretch(0, str(file), 0, file.stat().st_size, 1)
    with pytest.raises(DataError, match=r"a.jsonl:2: label 'y' is 'goood', expected one of bad"):
        assert [document.score for document in read(source, [stretch])][0] == 1.0


def test_its_memory_is_estimated_and_it_has_no_head_over_the_vocabulary(tmp_path):
    corpus(tmp_path)
    one = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    assembled = assemble(load_run(flags(tmp_path, "MeshConfig.data=1"))[0], one)
    assert estimate(assembled).total > 0
    assert "head" not in assembled.state.params and set(assembled.batch.extra) == {"labels"}
