"""Wherever a model, a tokenizer and data meet, those that do not belong together are refused."""

import dataclasses
import json
import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "hf"))

import models
from stores import make_store

from t5x_llm import api
from t5x_llm.config import to_dict
from t5x_llm.core.errors import CheckpointError, ConfigError
from t5x_llm.data.catalog import Opened
from t5x_llm.hf import delta, merge, resize
from t5x_llm.hf.import_ import family_of
from t5x_llm.models.model import Model
from t5x_llm.run import identity, use
from t5x_llm.run.checks import check_start_tokenizer
from t5x_llm.run.load import Loaded
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer

TEXTS = {
    "a": ["春 山 水 the cat sat on a mat and ran to the hat"] * 40,
    "b": ["鳥 花 雨 we go up to no one so it is my ox in an oak"] * 40,
}
GIN = ["configs/models/llama/quickstart.gin", "configs/meshes/local.gin"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Directories of two tokenizers of one size."""
    root = tmp_path_factory.mktemp("tokenizers")
    config = TokenizerTraining(vocab_size=300, character_coverage=0.98)
    for name, texts in TEXTS.items():
        train_tokenizer(config, texts, root / name, progress=False)
    return root


@pytest.fixture
def places(tokenizers, tmp_path, monkeypatch):
    """Models a, b (with their tokenizers) and c (with a's) of one shape."""
    for room in (merge, resize):  # what they refuse is refused before anything is written
        monkeypatch.setattr(room, "write_directory", lambda *arguments, **more: None)
    config = models.CONFIG | {"vocab_size": 300}
    for seed, (name, its) in enumerate((("a", "a"), ("b", "b"), ("c", "a"))):
        models.write(tmp_path / name, models.tensors(config, seed=seed), config)
        for file in (tokenizers / its).iterdir():
            shutil.copy(file, tmp_path / name)
    return tmp_path


def opened(directory, fingerprint=None, documents=((1, 5, 6, 2),)):
    """Prepared data whose tokenizer lies in ``directory``."""
    tokenizer = load_tokenizer(directory)
    store = make_store(directory / "store", documents)
    return Opened(tokenizer, str(directory), {"s": store}, {"s": 1.0}, {"s": ""}, {"s": ""})


def run(directory, **more):
    """A run of the models' shape whose data has the tokenizer in ``directory``."""
    lines = {
        "Run.directory": "run", "Data.store_dir": "store", "Data.tokenizer": str(directory),
        "Data.mixture": "@Mixture()", "Mixture.sources": ("@s/Source()",), "s/Source.name": "s",
        "s/Source.files": "s.jsonl", "Loop.steps": 2, "Loop.batch_size": 2,
        "Loop.sequence_length": 32,
    }  # fmt: skip
    return api.load_run(*GIN, bindings=lines | more).config


def evaluated(places, mine, other):
    family = family_of(json.loads((places / mine / "config.json").read_text()))
    loaded = Loaded(family, Model(family.decoder()), {}, load_tokenizer(places / mine), None)
    use.check_model_tokenizer(loaded, opened(places / other), str(places / mine))


def started(places, mine, other):
    check_start_tokenizer(
        run(places / other, **{"Run.start_from": str(places / mine)}),
        load_tokenizer(places / other),
    )


def merged(places, mine, other):
    merge.merge([places / mine, places / other], places / f"merged-{mine}{other}")


def resized(places, mine, other):
    resize.resize(
        places / mine, places / f"resized-{mine}{other}", tokenizer=load_tokenizer(places / other)
    )


def applied(places, mine, other):
    """A delta made elsewhere, which has no checksums, on a base."""
    delta.make(places / mine, places / "c", places / f"d-{mine}{other}", kind="sum")
    (places / f"d-{mine}{other}" / delta.RECORD).unlink()
    delta.apply(places / other, places / f"d-{mine}{other}", places / f"applied-{mine}{other}")


@pytest.mark.parametrize("meet", [evaluated, started, merged, resized, applied])
def test_every_pair_that_meets_is_compared(places, meet):
    meet(places, "a", "c")
    with pytest.raises(ConfigError, match=r"id \d+|tokenizer"):
        meet(places, "a", "b")


def test_a_model_without_tokenizer_is_told(places, capsys):
    family = family_of(json.loads((places / "a" / "config.json").read_text()))
    loaded = Loaded(family, Model(family.decoder()), {}, None, None)
    use.check_model_tokenizer(loaded, opened(places / "a"))
    assert "no tokenizer to compare" in capsys.readouterr().err
    small = loaded._replace(family=dataclasses.replace(family, vocab_size=200))
    with pytest.raises(ConfigError, match="at most 200 tokens"):
        use.check_model_tokenizer(small, opened(places / "b"))


def newest(monkeypatch, saved, config):
    meta = {"config": {key: to_dict(value) for key, value in config.shared().items()}}
    meta |= {identity.MADE_FROM: json.loads(json.dumps(saved))} if saved else {}
    monkeypatch.setattr(identity, "newest_checkpoint", lambda run: ("run/checkpoints/4", meta))


def allowing(config, *names):
    checkpoint = dataclasses.replace(config.checkpoint, allow_changes=names)
    return dataclasses.replace(config, checkpoint=checkpoint)


def test_a_run_goes_on_with_its_own_data_alone(places, monkeypatch):
    before, config = opened(places / "a"), run(places / "a")
    newest(monkeypatch, identity.made_from(before), config)
    assert identity.check_opened(config, before) == []
    changed = opened(places / "a", documents=((1, 5, 6, 2), (1, 7, 2)))
    with pytest.raises(CheckpointError, match=r"of 's': its documents changed .*1 \+ 0 -> 2 \+ 0"):
        identity.check_opened(config, changed)
    for name in (
        "Source.files",
        "s/Source.files",
        "Source",
        "Data.mixture",
        "sources.Source.files",
    ):
        (line,) = identity.check_opened(allowing(config, name), changed)
        assert "'s'" in line
    for name in ("t/Source.files", "Schedule"):
        with pytest.raises(CheckpointError, match="changed"):
            identity.check_opened(allowing(config, name), changed)


def test_another_tokenizer_is_refused_unless_it_is_named_itself(places, monkeypatch):
    before, config = opened(places / "a"), run(places / "a")
    newest(monkeypatch, identity.made_from(before), config)
    other = opened(places / "b")
    for names in ((), ("Data",), ("Source.files",)):
        with pytest.raises(CheckpointError, match=rf"Data\.tokenizer = '{places}/a' keeps"):
            identity.check_opened(allowing(config, *names), other)
    (line,) = identity.check_opened(allowing(config, "Data.tokenizer"), other)
    assert before.tokenizer.fingerprint[:12] in line
    # The same files at another place are no change; neither are workers.
    shutil.copytree(places / "a", places / "moved")
    moved = dataclasses.replace(before, tokenizer_path=str(places / "moved"))
    elsewhere = run(places / "moved", **{"Data.store_dir": "other", "Data.workers": 3})
    assert identity.check_opened(elsewhere, moved) == []


def test_checkpoints_of_older_versions_are_taken(places, monkeypatch):
    config = run(places / "a")
    newest(monkeypatch, None, config)
    assert identity.check_opened(config, opened(places / "b")) == []
    with pytest.raises(CheckpointError, match=r"Data\.tokenizer"):
        identity.check_opened(run(places / "b"), opened(places / "b"))


def test_changed_files_are_refused_before_anything_is_built(places, monkeypatch):
    file = places / "s.jsonl"
    file.write_text(json.dumps({"text": "one"}) + "\n")
    more = {"s/Source.files": str(file), "Data.store_dir": str(places / "stores")}
    (places / "stores").mkdir()
    config = run(places / "a", **more)
    plans, _ = identity_plans(config)
    saved = identity.made_from(opened(places / "a"))
    saved["sources"]["s"]["texts"] = plans[0].texts
    newest(monkeypatch, saved, config)
    identity.check_texts(config)
    shutil.copy(file, places / "moved.jsonl")
    identity.check_texts(
        run(places / "a", **more | {"s/Source.files": str(places / "moved.jsonl")})
    )
    file.write_text(json.dumps({"text": "two"}) + "\n")
    with pytest.raises(CheckpointError, match="'s': its documents changed"):
        identity.check_texts(config)
    trained = run(
        "x",
        **more | {"Data.tokenizer": "@TokenizerTraining()", "TokenizerTraining.vocab_size": 300},
    )
    with pytest.raises(CheckpointError, match="one trained on the changed files"):
        identity.check_texts(allowing(trained, "Source.files"))


def identity_plans(config):
    from t5x_llm.data.inputs import make_plans

    return make_plans(config.data, config.data.store_dir, None)


class Kept:
    """Checkpoints whose metas are given."""

    def __init__(self, directory, *records):
        self.directory, self.records = directory / "checkpoints", records

    def meta(self, step):
        return {"step": step, identity.MADE_FROM: self.records[step]}

    def path(self, step):
        return self.directory / str(step)


def test_the_tokenizer_of_a_checkpoint_is_found_by_its_fingerprint(places, monkeypatch):
    a, b = opened(places / "a"), opened(places / "b")
    records = [identity.made_from(each) for each in (a, b)]
    monkeypatch.setattr(identity, "open_stores", lambda data: b)
    kept = Kept(places, *records)
    assert identity.trained_tokenizer(None, kept, [1]).fingerprint == b.tokenizer.fingerprint
    # Prepared again with another: the recorded one is still there, then only in the export.
    assert identity.trained_tokenizer(None, kept, [0]).fingerprint == a.tokenizer.fingerprint
    (places / "a").rename(places / "hf")
    assert identity.trained_tokenizer(None, kept, [0]).fingerprint == a.tokenizer.fingerprint
    shutil.rmtree(places / "hf")
    with pytest.raises(CheckpointError, match="which is not there any more"):
        identity.trained_tokenizer(None, kept, [0])
    with pytest.raises(CheckpointError, match="with 2 tokenizers"):
        identity.trained_tokenizer(None, kept, [0, 1])
