"""Small GGUF files written here, read by us and by transformers; and files that lie."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from cases import GOLDEN, prompt  # noqa: E402

from t5x_llm.core.errors import CheckpointError, ConfigError, T5xLLMError  # noqa: E402
from t5x_llm.hf import parity  # noqa: E402
from t5x_llm.hf.convert import convert  # noqa: E402
from t5x_llm.hf.gguf_file import TYPES  # noqa: E402
from t5x_llm.hf.gguf_io import GgufReader  # noqa: E402
from t5x_llm.hf.gguf_tokenizer import read_tokenizer  # noqa: E402
from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.hf.safetensors_io import SafetensorsReader  # noqa: E402


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def ggml_name(arch: str, name: str) -> str:
    """As the package's own table has it."""
    numbers = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma2": "GEMMA2"}
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, numbers[arch]), 2)
    stem, _, kind = name.rpartition(".")
    return f"{table.get_name(stem)}.{kind}"


def write(path: pathlib.Path, change=lambda writer: None, arch: str = "llama") -> None:
    """The untied golden LLaMA as a float32 GGUF file."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(512)
    writer.add_embedding_length(24)
    writer.add_block_count(2)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-3)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*(chr(33 + i) for i in range(63)), "!!"])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    change(writer)
    source = SafetensorsReader(GOLDEN / "llama_untied")
    for name in source.names():
        array = source.read(name).copy()
        if "q_proj" in name or "k_proj" in name:
            array = permute(array, 4 if "q_proj" in name else 2)
        writer.add_tensor(ggml_name("llama", name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_reads_what_llama_cpp_writes(tmp_path):
    path = tmp_path / "x.gguf"
    write(path)
    reader, original = GgufReader(path), SafetensorsReader(GOLDEN / "llama_untied")
    assert set(reader.names()) == set(original.names())
    for name in original.names():
        np.testing.assert_array_equal(reader.read(name), original.read(name), err_msg=name)
    imported = import_model(path)
    assert imported.report.reference.startswith("transformers")
    again = import_model(GOLDEN / "llama_untied", check=False)
    ours, theirs = (parity.our_logits(m.family, m.params)(prompt()) for m in (imported, again))
    np.testing.assert_array_equal(ours, theirs)


TINY = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
TINY |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=600)
OTHERS = {
    "qwen2": dict(tie_word_embeddings=False, rms_norm_eps=1e-3),
    # transformers takes 128 whatever the file says; so have all that there are.
    "qwen3": dict(head_dim=128, tie_word_embeddings=True, rms_norm_eps=1e-3),
    # What GGUF does not say is as transformers takes it: the query scale, 256.
    "gemma2": dict(head_dim=256, sliding_window=100, query_pre_attn_scalar=256, rms_norm_eps=1e-3),
}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("arch", OTHERS)
def test_other_architectures(tmp_path, arch, kind):
    """Written as llama.cpp's converter does, read as transformers reads; the gate compares both."""
    settings = TINY | OTHERS[arch]
    config = transformers.AutoConfig.for_model(arch, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", arch)
    writer.add_context_length(600)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-3)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if "head_dim" in settings:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
        writer.add_sliding_window(100)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*(chr(33 + i) for i in range(63)), "!!"])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["! !"])
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if "norm" in name:
            array = array + 0.1 * np.random.default_rng(len(name)).normal(size=array.shape)
            tensor.copy_(torch.from_numpy(array))
            array = tensor.float().numpy() + (1.0 if arch == "gemma2" else 0.0)
        array, raw = array.astype(np.float32), gguf.GGMLQuantizationType.F32
        if array.ndim == 2 and kind != "F32" and array.shape[1] % 32 == 0:
            raw = gguf.GGMLQuantizationType[kind]
            array = gguf.quantize(array, raw)
        writer.add_tensor(ggml_name(arch, name), array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = convert(tmp_path / "x.gguf", tmp_path / "out", kind="gguf")
    assert found.report.passed and found.family.hf_type == arch
    assert set(found.report.prompts) == {"long", "short", "source long", "source short"}
    if kind == "F32":
        written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(written.state_dict()[name], tensor, atol=3e-7, rtol=0)


def test_sizes_of_types_are_ggmls():
    for number, (name, block, size) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_float32("llama.logit_scale", 0.5), "logit_scale"),
        (lambda w: w.add_string("llama.rope.scaling.type", "martian"), "rope.scaling.type"),
        (lambda w: w.add_uint32("llama.attention.value_length", 4), "value_length"),
        (lambda w: w.add_uint32("llama.mystery", 4), "llama.mystery"),
    ],
)
def test_metadata_that_changes_the_maths_is_refused(tmp_path, change, message):
    write(tmp_path / "x.gguf", change)
    with pytest.raises(ConfigError, match=message):
        GgufReader(tmp_path / "x.gguf")


def test_unknown_tensors_and_tokenizers(tmp_path):
    path = tmp_path / "x.gguf"
    write(path, lambda w: w.add_tensor("mystery.weight", np.ones(3, np.float32)))
    with pytest.raises(CheckpointError, match="mystery.weight"):
        GgufReader(path)
    path.unlink()
    write(path, lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 2, 7], np.float32)))
    with pytest.raises(ConfigError, match="rope_freqs.weight.*as LLaMA 3.1"):
        GgufReader(path)
    path.unlink()
    write(path)
    reader = GgufReader(path)
    for key, value in (("model", "bert"), ("pre", "martian")):
        reader.fields[f"tokenizer.ggml.{key}"] = value
        with pytest.raises(ConfigError, match=f"tokenizer.ggml.{key}"):
            read_tokenizer(reader)
        reader.fields |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}


def test_damaged_files_end_in_our_errors(tmp_path):
    path = tmp_path / "x.gguf"
    write(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [whole[:n] for n in (0, 3, 20, 200, len(whole) // 2)]
    for _ in range(40):
        spoilt = bytearray(whole)
        for at in rng.integers(0, 2500, 3):
            spoilt[at] = rng.integers(256)
        cuts.append(bytes(spoilt))
    refused = 0
    for content in cuts:
        path.write_bytes(content)
        try:
            reader = GgufReader(path)
            [reader.read(name) for name in reader.names()]
        except T5xLLMError:
            refused += 1
    assert refused >= 10
