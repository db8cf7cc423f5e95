"""A run on conversations: proved and shown first, saved, exported, resumed to the bit."""

import json
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from clocks import until

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))

import tiny

from t5x_llm import api
from t5x_llm.cli import main as command
from t5x_llm.run.chat import check_chat, save_template
from t5x_llm.run.load import saved_generation
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer
from t5x_llm.train.journal import read_journal

GIN = """
Run.directory = 'run'
Run.model = @Llama()
Llama.vocab_size = 300
Llama.d_model = 16
Llama.n_layers = 1
Llama.n_heads = 2
Llama.n_kv_heads = 2
Llama.d_ff = 32
Llama.max_length = 192
Data.store_dir = 'store'
Data.tokenizer = @TokenizerTraining()
Data.validation_fraction = 0.1
Data.packing = 'whole'
Data.chat = @Chat()
Chat.template = 'vicuna'
Chat.prompt_weight = 0.25
TokenizerTraining.vocab_size = 300
Data.mixture = @Mixture()
Mixture.sources = (@talk/Source(),)
talk/Source.name = 'talk'
talk/Source.kind = 'chat'
talk/Source.files = 'talk.jsonl'
Loop.steps = 6
Loop.batch_size = 4
Loop.sequence_length = 192
Loop.eval_every = 3
Loop.log_every = 1
CheckpointConfig.every_steps = 3
CheckpointConfig.keep = 10
Schedule.peak = 1e-2
Schedule.warmup_steps = 2
"""


def corpus(directory):
    """``chat.gin`` and its file of conversations."""
    rows = [
        {"instruction": f"double {i}", "input": "", "output": f"{2 * i} is twice {i}, or 两倍"}
        for i in range(120)
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (directory / "talk.jsonl").write_text(text + "\n", encoding="utf-8")
    (directory / "chat.gin").write_text(GIN, encoding="utf-8")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A directory with the finished run, and what it printed."""
    directory = tmp_path_factory.mktemp("chat")
    corpus(directory)
    return directory, tiny.train(directory, gin="chat.gin")


def test_three_examples_are_shown_before_the_first_step(chat):
    said = chat[1].stderr
    assert (
        "chat: template vicuna, '</s>' (id 2) ends an answer; trained tokens between « and »:"
        in said
    )
    shown = re.findall(r"── talk, .*talk.jsonl:\d+: \d+ of \d+ tokens trained\n(.*)", said)
    assert len(shown) == 3
    for text in shown:
        assert re.search(r"«0.25:.*double \d+.*»«\s*\d+ is twice \d+, or 两倍</s>»", text), text


def test_the_template_is_saved_and_exported_with_its_end_token(chat):
    run = chat[0] / "run"
    source = (run / "chat_template.jinja").read_text()
    assert "ASSISTANT" in source
    assert (run / "hf" / "chat_template.jinja").read_text() == source
    tokenizer = load_tokenizer(run / "hf")
    settings = json.loads((run / "hf" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_id
    assert tokenizer.companions["chat_template.jinja"].decode() == source
    assert api.load_model(str(run)).tokenizer.companions["chat_template.jinja"].decode() == source


def test_a_stop_token_that_is_not_the_end_of_a_text_is_named_beside_it(tmp_path):
    texts = [f"double {i}" for i in range(200)]
    training = TokenizerTraining(vocab_size=280, extra_ids=1)
    train_tokenizer(training, texts, tmp_path / "t", progress=False)
    tokenizer = load_tokenizer(tmp_path / "t")
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<extra_id_0>{% endgeneration %}{% else %}Q: {{ m.content }} A:"
        "{% endif %}{% endfor %}"
    )
    (tmp_path / "chat.gin").write_text(GIN)
    bindings = {
        "Run.directory": str(tmp_path / "run"), "Chat.template": str(template),
        "Data.tokenizer": str(tmp_path / "t"), "Llama.vocab_size": 280,
    }  # fmt: skip
    run = api.load_run(str(tmp_path / "chat.gin"), bindings=bindings).config
    stop = tokenizer.id_of("<extra_id_0>")
    check_chat(run)
    save_template(run, tokenizer)
    save_template(run, tokenizer)
    assert saved_generation(run.directory)["eos_token_id"] == [stop, tokenizer.eos_id]
    assert "<extra_id_0>" in (tmp_path / "run" / "chat_template.jinja").read_text()


def test_an_evaluation_counts_the_answers_alone(chat):
    lines = [json.loads(x) for x in (chat[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["results"]["talk"] for line in lines if line.get("kind") == "eval"][-1]
    assert found["tokens"] < 40 * found["documents"] and found["bits_per_byte"] > 0


@pytest.mark.extended
def test_a_run_killed_after_a_checkpoint_resumes_to_the_bit(chat, tmp_path):
    corpus(tmp_path)
    journal = tmp_path / "run" / "journal.jsonl"
    process = subprocess.Popen(
        [sys.executable, str(tiny.ROOT / "train.py"), "--gin_file=chat.gin"],
        cwd=tmp_path, env=tiny.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def saved():
        return any((x["event"], x["step"]) == ("save", 3) for x in read_journal(journal))

    until(lambda: saved() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tiny.train(tmp_path, gin="chat.gin")
    wanted, got = (tiny.arrays(where / "run", 6) for where in (chat[0], tmp_path))
    assert wanted.keys() == got.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)


def test_show_and_plan_and_trace(chat, monkeypatch, capfd):
    monkeypatch.chdir(chat[0])
    command.main(["data", "show", "chat.gin", "--examples", "2"])
    out = capfd.readouterr().out
    assert out.count("── talk, ") == 2 and "«" in out
    command.main(["data", "show", "run", "--examples=1", "--color=always"])
    out = capfd.readouterr().out
    assert "\033[32m" in out and "\033[33m" in out and "</s>" in out
    command.main(["data", "show", "run", "--examples=1", "--json"])
    shown = json.loads(capfd.readouterr().out)
    assert {weight for _, weight in shown["parts"]} == {0.25, 1.0}
    command.main(["data", "plan", "run"])
    assert "trained" in capfd.readouterr().out
    command.main(["data", "trace", "run", "--step=1", "--rows=0"])
    assert re.search(r"trained in 1 turn, weight \d+", capfd.readouterr().out)
    with pytest.raises(SystemExit):
        command.main(["data", "show", "run", "--source", "tlak"])
    assert "Did you mean 'talk'?" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("talk/Source.format='sharegpt'", "looks like 'alpaca': set Source.format = 'alpaca'"),
        ("Chat.template='vicunya'", "Did you mean 'vicuna'"),
        ("Chat.template='chatml'", "a server stops at one"),
        (
            "talk/Source.columns={'response': 'instruction', 'prompt': 'input'}",
            "120 x empty 'instruct",
        ),
    ],
)
def test_what_cannot_be_prepared_is_told_and_leaves_no_store(
    tmp_path, monkeypatch, capfd, flag, words
):
    corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main(["prepare", "--gin_file=chat.gin", f"--gin.{flag}"])
    assert ended.value.code == 2 and words in capfd.readouterr().err
    assert not list(tmp_path.glob("store/mixture.json"))
