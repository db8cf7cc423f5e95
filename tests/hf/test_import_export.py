"""Directories that do not hold together are refused by name; what is harmless is read."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
from ggufs import FIELDS, write_gguf
from safetensors.numpy import load_file, save_file

from t5x_llm.core.errors import CheckpointError, ConfigError, ParityError
from t5x_llm.hf import parity, reference
from t5x_llm.hf.export import export_hf
from t5x_llm.hf.gguf_io import GgufReader
from t5x_llm.hf.import_ import import_hf, import_model
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.weight_map import flatten
from t5x_llm.text import TokenizerTraining, train_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "parity" / "golden"


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setattr(reference, "torch_available", lambda: False)


@pytest.fixture(params=["llama_untied", "llama_tied", "gpt2"])
def directory(request, tmp_path):
    return shutil.copytree(GOLDEN / request.param, tmp_path / request.param)


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = {k: v.copy() for k, v in load_file(path).items()}
    save_file(change(tensors), path)


def same_params(a, b):
    a, b = flatten(a), flatten(b)
    assert set(a) == set(b)
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


@pytest.mark.parametrize("field", ["sliding_window", "logit_scale", "qk_norm"])
def test_an_unknown_field_is_refused_by_name(directory, field):
    edit_config(directory, **{field: 3})
    with pytest.raises(ConfigError, match=field):
        import_model(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": None}, "model_type"),
        ({"vocab_size": "many"}, "config.json|vocab_size"),
    ],
)
def test_wrong_values(change, message, directory):
    edit_config(directory, **change)
    with pytest.raises(ConfigError, match=message):
        import_model(directory, check=False)


def test_settings_within_settings_are_known_or_refused_by_name(tmp_path):
    directory = shutil.copytree(GOLDEN / "llama_untied", tmp_path / "x")
    config = json.loads((directory / "config.json").read_text())
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    edit_config(directory, rope_parameters=rope)
    assert import_model(directory).report.passed
    edit_config(directory, rope_parameters=rope | {"twist": 3})
    with pytest.raises(ConfigError, match=r"rope_parameters\.twist"):
        import_model(directory)
    edit_config(directory, rope_parameters=config["rope_parameters"])
    for field, value in (
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("rope_scaling", {"type": "ntk-by-parts", "factor": 2.0}),
        ("layer_norm", {"eps": 1e-5}),
        ("attention_bias", [True]),
    ):
        edit_config(directory, rope_parameters=None, **{field: value})
        with pytest.raises(ConfigError, match=field.replace("rope_scaling", r"rope_scaling\.type")):
            import_model(directory, check=False)
        edit_config(directory, rope_scaling=None)
        edited = json.loads((directory / "config.json").read_text())
        del edited[field]
        (directory / "config.json").write_text(json.dumps(edited))


def test_a_missing_field_is_named(directory):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("vocab_size")
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="vocab_size"):
        import_model(directory)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "\udcff"])
def test_config_that_is_no_json_object(directory, content):
    (directory / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="config.json"):
        import_model(directory)


def test_no_config_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="no config.json"):
        import_model(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_named(directory):
    whole = load_file(directory / "model.safetensors")
    name = next(k for k in whole if "norm" in k or "ln_" in k)

    def refuses(tensors, message):
        save_file(tensors, directory / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            import_model(directory)

    refuses({k: v for k, v in whole.items() if k != name}, f"1 of .* missing, e.g. {name}")
    refuses(whole | {"model.surprise": np.zeros(2, np.float32)}, "model.surprise")
    refuses(whole | {name: np.zeros((1, 24), np.float32)}, name)
    refuses(whole | {name: np.zeros(1, np.float32)}, name)


def test_a_spoilt_weight_that_no_shape_shows_is_still_our_reading(directory):
    """Bits flipped in the file change both sides alike: the gate is about mapping, not damage."""
    edit_tensors(directory, lambda t: {k: v + 0.01 for k, v in t.items()})
    assert import_model(directory).report.passed


def test_tied_head_stored_twice(tmp_path):
    directory = shutil.copytree(GOLDEN / "llama_tied", tmp_path / "x")
    table = "model.embed_tokens.weight"
    edit_tensors(directory, lambda t: t | {"lm_head.weight": t[table].copy()})
    _, params, tokenizer = import_hf(directory)
    same_params(params, import_hf(GOLDEN / "llama_tied")[1])
    assert tokenizer is None
    edit_tensors(directory, lambda t: t | {"lm_head.weight": t[table] + 1})
    with pytest.raises(CheckpointError, match="lm_head.weight differs"):
        import_model(directory)


def test_bare_names_and_old_buffers(tmp_path):
    """GPT-2 as OpenAI's checkpoint on the hub has it: no prefix, masks stored as buffers."""
    directory = shutil.copytree(GOLDEN / "gpt2", tmp_path / "x")

    def old(tensors):
        bare = {k.removeprefix("transformer."): v for k, v in tensors.items()}
        masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 8, 8), np.float32)) for i in range(2)}
        return bare | masks

    edit_tensors(directory, old)
    same_params(import_hf(directory)[1], import_hf(GOLDEN / "gpt2")[1])


