"""Held-out figures against a document-by-document computation without packing or batching."""

import hashlib
import math

import jax
import numpy as np
import pytest

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.row_objective import make_row_objective
from t5x_llm.evaluate.hooks import EvaluationHook, Every, read_baseline
from t5x_llm.evaluate.perplexity import Evaluator, HeldOut, evaluate, windows
from t5x_llm.infer.score import Request, _log_probs, pack, score
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.model import Model
from t5x_llm.parallel import MeshConfig, make_mesh, param_shardings
from t5x_llm.train.config import Loop

T = 16


class Texts:
    """Documents in memory."""

    def __init__(self, seed, lengths):
        rng = np.random.default_rng(seed)
        self.texts = [rng.integers(3, 64, n).astype(np.uint16) for n in lengths]
        self.tokens = sum(lengths)

    def __len__(self):
        return len(self.texts)

    def document(self, i):
        return self.texts[i]

    def document_bytes(self, i):
        return 3 * len(self.texts[i]) + 1


HELD_OUT = [
    HeldOut("speeches", Texts(0, [40, 17, 1, 2, 33, 5]), "en"),
    HeldOut("poems", Texts(1, [3, 4, 16, 18, 6, 7, 5]), "zh"),
    HeldOut("manuals", Texts(2, [90]), "zh"),
    HeldOut("empty", Texts(3, []), "zh"),
]


@pytest.fixture(scope="module")
def model():
    family = Llama(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=48)
    return Model(family.decoder(), Policy(compute="float32"))


@pytest.fixture(scope="module")
def params(model):
    return jax.tree.map(lambda x: 4 * x, jax.jit(model.init)(jax.random.key(0)))


def mesh_of(count, **axes):
    config = MeshConfig(**axes)
    return make_mesh(config, jax.devices()[:count]), config.rules()


@pytest.fixture(scope="module")
def expected(model, params):
    """{source: (nats, tokens)} in float64, one window at a time."""

    @jax.jit
    def logits(tokens):
        hidden, _ = model.apply(params, tokens[None])
        return model.logits(params, hidden)[0]

    sums = {}
    for source in HELD_OUT:
        nats, count = 0.0, 0
        for document in source.documents.texts:
            for start in range(0, len(document) - 1, T):
                inputs = document[start : start + T]
                targets = document[start + 1 : start + 1 + T].astype(int)
                padded = np.zeros(T, np.int32)
                padded[: len(inputs)] = inputs
                scores = np.asarray(logits(padded), np.float64)[: len(targets)]
                norm = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1))
                nats += (norm + scores.max(-1) - scores[np.arange(len(targets)), targets]).sum()
                count += len(targets)
        sums[source.name] = nats, count
    return sums


