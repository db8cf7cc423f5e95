"""The gin file that init writes is a run: it trains, in either language, on what it was told."""

import gzip
import json

import pytest
import tiny

from t5x_llm.cli import main as command
from t5x_llm.cli.init import source_names
from t5x_llm.cli.init_comments import COMMENTS
from t5x_llm.cli.init_file import _family_of_preset
from t5x_llm.config import bindings_of, parse_flags
from t5x_llm.core.errors import ConfigError, DataError
from t5x_llm.data.inspecting import inspect_files, language
from t5x_llm.run.config import load_run

FEW = ["--gin.Loop.steps=3", "--gin.Schedule.warmup_steps=1", "--gin.Samples.every=0"]
FEW += ["--gin.Loop.eval_every=0", "--gin.Llama.d_model=32", "--gin.Llama.d_ff=64"]


@pytest.mark.extended
def test_what_is_written_trains(here):
    (here / "en").mkdir()
    for i, line in enumerate((here / "en.jsonl").read_text().splitlines()):
        (here / "en" / f"{i}.txt").write_text(json.loads(line)["text"])
    argv = ["init", "mine.gin", "--data", "en/*.txt", "--data", "zh.jsonl", "--language", "zh"]
    argv += ["--directory", "runs/x"]
    done = tiny.python("-m", "t5x_llm.cli.main", *argv, cwd=here)
    assert "en: 60 files" in done.stdout and "(jsonl, field 'text', zh)" in done.stdout
    assert "--gin_file=mine.gin" in done.stdout
    text = (here / "mine.gin").read_text(encoding="utf-8")
    assert "# 学习率" in text and "en/Source.kind = 'text'" in text
    assert "Samples.prompts" in text and "zh/Source.language = 'zh'" in text
    tiny.train(here, *FEW, gin="mine.gin")
    assert list(tiny.losses(here / "runs" / "x"))[-1] == 3
    assert (here / "runs" / "x" / "hf" / "model.safetensors").exists()
    assert (here / "runs" / "data" / "mine").is_dir()


def test_a_model_is_continued(trained, here):
    base = trained[0] / "run" / "hf"
    command.main(["init", "on.gin", "--data", "en.jsonl", "--from", str(base)])
    run, _ = load_run(parse_flags(["--gin_file=on.gin"]))
    assert run.start_from == run.data.tokenizer == str(base)
    assert (run.model.n_layers, run.model.max_length, run.loop.sequence_length) == (2, 64, 64)


@pytest.mark.extended
def test_a_continued_model_trains(trained, here):
    base = trained[0] / "run" / "hf"
    command.main(["init", "on.gin", "--data", "en.jsonl", "--from", str(base)])
    tiny.train(here, *FEW[:4], gin="on.gin")
    # It begins where the other run ended, on text of the same kind.
    assert tiny.losses(here / "runs" / "on")[3] < tiny.losses(trained[0] / "run")[4]


def test_shipped_text_and_other_presets(here):
    command.main(["init"])
    run, _ = load_run(parse_flags(["--gin_file=mine.gin"]))
    assert [s.name for s in run.data.mixture.sources] == ["en_sotu", "zh_poetry", "zh_manpages"]
    assert run.directory == "runs/mine" and run.model.vocab_size == 8192
    for preset in ("llama/llama2_7b", "mamba/mamba_130m", "bgpt/bgpt_110m", "glm/glm4_9b"):
        file = f"{preset.split('/')[1]}.gin"
        command.main(
            ["init", file, "--data", "zh.jsonl", "--model", f"configs/models/{preset}.gin"]
        )
        run, _ = load_run(parse_flags([f"--gin_file={file}"]))
        tokenizer = run.data.tokenizer
        assert tokenizer == "bytes" or tokenizer.vocab_size == run.model.vocab_size


def test_mistakes(here, capsys):
    (here / "there.gin").write_text("")
    (here / "page.html").write_text("<p>")
    (here / "a.txt").write_text("a")
    encoder = "configs/models/bert/bert_base.gin"
    for argv, said in (
        (["there.gin", "--data", "en.jsonl"], "not there yet"),
        (["x.gin", "--data", "no/*.txt"], "no file matches 'no/*.txt'"),
        (["x.gin", "--data", "enn.jsonl"], "Did you mean 'en.jsonl'"),
        (["x.gin", "--data", "page.html"], "t5x-llm data clean"),
        (["x.gin", "--data", "en.jsonl", "a.txt"], "files of one kind"),
        (["x.gin", "--data", "en.jsonl", "--model", encoder], "a decoder"),
        (["x.gin", "--data", "en.jsonl", "--model", "no.gin"], "an existing file"),
        (["x.gin", "--data", "en.jsonl", "--from", "nowhere"], "nowhere"),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(["init", *argv])
        assert ended.value.code == 2 and said in capsys.readouterr().err, argv
        assert not (here / "x.gin").exists()
    assert (here / "there.gin").read_text() == ""


def test_inspection(here):
    (here / "b.jsonl.gz").write_bytes(gzip.compress(b'{"id": "0", "body": "some longer text"}\n'))
    found = inspect_files("b", ["b.jsonl.gz"])
    assert found.source.field == "body" and found.source.kind == "jsonl"
    assert found.files == ("b.jsonl.gz",) and found.sample == "some longer text"
    (here / "empty.txt").write_text(" \n")
    for name, error in (("empty.txt", DataError), ("b.csv", ConfigError)):
        (here / name).touch()
        with pytest.raises(error):
            inspect_files("x", [name])
    texts = ("春风 ab", "hello there", "héllo où été", "")
    assert [language(text) for text in texts] == ["zh", "en", "", ""]


def test_names_and_comments():
    given = [["a/en.jsonl"], ["b/en.jsonl"], ["web/*.txt"], ["*.txt"], ["中文.txt"]]
    assert source_names(given) == ["en", "en_2", "web", "source_4", "source_5"]
    assert COMMENTS["en"].keys() == COMMENTS["zh"].keys()


@pytest.mark.parametrize(
    "preset", ["llama/llama3_1_8b", "deepseek/deepseek_v3", "falcon/falcon_7b"]
)
def test_lines_of_a_model_give_it_back(preset):
    own = _family_of_preset(f"configs/models/{preset}.gin")
    lines = [f"Run.model = @{type(own).__name__}()", *bindings_of(own)]
    data = ["Run.data = @Data()", "Data.store_dir = 's'", "Data.tokenizer = 't'"]
    data += ["Data.seqio_mixture = 'm'", "Run.directory = 'd'", "Loop.steps = 1"]
    data += ["Loop.batch_size = 1", "Loop.sequence_length = 16"]
    flags = [f"--gin_bindings={line}" for line in lines + data]
    assert load_run(parse_flags(flags))[0].model == own
