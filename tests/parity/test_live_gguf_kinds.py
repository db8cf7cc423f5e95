"""Models of every architecture of GGUF that is read, written as llama.cpp's converter writes them.

What comes out must be what transformers' own model computes, and tensor for tensor what it holds.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from t5x_llm.core.errors import CheckpointError  # noqa: E402
from t5x_llm.hf.convert import convert  # noqa: E402
from t5x_llm.hf.gguf_io import GgufReader  # noqa: E402

TINY = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
TINY |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024)
TINY |= dict(tie_word_embeddings=False, rms_norm_eps=1e-3)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0)
LLAMA3 |= dict(high_freq_factor=4.0, original_max_position_embeddings=8192)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=256)
# Architecture of the file, model_type, fields of its config.json.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama3": ("llama", "llama", dict(rope_parameters=LLAMA3)),
    "llama3_odd": (
        "llama",
        "llama",
        dict(
            head_dim=64,
            rope_parameters=LLAMA3
            | dict(factor=32.0, original_max_position_embeddings=512, rope_theta=10000.0),
        ),
    ),
    "linear": (
        "llama",
        "llama",
        dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0)),
    ),
    "yarn": ("qwen2", "qwen2", dict(rope_parameters=YARN)),
    "biased": ("llama", "llama", dict(attention_bias=True)),
    "mistral": ("llama", "mistral", dict(sliding_window=48)),
    "mixtral": ("llama", "mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2moe": (
        "qwen2moe",
        "qwen2_moe",
        EXPERTS | dict(shared_expert_intermediate_size=40, norm_topk_prob=False),
    ),
    "qwen3moe": ("qwen3moe", "qwen3_moe", EXPERTS | dict(head_dim=32, norm_topk_prob=True)),
    "qwen3": ("qwen3", "qwen3", dict(head_dim=16)),
    "phi3": ("phi3", "phi3", dict(sliding_window=48, pad_token_id=0)),
    "phi3_partial": ("phi3", "phi3", dict(partial_rotary_factor=0.5, pad_token_id=0)),
    "gemma": ("gemma", "gemma", dict(head_dim=32, tie_word_embeddings=True)),
}


def model_of(kind: str) -> Any:
    """A model of random weights, norms and biases included."""
    _, model_type, settings = CASES[kind]
    config = transformers.AutoConfig.for_model(model_type, **TINY | settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.from_numpy(0.1 * rng.normal(size=tuple(tensor.shape))))
    return model


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    rows = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)


def tensors_of(kind: str, model: Any) -> dict[str, np.ndarray]:
    """Tensors by ggml's names, in its layouts."""
    arch, model_type, _ = CASES[kind]
    config, found = model.config, {}
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        stem, _, last = name.rpartition(".")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts" in name:  # transformers 5 stacks experts, gate over up
            layer = f"blk.{name.split('.')[2]}.ffn"
            if last == "down_proj":
                found[f"{layer}_down_exps.weight"] = array
            else:
                for part, half in zip(("gate", "up"), np.split(array, 2, axis=1), strict=True):
                    found[f"{layer}_{part}_exps.weight"] = half
            continue
        if stem.endswith("mlp.gate") or stem.endswith("block_sparse_moe.gate"):
            ours = f"blk.{name.split('.')[2]}.ffn_gate_inp"
        else:
            ours = table.get_name(stem)
            assert ours is not None, name
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = permuted(array, heads)
        if "norm" in name and arch == "gemma":
            array = array + 1
        found[f"{ours}.{last}"] = array[0] if "shared_expert_gate" in name else array
    if kind.startswith("llama3"):
        found["rope_freqs.weight"] = llama3_divisors(config)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def llama3_divisors(config: Any) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    rope, dim = config.rope_parameters, config.head_dim
    freqs = 1.0 / (rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / dim))
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    out = []
    for freq in freqs:
        wave = 2 * np.pi / freq
        if wave < length / high:
            out.append(1.0)
        elif wave > length / low:
            out.append(factor)
        else:
            smooth = (length / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(out, np.float32)


def write(
    path: pathlib.Path,
    kind: str,
    model: Any,
    tensors: dict[str, np.ndarray],
    counts: dict[str, int] | None = None,
) -> None:
    arch, model_type, _ = CASES[kind]
    config = model.config
    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    rotated = int(head * (rope.get("partial_rotary_factor") or 1))
    writer.add_rope_dimension_count(rotated)
    if head * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    writer.add_expert_count(experts or 0)
    writer.add_expert_used_count(config.num_experts_per_tok if experts else 0)
    if "moe" in arch:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*(chr(33 + i) for i in range(63)), "!!"])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_string("mradermacher.quantized_by", "somebody")
    for key, value in (counts or {}).items():
        writer.add_uint16(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", CASES)
def test_files_of_llama_cpp_become_the_model_they_were(tmp_path, kind):
    model = model_of(kind)
    write(tmp_path / "x.gguf", kind, model, tensors_of(kind, model))
    done = convert(tmp_path / "x.gguf", tmp_path / "out", kind="gguf")
    assert done.report.passed and done.family.hf_type == CASES[kind][1]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert again.generation_config.eos_token_id == [2, 5]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=3e-7, rtol=0, msg=name)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 64, (1, 700)))
    with torch.no_grad():
        ours, theirs = (m(tokens).logits for m in (again, model))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_parts_are_one_model(tmp_path):
    """As gguf-split writes them: metadata in the first, split.* in all."""
    model = model_of("llama3")
    tensors = list(tensors_of("llama3", model).items())
    write(tmp_path / "whole.gguf", "llama3", model, dict(tensors))
    whole = GgufReader(tmp_path / "whole.gguf")
    pieces = [tensors[:5], tensors[5:9], tensors[9:]]
    for i, piece in enumerate(pieces):
        path = tmp_path / f"m-{i + 1:05d}-of-00003.gguf"
        if i == 0:
            counts = {"split.no": 0, "split.count": 3, "split.tensors.count": len(tensors)}
            write(path, "llama3", model, dict(piece), counts)
            continue
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in (("no", i), ("count", 3), ("tensors.count", len(tensors))):
            writer.add_uint16(f"split.{key}", value)
        for name, array in piece:
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for given in (1, 3):
        found = GgufReader(tmp_path / f"m-{given:05d}-of-00003.gguf")
        assert found.config == whole.config and set(found.names()) == set(whole.names())
        for name in whole.names():
            np.testing.assert_array_equal(found.read(name), whole.read(name))
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match="part 2 of 3 is missing: m-00002-of-00003.gguf"):
        GgufReader(tmp_path / "m-00001-of-00003.gguf")