@pytest.mark.parametrize(
    ("count", "axes"), [(1, {}), (8, {"fsdp": 8}), (8, {"data": 2, "fsdp": 2, "tensor": 2})]
)
def test_figures(model, params, expected, count, axes):
    mesh, rules = mesh_of(count, **axes)
    placed = jax.device_put(
        params, param_shardings(model.logical_axes(), model.abstract_params(), mesh, rules)
    )
    results = evaluate(model, placed, HELD_OUT, mesh, rules, T, batch_size=8)
    for source in HELD_OUT[:3]:
        nats, tokens = expected[source.name]
        got = results[source.name]
        size = sum(3 * len(d) + 1 for d in source.documents.texts)
        assert got["tokens"] == tokens == sum(len(d) - 1 for d in source.documents.texts)
        assert got["bytes"] == size and got["documents"] == len(source.documents)
        assert got["loss"] == pytest.approx(nats / tokens, rel=1e-5)
        assert got["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    zh = [expected[name] for name in ("poems", "manuals")]
    assert results["zh"]["loss"] == pytest.approx(
        sum(n for n, _ in zh) / sum(t for _, t in zh), rel=1e-5
    )
    assert "en" not in results, "one source is its own sum"
    assert results["all"]["tokens"] == sum(t for _, t in expected.values())
    assert results["empty"] == {"documents": 0, "tokens": 0, "bytes": 0}


def test_same_figures_every_time_and_one_compile(model, params):
    evaluator = Evaluator(model, *mesh_of(1), T, batch_size=4)
    before = _log_probs._cache_size()
    first = evaluator(params, HELD_OUT)
    assert evaluator(params, HELD_OUT) == first
    evaluator(params, HELD_OUT[:1])
    evaluator(params, HELD_OUT, limit=10)
    assert _log_probs._cache_size() == before + 1


def test_limit_takes_whole_documents(model, params):
    evaluator = Evaluator(model, *mesh_of(1), T, batch_size=4)
    results = evaluator(params, HELD_OUT, limit=45)
    assert results["speeches"]["documents"] == 2 and results["speeches"]["tokens"] == 39 + 16
    assert results["manuals"]["tokens"] == 89


def test_nothing_held_out(model, params):
    evaluator = Evaluator(model, *mesh_of(1), T, batch_size=4)
    with pytest.raises(DataError, match=r"no held-out document in empty.*validation_fraction"):
        evaluator(params, HELD_OUT[3:])


def test_refusals(model):
    with pytest.raises(ConfigError, match="Evaluation.batch_size = 6.*multiple of 8"):
        Evaluator(model, *mesh_of(8), T, batch_size=6)
    gpt = Model(GPT2(vocab_size=64, d_model=32, n_layers=1, n_heads=4, max_length=8).decoder())
    with pytest.raises(ConfigError, match="at most 8"):
        Evaluator(gpt, *mesh_of(1), T)


def test_sums_are_those_of_requests(model, params, expected):
    """A source's loss is the sum of its windows' scores, whatever rows and batches they share."""
    asked = [(h.name, w) for h in HELD_OUT for d in h.documents.texts for w in windows(d, T)]
    found = score(model, params, [w for _, w in asked], length=T, batch_size=3)
    results = Evaluator(model, *mesh_of(1), T, batch_size=4)(params, HELD_OUT)
    for name, (nats, tokens) in list(expected.items())[:3]:
        own = [s for (source, _), s in zip(asked, found, strict=True) if source == name]
        assert sum(len(s.log_probs) for s in own) == tokens
        assert -sum(s.total for s in own) == pytest.approx(nats, rel=1e-5)
        assert results[name]["loss"] == pytest.approx(-sum(s.total for s in own) / tokens, rel=1e-6)


def test_windows_predict_every_token_once():
    document = np.arange(100, 100 + 37)
    found = list(windows(document, 16))
    assert [len(w.continuation) for w in found] == [16, 16, 4]
    assert np.concatenate([w.continuation for w in found]).tolist() == document[1:].tolist()
    for window in found:
        assert list(window.context) == [window.continuation[0] - 1]
    assert list(windows(document[:1], 16)) == [] and list(windows(document[:0], 16)) == []


def test_packing_loses_nothing_and_fills_rows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 500)
    asked = [w for n in lengths for w in windows(np.arange(n), T)]

    def size(window: Request) -> int:
        return len(window.continuation)

    rows = list(pack(iter(asked), T, size))
    assert sum(size(w) for row in rows for w in row) == sum(lengths - 1)
    assert max(sum(size(w) for w in row) for row in rows) <= T
    assert sum(lengths - 1) / (len(rows) * T) > 0.9


def test_hooks_call_when_due(tmp_path):
    from t5x_llm.train.hooks import Hook
    from t5x_llm.train.loop import RunRecord, Start, Trainer
    from t5x_llm.train.state import TrainState
    from t5x_llm.train.task import Measures

    heard, calls = [], []

    class Hear(Hook):
        def on_eval(self, run, results):
            heard.append((run.step, results["limit"]))

    def evaluator(params, held_out, limit):
        return {"limit": limit}

    config = Loop(steps=10, batch_size=8, sequence_length=16, eval_every=4)
    hooks = [EvaluationHook(evaluator, [], limit=7), Every("s", 5, lambda r: calls.append(r.step))]
    start = Start(TrainState(0, {}, ()), None)
    run = Trainer(config, start, Measures("tokens"), [Hear(), *hooks], RunRecord(tmp_path))
    for step in range(1, 11):
        run.step = step
        for hook in run.hooks:
            hook.on_dispatch(run)
    assert heard == [(4, 7), (8, 7), (10, None)]
    assert calls == [5, 10]
    assert set(run.seconds) == {"eval", "s"}


