"""Sources of conversations: stores of codes, weights a token, packing, counts, identity."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_llm.core.dtypes import Policy
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.batch import Batch
from t5x_llm.data.catalog import open_stores, open_stream
from t5x_llm.data.data_plan import data_plan
from t5x_llm.data.denoising import Denoising
from t5x_llm.data.instruct.chat_config import Chat
from t5x_llm.data.instruct.splitting import pieces
from t5x_llm.data.packing import Spans, assemble
from t5x_llm.data.prepare import prepare
from t5x_llm.data.sources import Data, Mixture, Source
from t5x_llm.evaluate.perplexity import HeldOut, evaluate
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.model import Model
from t5x_llm.parallel import MeshConfig, make_mesh
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer
from t5x_llm.text.chat import (
    Conversation,
    Message,
    TemplateError,
    encode_conversation,
    template_for,
)
from t5x_llm.train.task import LmTask

LENGTH = 256


def talk(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def questions(count):
    return [talk(f"double {i}", f"it is {2 * i}.", "thanks", f"welcome {i}") for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of 400 pieces, trained on what the conversations say."""
    words = [m["content"] for row in questions(200) for m in row["messages"]]
    words += ["USER: ASSISTANT: A chat between a curious user and an artificial assistant."] * 20
    path = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer(TokenizerTraining(vocab_size=400), words, path, progress=False)
    return str(path)


@pytest.fixture
def data(tmp_path, tokenizer):
    """Makes a configuration of conversations in files of their own."""

    def make(rows, chat=None, packing="whole", store="store", files=None, **fields):
        for name, each in (files or {"talk": rows}).items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in each]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        sources = tuple(
            Source(name, str(tmp_path / f"{name}.jsonl"), kind="chat", **fields)
            for name in (files or {"talk": rows})
        )
        chat = chat or Chat(template="vicuna", max_tokens=LENGTH)
        return Data(
            str(tmp_path / store), tokenizer, Mixture(sources), packing=packing, chat=chat,
            workers=1, modules=("json",),  # so that seqio is imported once, here
        )  # fmt: skip

    return make


def quiet(_):
    """Says nothing."""


def texts(opened, weight=1.0, name="talk"):
    """The text of the tokens of each training document that have a weight."""
    split = opened.stores[name].train
    for i in range(len(split)):
        ids = split.document(i)
        yield opened.tokenizer.decode(ids[split.document_weights(i) == weight].tolist())


def test_what_is_trained_is_what_the_assistant_says(data):
    opened = prepare(data(questions(60)), say=quiet)
    split = opened.stores["talk"].train
    assert opened.stores["talk"].manifest["chat"]["rows"] == 60
    assert len(split) + len(opened.stores["talk"].validation) == 60
    spoken = {f"it is {2 * i}.welcome {i}".replace(" ", "") for i in range(60)}
    assert {text.replace(" ", "") for text in texts(opened)} <= spoken
    for i in range(len(split)):
        ids, codes = split.document(i), split.read_mask(*split.offsets[i : i + 2, None])
        assert ids[codes >= 2].tolist().count(opened.tokenizer.eos_id) == 2, "both turns end"
        assert ids.tolist().count(opened.tokenizer.bos_id) == 1


