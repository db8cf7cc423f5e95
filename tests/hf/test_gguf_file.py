"""GGUF: what is written is read; what a file claims and does not hold is refused."""

from __future__ import annotations

import resource
import struct

import ggufs
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from ggufs import FIELDS, description, gguf, header, text, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_llm.core.errors import CheckpointError, ConfigError, T5xLLMError
from t5x_llm.hf.gguf_architectures import ARCHITECTURES
from t5x_llm.hf.gguf_file import GgufFile
from t5x_llm.hf.gguf_io import GgufReader
from t5x_llm.hf.source import open_source

F32, F16, Q8, BF16 = 0, 1, 8, 30


def test_fields_and_plain_tensors(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=(2, 3, 5)).astype(np.float16),
        "c": rng.normal(size=7).astype(ml_dtypes.bfloat16),
    }
    kinds = {"a": F32, "b": F16, "c": BF16}
    fields = {
        "s": (8, "春眠"),
        "list": (9, (8, ["x", "", "yz"])),
        "numbers": (9, (5, [1, -2, 3])),
        "flag": (7, True),
        "big": (10, 2**63),
    }
    tensors = {k: (kinds[k], a.shape[::-1], a.tobytes()) for k, a in arrays.items()}
    write_gguf(tmp_path / "x.gguf", fields, tensors)
    file = GgufFile(tmp_path / "x.gguf")
    assert file.fields["s"] == "春眠" and file.fields["list"] == ["x", "", "yz"]
    assert file.fields["numbers"].tolist() == [1, -2, 3]
    assert file.fields["flag"] is True and file.fields["big"] == 2**63
    for name, array in arrays.items():
        found = file.read(name)
        assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


def spoilt(**change):
    """A file of one tensor [2, 32] with something changed."""
    size = {k: change.pop(k) for k in ("n_fields", "version", "magic") if k in change}
    fields = change.pop("fields", {"general.alignment": (4, 32)})
    told = {"name": "t", "kind": F32, "dims": (32, 2), "offset": 0} | change
    head = header(fields, change.pop("n_tensors", 1), **size)
    head += description(told["name"], told["kind"], told["dims"], told["offset"])
    return head + b"\0" * (-len(head) % 32 + 256)


MALFORMED = {
    "too short": b"GGUF",
    "begins with": spoilt(magic=b"GGML"),
    "version 1": spoilt(version=1),
    "little-endian": spoilt(version=3 << 24),
    "tensors and .* keys in": spoilt(n_fields=2**60),
    "4 dimensions|allows 4": spoilt(dims=(1,) * 5),
    "has type 200.*Q1_0": spoilt(kind=200),
    "would need": spoilt(dims=(2**40, 2**20)),
    "would need .*bytes; the": spoilt(dims=(2**63, 2**63, 2**63, 4)),
    "Q4_0_4_4.*removed": spoilt(kind=31),
    "do not divide into Q8_0": spoilt(kind=Q8, dims=(33, 1)),
    "truncated: tensor t": spoilt(offset=1 << 50),
    "general.alignment": spoilt(fields={"general.alignment": (4, 0)}),
    "is 'x'": spoilt(fields={"general.alignment": (8, "x")}),
    "a key of": header({}, 0, n_fields=1) + struct.pack("<Q", 2**62) + b"\0" * 64,
    "the type of 'k'": header({}, 0, n_fields=1) + text("k" + "k" * 0) + b"\0\0",
    "claims 4611686018427387904 items": header({}, 0, n_fields=1)
    + text("k")
    + struct.pack("<IIQ", 9, 4, 2**62)
    + b"\0" * 64,
    "array of type 9": header({}, 0, n_fields=1)
    + text("k")
    + struct.pack("<IIQ", 9, 9, 1)
    + b"\0" * 64,
    "unknown type 77": header({}, 0, n_fields=1) + text("k") + struct.pack("<I", 77) + b"\0" * 64,
    "truth value": header({}, 0, n_fields=1) + text("k") + struct.pack("<IB", 7, 2) + b"\0" * 64,
    "occurs twice": header({}, 0, n_fields=2) + ggufs.field("k", 4, 1) * 2 + b"\0" * 64,
    "tensor t occurs twice": header({}, 2) + description("t", F32, (0,), 0) * 2 + b"\0" * 64,
    "overlaps t": header({}, 2)
    + description("t", F32, (8,), 0)
    + description("u", F32, (8,), 16)
    + b"\0" * 256,
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_files(tmp_path, message):
    (tmp_path / "x.gguf").write_bytes(MALFORMED[message])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as e:
        GgufFile(tmp_path / "x.gguf")
    assert "x.gguf" in str(e.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_bytes_changed_at_random_end_in_our_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / "x.gguf"
    tensors = {
        "output_norm.weight": (F32, (8,), b"\1" * 32),
        "output.weight": (F16, (4, 2), b"12" * 8),
    }
    content = bytearray(gguf(FIELDS | {"tokenizer.ggml.tokens": (9, (8, ["a", "b"]))}, tensors))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))]))
    try:
        reader = GgufReader(path)
        for name in reader.names():
            assert reader.read(name).nbytes <= 4 * path.stat().st_size
    except T5xLLMError:
        pass