def test_what_was_forgotten_since_the_start(tmp_path):
    """Against the same documents as at the start; a later stage takes the first one's baseline."""
    from t5x_llm.train.hooks import Hook
    from t5x_llm.train.loop import RunRecord, Start, Trainer
    from t5x_llm.train.state import TrainState
    from t5x_llm.train.task import Measures

    heard = []

    class Hear(Hook):
        def on_eval(self, run, results):
            heard.append((run.step, results["en"].get("change"), results["zh"].get("change")))

    def evaluator(params, held_out, limit):
        english = 1.0 + 0.01 * run.step + (limit is None)
        en = {"bits_per_byte": english, "loss": 9.0, "documents": 2 if limit else 5}
        return {"en": en, "zh": {"loss": 4.0 - 0.1 * run.step, "documents": 3}}

    evaluator.length = 16
    config = Loop(steps=10, batch_size=8, sequence_length=16, eval_every=5)
    state = TrainState(0, {}, ())

    def start(directory, **more):
        hook = EvaluationHook(evaluator, [], 7, compare=True, **more)
        run = Trainer(
            config, Start(state, None), Measures("tokens"), [hook, Hear()], RunRecord(directory)
        )
        return run, hook

    (tmp_path / "one").mkdir()
    run, hook = start(tmp_path / "one")
    hook.on_start(run)
    for run.step in (5, 10):
        hook.on_dispatch(run)
    assert heard[0] == (0, 0.0, 0.0)
    np.testing.assert_allclose(heard[1:], [(5, 0.05, -0.125), (10, 0.1 / 2, -0.25)], rtol=1e-6)

    heard.clear()
    again, hook = start(tmp_path / "one")  # resumed: the baseline is that of step 0
    again.step = run.step = 5
    hook.on_start(again)
    hook.on_dispatch(again)
    np.testing.assert_allclose(heard, [(5, 0.05, -0.125)], rtol=1e-6)

    heard.clear()
    (tmp_path / "two").mkdir()
    run.step = 3  # what the second stage begins with
    second, hook = start(tmp_path / "two", baseline=read_baseline(tmp_path / "one"))
    hook.on_start(second)
    np.testing.assert_allclose(heard, [(0, 0.03, -0.075)], rtol=1e-6)
    assert read_baseline(tmp_path / "two") == read_baseline(tmp_path / "one")

    (tmp_path / "two" / "baseline.json").write_text("{}")
    with pytest.raises(DataError, match="no baseline"):
        read_baseline(tmp_path / "two")


class Ids:
    """The ids an objective asks a tokenizer for."""

    vocab_size, bos_id, eos_id, pad_id, unk_id = 64, None, 2, 0, None

    def id_of(self, piece):
        return {"[MASK]": 3, "<extra_id_0>": 63, "<extra_id_1>": 62, "<extra_id_2>": 61}.get(piece)


@pytest.mark.parametrize("goal", ["prefix_lm", "mlm", "blank_filling"])
def test_other_objectives(model, params, goal):
    """Every piece alone, unpacked, gives the same sums; the same on every call and mesh."""
    config = Denoising(goal, gmask=4) if goal == "blank_filling" else Denoising(goal)
    made = make_row_objective(config, Ids(), T)

    @jax.jit
    def nats(batch):
        return model.loss(params, batch)[1]["nll"].sum()

    expected = {}
    for source in HELD_OUT:
        seed = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "little")
        sums = expected[source.name] = [0.0, 0]
        for i in range(len(source.documents)):
            for piece in made.segments(source.documents.document(i), seed, i):
                batch = made.batch(made.fill([[piece]], 1), np.zeros(1, np.int32))
                sums[0] += float(nats(batch))
                sums[1] += int(piece["loss_mask"].sum())
    for devices in (1, 8):
        mesh, rules = mesh_of(devices)
        shardings = param_shardings(model.logical_axes(), model.abstract_params(), mesh, rules)
        placed = jax.device_put(params, shardings)
        got = evaluate(model, placed, HELD_OUT, mesh, rules, T, 8, objective=made)
        assert "bits_per_byte" not in got["all"]
        for name in ("speeches", "poems", "manuals"):
            loss, tokens = expected[name]
            assert got[name]["tokens"] == tokens > 0
            assert got[name]["loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert got["zh"]["tokens"] == expected["poems"][1] + expected["manuals"][1]