def test_the_targets_of_an_answer_are_its_tokens_and_the_stop_token(data):
    """An answer of three tokens has three targets, its end among them (OpenRLHF 973)."""
    config = data([talk(f"q{i}", "k" * (i + 1)) for i in range(12)])
    opened = prepare(config, say=quiet)
    split, eos = opened.stores["talk"].train, opened.tokenizer.eos_id
    batch = open_stream(config, opened, LENGTH).batch(0, 12)
    answers = set()
    for row in range(12):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = (batch.segment_ids[row] == segment) & (batch.loss_mask[row] == 1)
            answers.add(tuple(batch.targets[row][here].tolist()))
    wanted = set()
    for i in range(len(split)):
        ids, codes = split.document(i), split.read_mask(*split.offsets[i : i + 2, None])
        wanted.add(tuple(ids[codes == 3].tolist()))
        assert set(opened.tokenizer.decode(ids[codes == 3].tolist()).strip()) == {"k"}
    assert answers == wanted and all(a[-1] == eos and a.count(eos) == 1 for a in answers)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [0, 0, 1, 1]),
        ({"loss": "all"}, [0, 1, 1, 1]),
        ({"loss": "last_turn"}, [0, 0, 0, 1]),
        ({"prompt_weight": 0.25}, [0, 0.25, 1, 1]),
        ({"loss": "last_turn", "prompt_weight": 0.5}, [0, 0.5, 0, 1]),
    ],
)
def test_codes_become_weights_in_the_batch(data, options, weights):
    config = data(questions(40), Chat(template="vicuna", max_tokens=LENGTH, **options))
    opened = prepare(config, say=quiet)
    stream = open_stream(config, opened, LENGTH)
    split = opened.stores["talk"].train
    found, wanted = 0.0, 0.0
    batch = stream.batch(0, stream.rows["talk"])
    found = float(batch.loss_mask.sum())
    for i in range(len(split)):
        codes = split.read_mask(*split.offsets[i : i + 2, None])[1:]
        wanted += sum(weights[c] for c in codes.tolist())
    assert found == pytest.approx(wanted, rel=1e-6)
    assert batch.loss_mask.dtype == np.float32


def test_packings_agree_and_epochs_train_every_token_once(data):
    sums = set()
    for packing in ("whole", "similar", "concat"):
        config = data(questions(40), packing=packing)
        stream = open_stream(config, prepare(config, say=quiet), LENGTH)
        sums.add(float(stream.batch(0, stream.rows["talk"]).loss_mask.sum()))
    assert len(sums) == 1


def test_options_that_only_weigh_keep_the_store_and_change_the_stream(data):
    base, opened = data(questions(20)), {}
    names, prints = {}, {}
    for key, options in {
        "answers": {}, "light": {"prompt_weight": 0.5}, "heavy": {"prompt_weight": 0.75},
        "all": {"loss": "all"},
    }.items():  # fmt: skip
        config = dataclasses.replace(base, chat=dataclasses.replace(base.chat, **options))
        opened = prepare(config, say=quiet)
        names[key] = opened.stores["talk"].path
        prints[key] = open_stream(config, opened, LENGTH).fingerprint
    assert names["light"] == names["heavy"] != names["answers"]
    assert len(set(prints.values())) == 4
    said = []
    allowed = dataclasses.replace(base.chat, max_dropped=0.5)
    prepare(
        dataclasses.replace(base, chat=dataclasses.replace(allowed, loss="all")), say=said.append
    )
    assert "up to date" in said[0]


def test_long_conversations_are_split_and_held_out_whole(data):
    long = [talk(*(f"turn {i} of {k} " * 4 for i in range(20))) for k in range(60)]
    config = data(long)
    config = dataclasses.replace(config, validation_fraction=0.2)
    store = prepare(config, say=quiet).stores["talk"]
    told = store.manifest["chat"]
    assert told["split"] == 60 and told["pieces"] == len(store.train) + len(store.validation)
    assert store.train.offsets[1:].max() and np.diff(store.train.offsets).max() <= LENGTH
    lines = [
        {split.provenance(i).line for i in range(len(split))}
        for split in (store.train, store.validation)
    ]
    assert lines[0] and lines[1] and not lines[0] & lines[1]
    spoken = sum(
        told["rows"] and sum(store.manifest["codes"][s][2:]) for s in ("train", "validation")
    )
    (whole,) = [prepare(data(long, Chat(template="vicuna"), store="whole"), say=quiet)]
    every = whole.stores["talk"].manifest["codes"]
    assert spoken == sum(sum(every[split][2:]) for split in ("train", "validation"))


