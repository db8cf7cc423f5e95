"""seqio: our sources as tasks, rates through its registry, tfds, and users' own tasks."""

import sys
import textwrap

import numpy as np
import pytest
from stores import write_jsonl

from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.catalog import open_stores
from t5x_llm.data.prepare import prepare
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.text import TokenizerTraining, train_tokenizer

seqio = pytest.importorskip("seqio")
from t5x_llm.data import tasks  # noqa: E402

TEXTS = [f"document {i} 第{i}章 " + "word " * (i % 17) for i in range(120)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerTraining(vocab_size=290)
    return train_tokenizer(config, TEXTS, directory, progress=False), str(directory)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module of the test's own and returns its name."""
    names = []

    def write(source):
        name = f"own_module_{len(names)}_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        names.append(name)
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in names:
        sys.modules.pop(name, None)


def texts_of(store, tokenizer):
    splits = (store.train, store.validation)
    return sorted(
        tokenizer.decode(split.document(i)[1:-1]) for split in splits for i in range(len(split))
    )


def jsonl(tmp_path, **changes):
    return Source("x", str(write_jsonl(tmp_path / "x.jsonl", TEXTS)), **changes)


def test_the_task_gives_what_shard_jobs_read(tmp_path, tokenizer):
    data = Data(str(tmp_path / "s"), tokenizer[1], Mixture((jsonl(tmp_path),)),
                validation_fraction=0.2)  # fmt: skip
    tasks.register(data, {})
    opened = prepare(data, say=str)
    task = seqio.TaskRegistry.get("t5x_llm.mixture.x")
    for split, store in (("train", opened.stores["x"].train),
                         ("validation", opened.stores["x"].validation)):  # fmt: skip
        dataset = task.get_dataset(None, split=split, shuffle=False)
        given = {int(e["line"]): e["text"].decode() for e in dataset.as_numpy_iterator()}
        stored = {store.provenance(i).line: tokenizer[0].decode(store.document(i)[1:-1])
                  for i in range(len(store))}  # fmt: skip
        assert given == stored
    assert seqio.MixtureRegistry.get("t5x_llm.mixture").num_input_examples


@pytest.mark.parametrize(("rates", "temperature", "expected"), [
    ((2.0, 1.0, 1.0), 1.0, (0.5, 0.25, 0.25)),
    ((0.0, 1.0, 3.0), 1.0, (0.0, 0.25, 0.75)),
    ("proportional", 1.0, (0.1, 0.4, 0.5)),
    ("temperature", 1.0, (0.1, 0.4, 0.5)),
    ("temperature", 2.0, tuple(np.sqrt([1, 4, 5]) / np.sqrt([1, 4, 5]).sum())),
])  # fmt: skip
def test_rates_through_the_registry(tmp_path, rates, temperature, expected):
    sources = tuple(Source(n, str(write_jsonl(tmp_path / n, TEXTS))) for n in "abc")
    data = Data("s", "t", Mixture(sources, rates=rates, temperature=temperature))
    found = tasks.rates(data, {"a": 100, "b": 400, "c": 500})
    assert tuple(found.values()) == pytest.approx(expected)
    assert list(found) == ["a", "b", "c"]


def test_tfds_through_a_builder_of_ones_own(tmp_path, tokenizer, module):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    name = module(f"""
        import json
        import numpy as np
        import tensorflow_datasets as tfds

        class OwnCorpus(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(
                        {{"body": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}}))
            def _split_generators(self, dl_manager):
                return {{"train": self._generate_examples()}}
            def _generate_examples(self):
                for n, line in enumerate(open({str(path)!r}, encoding="utf-8")):
                    yield n, {{"body": json.loads(line)["text"], "n": n}}
        OwnCorpus(data_dir={str(tmp_path / "tfds")!r}).download_and_prepare()
    """)
    source = Source("corpus", kind="tfds", tfds="own_corpus:1.0.0", field="body",
                    tfds_data_dir=str(tmp_path / "tfds"))  # fmt: skip
    data = Data(str(tmp_path / "s"), tokenizer[1], Mixture((source,)), modules=(name,),
                validation_fraction=0.1)  # fmt: skip
    said = []
    store = prepare(data, say=said.append).stores["corpus"]
    assert texts_of(store, tokenizer[0]) == sorted(TEXTS)
    assert "own_corpus" in store.train.provenance(0).file
    prepare(data, say=said.append)
    assert "up to date" in said[-1]

    wrong = Source("corpus", kind="tfds", tfds="own_corpus:1.0.0", field="n",
                   tfds_data_dir=str(tmp_path / "tfds"))  # fmt: skip
    with pytest.raises(DataError, match=r"no string 'n' \(Source\.field\); there are body"):
        prepare(Data(str(tmp_path / "s2"), tokenizer[1], Mixture((wrong,)), modules=(name,)),
                say=str)  # fmt: skip
    absent = Source("corpus", kind="tfds", tfds="own_corpus_of_nobody:1.0.0")
    with pytest.raises(DataError, match="own_corpus_of_nobody|cannot be opened"):
        prepare(Data(str(tmp_path / "s3"), tokenizer[1], Mixture((absent,))), say=str)


def test_a_mixture_of_ones_own(tmp_path, tokenizer, module):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS[:50]) + "\n", encoding="utf-8")
    model = f"{tokenizer[1]}/tokenizer.model"
    name = module(f"""
        import functools, seqio
        import tensorflow as tf
        source = lambda: seqio.TextLineDataSource({{"train": {str(tmp_path / "lines.txt")!r}}})
        vocabulary = seqio.SentencePieceVocabulary({model!r})
        upper = lambda ds: ds.map(lambda e: {{"targets": tf.strings.upper(e)}})
        plain = lambda ds: ds.map(lambda e: {{"targets": e}})
        for name, first in (("loud", upper), ("quiet", plain)):
            seqio.TaskRegistry.add(
                "own." + name + "_" + __name__, source(), preprocessors=[
                    first, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
                output_features={{"targets": seqio.Feature(vocabulary)}})
        seqio.MixtureRegistry.add("own_mix_" + __name__, [
            ("own.loud_" + __name__, 3.0), ("own.quiet_" + __name__, 1.0)])
    """)
    data = Data(str(tmp_path / "s"), tokenizer[1], seqio_mixture=f"own_mix_{name}",
                modules=(name,), validation_fraction=0.0)  # fmt: skip
    opened = prepare(data, say=str)
    assert list(opened.weights.values()) == [0.75, 0.25]
    loud, quiet = opened.stores.values()
    assert texts_of(quiet, tokenizer[0]) == sorted(TEXTS[:50])
    assert texts_of(loud, tokenizer[0]) == sorted(t.upper() for t in TEXTS[:50])
    first = quiet.train.document(0)
    assert first[0] == tokenizer[0].bos_id and first[-1] == tokenizer[0].eos_id != first[-2]
    size = quiet.train.document_bytes(0)
    assert size == len(tokenizer[0].decode(first).encode())
    open_stores(data)

    # Ids of another vocabulary are refused.
    other = TokenizerTraining(vocab_size=285)
    train_tokenizer(other, TEXTS, tmp_path / "other", progress=False)
    with pytest.raises(DataError, match="makes token ids with the vocabulary"):
        prepare(Data(str(tmp_path / "s2"), str(tmp_path / "other"), modules=(name,),
                     seqio_mixture=f"own_mix_{name}"), say=str)  # fmt: skip
    with pytest.raises(DataError, match="gives token ids. A tokenizer cannot be trained"):
        prepare(Data(str(tmp_path / "s3"), other, modules=(name,),
                     seqio_mixture=f"own_mix_{name}"), say=str)  # fmt: skip
    with pytest.raises(ConfigError, match=f"Did you mean 'own_mix_{name}'"):
        prepare(Data(str(tmp_path / "s4"), tokenizer[1], modules=(name,),
                     seqio_mixture=f"own_mx_{name}"), say=str)  # fmt: skip
    with pytest.raises(ConfigError, match=r"Data\.modules = 'no_such_module'"):
        prepare(Data(str(tmp_path / "s5"), tokenizer[1], modules=("no_such_module",),
                     seqio_mixture="own"), say=str)  # fmt: skip


def test_a_task_with_a_loss_mask(tmp_path, tokenizer, module):
    name = module("""
        import numpy as np, seqio
        import tensorflow as tf
        def make(split, shuffle_files):
            return tf.data.Dataset.from_tensor_slices({
                "targets": np.arange(20, 40, dtype=np.int32).reshape(4, 5),
                "loss_mask": np.tile(np.array([0, 0, 1, 1, 1], np.int32), (4, 1))})
        feature = seqio.Feature(seqio.PassThroughVocabulary(290), add_eos=False)
        seqio.TaskRegistry.add(
            "masked_" + __name__, seqio.FunctionDataSource(make, splits=["train"]),
            preprocessors=[], output_features={"targets": feature, "loss_mask": feature})
    """)
    data = Data(str(tmp_path / "s"), tokenizer[1], seqio_mixture=f"masked_{name}",
                modules=(name,), validation_fraction=0.0, packing="whole")  # fmt: skip
    opened = prepare(data, say=str)
    from t5x_llm.data.catalog import open_stream

    batch = open_stream(data, opened, 8).batch(0, 4)
    assert batch.loss_mask[0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert batch.tokens[0, 0] == tokenizer[0].bos_id
    assert batch.targets[0, 5] == tokenizer[0].eos_id
