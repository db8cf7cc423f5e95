"""GGUF files byte by byte, sound ones and others."""

from __future__ import annotations

import struct

_CODES = {0: "B", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q"}

# A model of one layer that takes 8 kB.
FIELDS = {
    "general.architecture": (8, "llama"),
    "llama.context_length": (4, 64),
    "llama.embedding_length": (4, 32),
    "llama.block_count": (4, 1),
    "llama.feed_forward_length": (4, 8),
    "llama.attention.head_count": (4, 2),
    "llama.attention.layer_norm_rms_epsilon": (6, 1e-5),
    "llama.vocab_size": (4, 16),
}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    if kind == 8:
        return text(content)
    if kind == 9:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, x) for x in items)
    return struct.pack("<" + _CODES[kind], content)


def field(key, kind, content):
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def description(name, kind, dims, offset):
    head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return head + struct.pack("<IQ", kind, offset)


def header(fields, n_tensors, *, n_fields=None, version=3, magic=b"GGUF"):
    n_fields = len(fields) if n_fields is None else n_fields
    out = magic + struct.pack("<IQQ", version, n_tensors, n_fields)
    return out + b"".join(field(k, *v) for k, v in fields.items())


def gguf(fields, tensors):
    """Tensors: {name: (type, ggml's dims, bytes)}."""
    head, data = header(fields, len(tensors)), b""
    for name, (kind, dims, content) in tensors.items():
        head += description(name, kind, dims, len(data))
        data += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def write_gguf(path, fields, tensors):
    path.write_bytes(gguf(fields, tensors))