@pytest.mark.parametrize("name", ["vicuna", "llama2", "alpaca", "mistral"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    answers=st.lists(st.text("abc 12\n三", min_size=1, max_size=120), min_size=1, max_size=8),
    question=st.integers(1, 60),
    limit=st.integers(200, 400),
)
def test_templates_train_every_answer_s_token_once(tokenizer, name, answers, question, limit):
    loaded = load_tokenizer(tokenizer)
    template = template_for(name, loaded)
    turns = [
        turn
        for i, text in enumerate(answers)
        for turn in (Message("user", f"{i} " * question), Message("assistant", f"{i}{text}"))
    ]
    encode = functools.partial(encode_conversation, template, loaded)
    whole = encode(Conversation(tuple(turns)))
    found = list(pieces(Conversation(tuple(turns)), encode, limit))
    trained = np.concatenate([piece.ids[piece.codes >= 2] for piece in found])
    assert trained.tolist() == whole.ids[whole.codes >= 2].tolist()
    assert trained.tolist().count(loaded.eos_id) == len(answers)
    assert all(len(piece.ids) <= limit for piece in found)


def test_unreadable_rows_are_counted_by_reason_and_refused(data):
    rows = [*questions(30), talk("nobody answers"), "{broken", talk("", "")]
    with pytest.raises(DataError) as error:
        prepare(data(rows), say=quiet)
    text = str(error.value)
    assert "3 of 33 conversations (9.09%) cannot be used" in text
    assert "1 x no turn of the assistant (first: " in text and "talk.jsonl:31)" in text
    assert "1 x not JSON" in text and "1 x an empty answer" in text
    assert "Chat.max_dropped = 0.091" in text
    allowed = data(rows, Chat(template="vicuna", max_tokens=LENGTH, max_dropped=0.1))
    said = []
    prepare(allowed, say=said.append)
    assert any("3 of 33 unreadable" in line for line in said)
    strict = dataclasses.replace(allowed, chat=dataclasses.replace(allowed.chat, max_dropped=0.01))
    with pytest.raises(DataError, match="3 of 33"):
        open_stores(strict)


def test_a_row_without_trained_tokens_is_named_and_a_source_of_them_is_refused(data):
    """A mask without a trained token gave 0/0 (ml-explore/mlx-lm 1355)."""
    silent = {"messages": [
        {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0},
    ]}  # fmt: skip
    with pytest.raises(DataError, match=r"1 x no trained tokens \(first: .*talk.jsonl:11\)"):
        prepare(data([*questions(10), silent]), say=quiet)
    every = Chat(template="vicuna", max_tokens=LENGTH, max_dropped=1.0)
    with pytest.raises(DataError, match="4 of 4 conversations .*no trained tokens"):
        prepare(data([silent] * 4, every), say=quiet)


def test_roles_that_the_template_refuses_are_a_reason(data):
    twice = {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"},
                          {"role": "assistant", "content": "b"}]}  # fmt: skip
    chat = Chat(template="llama2", max_tokens=LENGTH)
    with pytest.raises(DataError, match=r"1 of 11 conversations .*1 x .*talk.jsonl:11\)"):
        prepare(data([*questions(10), twice], chat), say=quiet)


def test_a_template_that_changes_is_another_store(data, tmp_path):
    path = tmp_path / "mine.jinja"
    text = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}Q: {{ m.content }} A:{% endif %}{% endfor %}"
    )
    path.write_text(text)
    config = data(questions(10), Chat(template=str(path), max_tokens=LENGTH))
    with pytest.raises(TemplateError, match="does not begin with '<s>'") as refused:
        prepare(config, say=quiet)
    assert refused.value.proof == "bos" and not list(tmp_path.glob("store/talk-*"))
    text = "{{ bos_token }}" + text
    path.write_text(text)
    first = prepare(config, say=quiet).stores["talk"]
    path.write_text(text.replace("Q:", "?:"))
    said = []
    second = prepare(config, say=said.append).stores["talk"]
    assert first.path != second.path and not any("up to date" in line for line in said)


def test_text_and_conversations_in_one_mixture(data, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": f"number {i} " * 9}) for i in range(40))
    )
    config = data(questions(40))
    text = Source("text", str(tmp_path / "text.jsonl"))
    config = dataclasses.replace(
        config, mixture=Mixture((*config.mixture.sources, text), rates=(1.0, 1.0))
    )
    opened = prepare(config, say=quiet)
    batch = open_stream(config, opened, LENGTH).batch(0, 8)
    read = batch.targets != 0
    share = [
        (batch.loss_mask * read)[batch.source == i].sum() / read[batch.source == i].sum()
        for i in (0, 1)
    ]
    assert 0 < share[0] < 0.5 and share[1] == 1.0
    assert [
        s.trained is None
        for s in data_plan(open_stream(config, opened, LENGTH), 8).sources.values()
    ] == [False, True]


