"""The tokenizer that needs no training: a token for each byte, and one that ends a document."""

from __future__ import annotations

import functools
import json

from t5x_llm.text.hf_json import HFTokenizer

BYTES = "bytes"  # its name, where the path of a tokenizer is asked for
END = "<|endoftext|>"


@functools.cache
def letters() -> dict[str, int]:
    """The letters that tokenizer.json's byte-level parts write bytes as, to the bytes.

    Printable bytes stand for themselves; the others follow from U+0100 on, in order (Radford et
    al. 2019).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    other = (chr(256 + i) for i in range(256))
    return {chr(b) if b in printable else next(other): b for b in range(256)}


def byte_tokenizer() -> HFTokenizer:
    """Ids 0 to 255 are bytes of UTF-8, 256 ends a document and pads; nothing begins one."""
    plain = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 256,
                "content": END,
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
        ],
        "pre_tokenizer": {"type": "ByteLevel", **plain},
        "decoder": {"type": "ByteLevel", **plain},
        "model": {"type": "BPE", "vocab": letters(), "merges": []},
    }
    names = json.dumps({"eos_token": END, "pad_token": END}).encode()
    return HFTokenizer(
        json.dumps(content).encode(), f"tokenizer {BYTES!r}", {"special_tokens_map.json": names}
    )