def test_parameters_are_placed_as_they_come(directory):
    seen = []
    params = import_model(directory, place=lambda path, x: seen.append(path) or x).params
    assert seen == list(flatten(params))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    texts = ["The cat sat on the mat. " * 20, "春眠不觉晓，处处闻啼鸟。" * 20]
    return train_tokenizer(TokenizerTraining(vocab_size=320), texts, path / "t.model")


def small(vocab_size):
    from t5x_llm.models.families.llama import Llama

    return Llama(vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=24)


def params_of(family):
    import jax

    from t5x_llm.models.model import Model

    return Model(family.decoder()).init(jax.random.key(0))


def test_export_with_tokenizer_is_complete(tokenizer, tmp_path):
    family = small(tokenizer.vocab_size + 3)
    params = params_of(family)
    export_hf(params, family, tokenizer, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert names >= {"parity.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["bos_token_id"] == tokenizer.bos_id
    assert config["eos_token_id"] == tokenizer.eos_id
    again, back, tokens = import_hf(tmp_path / "out")
    same_params(back, params)
    assert again.decoder() == family.decoder()
    text = "The cat 春眠 🎉"
    assert (
        tokens.encode(text) == tokenizer.encode(text) and tokens.decode(tokens.encode(text)) == text
    )


def test_a_tokenizer_too_large_for_the_model(tokenizer, tmp_path):
    family = small(tokenizer.vocab_size - 1)
    with pytest.raises(ConfigError, match=f"at least the tokenizer's {tokenizer.vocab_size}"):
        export_hf(params_of(family), family, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model(tmp_path):
    with pytest.raises(CheckpointError, match="Parameter embed.table.*100.*90"):
        export_hf(params_of(small(90)), small(100), None, tmp_path / "out")
    with pytest.raises(ConfigError, match="dtype"):
        export_hf(params_of(small(90)), small(90), None, tmp_path / "out", dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_or_overflow(tmp_path):
    family = small(90)
    params = params_of(family)
    params["embed"]["table"] = params["embed"]["table"].at[0, 0].set(1e30)
    with pytest.raises(ParityError, match="embed_tokens.*not finite in float16"):
        export_hf(params, family, None, tmp_path / "out", dtype="float16")
    params["embed"]["table"] = params["embed"]["table"].at[0, 0].set(float("nan"))
    with pytest.raises(ParityError, match="not finite in float32"):
        export_hf(params, family, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="out_dir"):
        export_hf(params_of(small(90)), small(90), None, tmp_path / "file" / "out")


def test_a_full_disk_loses_nothing(tmp_path):
    """Stood in for by a limit on file size: writing fails after the first bytes, as there."""
    import resource
    import signal

    family, out = small(90), tmp_path / "out"
    export_hf(params_of(family), family, None, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    params = params_of(family)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        with pytest.raises(CheckpointError, match="Cannot write .*free space"):
            export_hf(params, family, None, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_no_reference_means_no_conversion(directory, monkeypatch):
    monkeypatch.setattr(reference, "NUMPY", {})
    with pytest.raises(ParityError, match="Install torch and transformers"):
        import_model(directory)


def test_gguf_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    write_gguf(tmp_path / "x.gguf", FIELDS, {"output_norm.weight": (8, (32,), b"\0" * 34)})
    with pytest.raises(ConfigError, match="pip install gguf"):
        GgufReader(tmp_path / "x.gguf").read("model.norm.weight")


def test_short_models_are_checked_on_their_whole_length():
    logits = np.random.default_rng(0).normal(size=(600, 50))
    report = parity.check_parity(
        lambda t: logits[: len(t)], ("x", lambda t: logits[: len(t)]), vocab_size=50, max_length=100
    )
    assert report.passed and report.prompts["long"].tokens == 100
    assert report.notes == ("The long prompt has 100 tokens: the model takes no more.",)


def test_comparison_figures():
    """Against figures worked out by hand for two tokens and two positions."""
    theirs = np.log(np.asarray([[0.5, 0.5], [0.8, 0.2]]))
    ours = np.log(np.asarray([[0.5, 0.5], [0.4, 0.6]]))
    found = parity.compare(ours, theirs)
    assert found.max_abs == pytest.approx(np.log(3))
    assert found.mean_abs == pytest.approx((np.log(2) + np.log(3)) / 4)
    assert found.scale == pytest.approx(np.log(5))
    assert found.kl_max == pytest.approx(0.8 * np.log(2) - 0.2 * np.log(3))
    assert found.kl_mean == pytest.approx(found.kl_max / 2)
    assert found.top1 == 0.5
    nan = parity.check_parity(
        lambda t: np.full((len(t), 3), np.nan),
        ("x", lambda t: np.ones((len(t), 3))),
        vocab_size=3,
        max_length=9,
    )
    assert not nan.passed
    with pytest.raises(ParityError, match="Nothing was written"):
        nan.raise_if_failed("Export")


def test_every_family_is_registered():
    assert {"llama", "gpt2"} <= set(FAMILIES)