def test_answers_labelled_wrong_are_left_out_and_no_error(data):
    rows = [{"prompt": f"Q{i}", "completion": f"A{i}", "label": i % 2 == 0} for i in range(20)]
    said = []
    store = prepare(data(rows), say=said.append).stores["talk"]
    assert len(store.train) + len(store.validation) == 10
    assert any("10 left out: answers or solutions labelled as wrong" in line for line in said)


def test_a_file_of_the_wrong_format_says_which_it_looks_like(data):
    with pytest.raises(DataError, match="looks like 'openai': set Source.format = 'openai'"):
        prepare(data(questions(3), format="alpaca"), say=quiet)


def test_configurations_that_cannot_be(data, tmp_path, tokenizer):
    config = data(questions(2))
    with pytest.raises(ConfigError, match="Denoising.objective = 'ul2': expected 'lm'"):
        dataclasses.replace(config, denoising=Denoising("ul2"))
    with pytest.raises(ConfigError, match="Chat.template = 'auto'"):
        dataclasses.replace(config, tokenizer=TokenizerTraining(), chat=Chat())
    with pytest.raises(ConfigError, match="Data.chat = .*no source is of kind 'chat'"):
        Data("s", tokenizer, Mixture((Source("a", "a.jsonl"),)), chat=Chat())
    with pytest.raises(ConfigError, match="Chat.prompt_weight = 0.5: expected 0"):
        Chat(loss="all", prompt_weight=0.5)
    for bad in ({"loss": "answer"}, {"prompt_weight": 2}, {"max_tokens": 3}, {"system": 5},
                {"max_dropped": -1}, {"template": ""}):  # fmt: skip
        with pytest.raises(ConfigError, match=f"Chat.{next(iter(bad))}"):
            Chat(**bad)
    assert Data("s", tokenizer, Mixture((Source("a", "a.jsonl", kind="chat"),))).chat == Chat()


def test_a_system_message_for_conversations_without_one(data):
    config = data(questions(8), Chat(template="vicuna", max_tokens=LENGTH, system="Be kind."))
    opened = prepare(config, say=quiet)
    split = opened.stores["talk"].train
    assert all(
        "Be kind." in opened.tokenizer.decode(split.document(i).tolist()) for i in range(len(split))
    )


def test_the_plan_knows_what_is_trained(data):
    config = data(questions(30))
    opened = prepare(config, say=quiet)
    plan = data_plan(open_stream(config, opened, LENGTH), 10)
    codes = opened.stores["talk"].manifest["codes"]["train"]
    assert plan.sources["talk"].trained == pytest.approx(sum(codes[2:]) / sum(codes))
    assert f"{plan.sources['talk'].trained:.1%}" in str(plan) and "trained" in str(plan)


def test_a_poisoned_shard_is_skipped_by_position(data):
    """Rows of a bad file are found by provenance; without them the stream is the same rows."""
    config = data(None, files={"good": questions(30), "bad": questions(30)})
    opened = prepare(config, say=quiet)
    stream = open_stream(config, opened, LENGTH)
    total = 40
    poisoned = [
        p for p in range(total)
        if any(x.provenance.file.endswith("bad.jsonl") for x in stream.documents(p))
    ]  # fmt: skip
    assert 0 < len(poisoned) < total
    kept = [p for p in range(total) if p not in poisoned]
    skipped = stream
    for position in reversed(poisoned):
        skipped = skipped.skip(position, 1)
    got, wanted = skipped.batch(0, len(kept)), stream.batch(0, total)
    for name in ("tokens", "targets", "loss_mask", "segment_ids"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name)[kept])


