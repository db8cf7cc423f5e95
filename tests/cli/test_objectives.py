"""Objectives from gin to the end: an encoder-decoder, an encoder, and a decoder on each of its."""

import json

import commands
import numpy as np
import pytest
import tiny

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.denoising import Denoising
from t5x_llm.models.families.bert import Bert
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.roberta import Roberta
from t5x_llm.models.families.t5 import T5
from t5x_llm.run.objective import check_ids, check_objective

T5_GIN = """
Run.model = @T5()
T5.vocab_size = 400
T5.d_model = 32
T5.d_ff = 64
T5.n_layers = 2
T5.n_heads = 4
T5.head_dim = 8
T5.start_id = 3
"""
BERT_GIN = """
Run.model = @Bert()
Bert.vocab_size = 400
Bert.d_model = 32
Bert.n_layers = 2
Bert.n_heads = 4
Bert.max_length = 64
Samples.prompts = ()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A prepared store, which all objectives read."""
    directory = tmp_path_factory.mktemp("objectives")
    tiny.corpus(directory)
    base = tiny.GIN + "TokenizerTraining.extra_ids = 32\nData.denoising = @Denoising()\n"
    (directory / "tiny.gin").write_text(base)
    tiny.python("-m", "t5x_llm.cli.main", "prepare", "--gin_file=tiny.gin", cwd=directory)
    return directory


def run(place, name, *flags, gin=""):
    """Trains 30 steps; returns (directory, losses by step, lines of evaluations)."""
    (place / f"{name}.gin").write_text((place / "tiny.gin").read_text() + gin)
    tiny.train(place, f"--gin.Run.directory='{name}'", "--gin.Loop.steps=30", *SHORT, *flags,
               gin=f"{name}.gin")  # fmt: skip
    lines = [json.loads(s) for s in (place / name / "metrics.jsonl").read_text().splitlines()]
    return place / name, tiny.losses(place / name), [s for s in lines if s["kind"] != "train"]


SHORT = ("--gin.Loop.eval_every=30", "--gin.CheckpointConfig.every_steps=30")


def falls(losses):
    values = [losses[step] for step in sorted(losses)]
    return np.mean(values[-5:]) < np.mean(values[:5]) - 0.3


@pytest.mark.extended
def test_span_corruption(place, monkeypatch):
    """T5: trained, evaluated, sampled and exported; it answers, and is not continued."""
    made, losses, evaluations = run(
        place, "t5", "--gin.Denoising.objective='span_corruption'", gin=T5_GIN
    )
    assert falls(losses)
    assert any("loss" in json.dumps(line) for line in evaluations)
    assert "[ab]" in (made / "samples.txt").read_text()
    config = json.loads((made / "hf" / "config.json").read_text())
    assert config["decoder_start_token_id"] == config["pad_token_id"] == 3
    report = json.loads((made / "hf" / "parity.json").read_text())
    assert report["passed"] and report["prompts"]["long"]["tokens"] == 512
    assert "AutoModelForSeq2SeqLM" in (made / "hf" / "README.md").read_text()
    flags = ("--prompt", "ab cd", "--max_tokens", "4", "--temperature", "0")
    monkeypatch.chdir(place)
    texts = [commands.run("generate", where, *flags).stdout for where in ("t5", "t5/hf")]
    assert texts[0].startswith("ab cd\n") and texts[0] == texts[1]


@pytest.mark.extended
def test_masked_lm(place, monkeypatch):
    """BERT: trained, evaluated and exported; it continues nothing."""
    made, losses, evaluations = run(place, "bert", "--gin.Denoising.objective='mlm'", gin=BERT_GIN)
    assert falls(losses)
    assert any("loss" in json.dumps(line) for line in evaluations)
    assert json.loads((made / "hf" / "parity.json").read_text())["passed"]
    monkeypatch.chdir(place)
    done = commands.run("generate", "bert", "--prompt", "ab")
    assert done.returncode != 0 and "cannot continue a text" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("blank_filling", marks=pytest.mark.extended),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("prefix_lm", "ul2")),
    ],
)
def test_a_decoder_on(objective, place):
    _, losses, _ = run(
        place, objective, f"--gin.Denoising.objective='{objective}'", "--gin.Export.enabled=False",
        "--gin.Samples.prompts=()",
    )  # fmt: skip
    assert falls(losses)


DECODER = Llama(vocab_size=64, d_model=16, n_layers=1, n_heads=2, d_ff=16)
ENCODER = Bert(vocab_size=64, d_model=16, n_layers=1, n_heads=2)
BOTH = T5(vocab_size=64, d_model=16, n_layers=1, n_heads=2, d_ff=16)


@pytest.mark.parametrize(
    ("model", "denoising"),
    [
        (DECODER, Denoising("span_corruption")),
        (DECODER, Denoising("mlm")),
        (DECODER, Denoising("prefix_lm", form="encoder_decoder")),
        (ENCODER, Denoising("lm")),
        (ENCODER, Denoising("ul2")),
        (BOTH, Denoising("lm")),
        (BOTH, Denoising("ul2")),
        (BOTH, Denoising("mlm")),
    ],
)
def test_a_model_learns_what_its_kind_can(model, denoising):
    with pytest.raises(ConfigError, match=f"Denoising.objective.*{type(model).__name__}"):
        check_objective(model, denoising)


def test_what_fits_is_let_through():
    check_objective(DECODER, Denoising("ul2"), ("a",))
    check_objective(BOTH, Denoising("ul2", form="encoder_decoder"), ("a",))
    check_objective(ENCODER, Denoising("mlm"))
    with pytest.raises(ConfigError, match=r"Samples.prompts.*none"):
        check_objective(ENCODER, Denoising("mlm"), ("a",))


class Pieces:
    vocab_size, bos_id, eos_id, pad_id, unk_id = 64, 1, 2, 3, 0

    def id_of(self, piece):
        ids = {"<extra_id_0>": 60, "<extra_id_1>": 61}
        return ids.get(piece)


def test_ids_are_the_tokenizer_s():
    roberta = Roberta(vocab_size=64, d_model=16, n_layers=1, n_heads=2)
    with pytest.raises(ConfigError, match=r"Roberta.pad_id.*3"):
        check_ids(roberta, Denoising("mlm"), Pieces())
    with pytest.raises(ConfigError, match=r"T5.start_id.*3"):
        check_ids(BOTH, Denoising("span_corruption"), Pieces())
    check_ids(DECODER, Denoising("lm"), Pieces())