def test_other_architectures_are_refused_by_name(tmp_path):
    write_gguf(tmp_path / "x.gguf", {"general.architecture": (8, "mamba")}, {})
    with pytest.raises(ConfigError, match="'mamba'.*llama.*docs/models.md") as e:
        GgufReader(tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="a Hugging Face directory"):
        open_source(tmp_path / "x.gguf", "hf")
    with pytest.raises(ConfigError, match="a .gguf file"):
        open_source(tmp_path, "gguf")
    assert "Did you mean" not in str(e.value) and all(
        name in str(e.value) for name in ARCHITECTURES
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.attention.head_count", (4, 0), "wrong types"),
        ("llama.attention.head_count", (8, "two"), "wrong types"),
        ("llama.attention.head_count", (9, (4, [2, 1])), "2 values.*one for all layers"),
        ("llama.expert_count", (4, 8), "lacks llama.expert_used_count"),
        ("llama.rope.scaling.type", (8, "martian"), "rope.scaling.type"),
        ("llama.mystery", (4, 1), "llama.mystery"),
        ("adapter.type", (8, "lora"), "adapter.type"),
        ("general.type", (8, "mmproj"), "general.type"),
    ],
)
def test_metadata_that_is_not_understood(tmp_path, key, value, message):
    write_gguf(tmp_path / "x.gguf", FIELDS | {key: value}, {})
    with pytest.raises(T5xLLMError, match=message):
        GgufReader(tmp_path / "x.gguf")


def test_a_sentencepiece_tokenizer_keeps_its_ids(tmp_path):
    """llama.cpp stores pieces, scores and types; made into a model again, it encodes alike."""
    from t5x_llm.text import TokenizerTraining, train_tokenizer
    from t5x_llm.text.sentencepiece import parse

    texts = ["The cat sat on the mat. " * 20, "春眠不觉晓，处处闻啼鸟。" * 20]
    ours = train_tokenizer(TokenizerTraining(vocab_size=320), texts, tmp_path / "t.model")
    model = tmp_path / "t.model" / "tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    spec = parse(model.read_bytes(), "it").normalizer_spec
    n, kinds = theirs.vocab_size(), []
    for i in range(n):
        control, unknown, byte = theirs.is_control(i), theirs.is_unknown(i), theirs.is_byte(i)
        kinds.append(3 if control else 2 if unknown else 6 if byte else 1)
    fields = FIELDS | {
        "tokenizer.ggml.model": (8, "llama"),
        "tokenizer.ggml.tokens": (9, (8, [theirs.id_to_piece(i) for i in range(n)])),
        "tokenizer.ggml.scores": (9, (6, [theirs.get_score(i) for i in range(n)])),
        "tokenizer.ggml.token_type": (9, (5, kinds)),
        "tokenizer.ggml.bos_token_id": (4, theirs.bos_id()),
        "tokenizer.ggml.eos_token_id": (4, theirs.eos_id()),
        "tokenizer.ggml.unknown_token_id": (4, theirs.unk_id()),
        "tokenizer.ggml.add_space_prefix": (7, spec.add_dummy_prefix),
    }
    write_gguf(tmp_path / "x.gguf", fields, {})
    found = open_source(tmp_path / "x.gguf").tokenizer()
    assert (found.bos_id, found.eos_id, found.vocab_size) == (ours.bos_id, ours.eos_id, n)
    for sentence in ("The cat sat", "春眠不觉晓 on the mat", "🎉 unseen"):
        assert found.encode(sentence) == ours.encode(sentence)
        assert found.decode(found.encode(sentence)) == sentence
    write_gguf(tmp_path / "y.gguf", fields | {"tokenizer.ggml.bos_token_id": (4, 10**6)}, {})
    with pytest.raises(CheckpointError, match="bos_token_id = 1000000 is no token"):
        open_source(tmp_path / "y.gguf").tokenizer()


def test_a_byte_level_tokenizer(tmp_path):
    tokens = [*(chr(33 + i) for i in range(62)), "!!", "<|end|>"]
    fields = FIELDS | {
        "tokenizer.ggml.model": (8, "gpt2"),
        "tokenizer.ggml.pre": (8, "smollm"),
        "tokenizer.ggml.tokens": (9, (8, tokens)),
        "tokenizer.ggml.token_type": (9, (5, [1] * 63 + [3])),
        "tokenizer.ggml.merges": (9, (8, ["! !"])),
        "tokenizer.ggml.eos_token_id": (4, 63),
    }
    write_gguf(tmp_path / "x.gguf", fields, {})
    found = open_source(tmp_path / "x.gguf").tokenizer()
    assert found.encode("!!A") == [62, 32] and found.eos_id == 63