@pytest.fixture(scope="module")
def task():
    family = FAMILIES["llama"](
        vocab_size=400, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32,
        rope_theta=1e4, rope_scaling=None, norm_eps=1e-5, tied=True, max_length=256,
    )  # fmt: skip
    model = Model(family.decoder(), Policy(compute="float32"))
    return LmTask(model, LENGTH, ("talk",))


def test_fractional_weights_through_packing_change_no_gradient(data, task):
    """Packed rows, rows of one document, and parts of a batch: one sum over one denominator."""
    config = data(questions(12), Chat(template="vicuna", max_tokens=LENGTH, prompt_weight=0.3))
    opened = prepare(config, say=quiet)
    split = opened.stores["talk"].train
    stream = open_stream(config, opened, LENGTH)
    packed = stream.batch(0, stream.rows["talk"])
    starts, ends = split.offsets[:-1], split.offsets[1:]
    alone = Spans(np.arange(len(starts)), starts, ends - starts - 1, ends)
    arrays = assemble(split, alone, len(starts), LENGTH)
    single = Batch(**arrays, source=np.zeros(len(starts), np.int32))
    assert len(single.tokens) > len(packed.tokens)
    params = task.init(jax.random.key(0))

    @jax.jit
    def summed(params, batch):
        (value, sums), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, None)
        return value, sums["tokens"], grads

    def mean(*batches):
        parts = [summed(params, jax.tree.map(jnp.asarray, batch)) for batch in batches]
        weight = sum(part[1] for part in parts)
        grads = jax.tree.map(lambda *g: sum(g) / weight, *(part[2] for part in parts))
        return sum(part[0] for part in parts) / weight, weight, grads

    halves = [jax.tree.map(lambda x, i=i: x[i::2], single) for i in range(2)]
    (a, n, left), (b, m, right), (c, k, parts) = mean(packed), mean(single), mean(*halves)
    assert float(n) == pytest.approx(float(m), rel=1e-5)
    assert float(n) == pytest.approx(float(k), rel=1e-5) and n % 1
    assert float(b) == pytest.approx(float(a), rel=5e-6)
    assert float(c) == pytest.approx(float(a), rel=5e-6)
    for x, y, z in zip(*map(jax.tree.leaves, (left, right, parts)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
        np.testing.assert_allclose(x, z, atol=1e-6)
    # A batch of little weight is divided by it, and not by 1; one of none by 1.
    for weight, total in ((0.01, 0.04), (0.0, 1.0)):
        light = dataclasses.replace(single, loss_mask=np.full((2, 2), weight, np.float32))
        assert float(task.total(light)) == pytest.approx(total)
    # The same by hand: weights times log-probabilities, over the sum of the weights.
    found, _ = task.model.log_probs(params, jax.tree.map(jnp.asarray, single))
    by_hand = -np.sum(np.asarray(found, np.float64) * single.loss_mask) / single.loss_mask.sum()
    assert float(a) == pytest.approx(by_hand, abs=1e-5)


def test_an_evaluation_measures_the_trained_tokens(data, task):
    config = data(questions(12), Chat(template="vicuna", max_tokens=LENGTH, prompt_weight=0.3))
    split = prepare(config, say=quiet).stores["talk"].train
    params = task.init(jax.random.key(1))
    mesh = MeshConfig()
    results = evaluate(
        task.model, params, [HeldOut("talk", split, "", split.measured)],
        make_mesh(mesh), mesh.rules(), LENGTH, 8,
    )  # fmt: skip
    nats, tokens, size = 0.0, 0, 0
    starts, ends = split.offsets[:-1], split.offsets[1:]
    arrays = assemble(
        split, Spans(np.arange(len(starts)), starts, ends - starts - 1, ends), len(starts), LENGTH
    )
    batch = Batch(**arrays, source=np.zeros(len(starts), np.int32))
    found, _ = task.model.log_probs(params, jax.tree.map(jnp.asarray, batch))
    chosen = arrays["loss_mask"] == 1
    nats, tokens = -float(np.asarray(found)[chosen].sum()), int(chosen.sum())
    size = split.total_bytes
    assert results["talk"]["tokens"] == tokens and results["talk"]["bytes"] == size
    assert results["talk"]["loss"] == pytest.approx(nats / tokens, abs=1e-4)
