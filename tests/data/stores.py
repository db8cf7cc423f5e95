"""Small stores and corpora for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5x_llm.data.store import FORMAT, SPLITS, ArrayWriter, TokenStore


def make_store(
    path: Path,
    documents: Sequence[Sequence[int]],
    *,
    masks: Sequence[Sequence[int]] | None = None,
    scores: Sequence[float] | None = None,
    dtype: str = "uint16",
) -> TokenStore:
    """A store of these training documents, written without ``prepare``."""
    lengths = [len(d) for d in documents]
    flat = [t for d in documents for t in d]
    for split in SPLITS:
        mine = split == "train"
        arrays = {
            "tokens": np.array(flat if mine else [], dtype),
            "offsets": np.cumsum([0] + (lengths if mine else [])).astype(np.int64),
            "bytes": np.array([3 * n for n in lengths] if mine else [], np.int64),
            "file": np.zeros(len(lengths) if mine else 0, np.int32),
            "line": np.arange(1, len(lengths) + 1 if mine else 1, dtype=np.int64),
        }
        if scores is not None:
            arrays["score"] = np.array(scores if mine else [], np.float32)
        if masks is not None:
            arrays["mask"] = np.array([m for d in masks for m in d] if mine else [], np.uint8)
        for name, values in arrays.items():
            writer = ArrayWriter(f"{path}/{split}/{name}", values.dtype, len(values))
            writer.write(values)
            writer.close()
    manifest = {
        "format": FORMAT,
        "source": path.name,
        "fingerprint": f"{path.name}-{hash(tuple(flat))}",
        "tokenizer_fingerprint": "t" * 64,
        "masked": masks is not None,
        "splits": {
            "train": {"documents": len(lengths), "tokens": len(flat), "bytes": 3 * len(flat)},
            "validation": {"documents": 0, "tokens": 0, "bytes": 0},
        },
        "files": [f"{path.name}.jsonl"],
    }
    if scores is not None:
        manifest["scored"] = True
    (path / "manifest.json").write_text(json.dumps(manifest))
    return TokenStore.open(str(path))


def random_documents(rng: np.random.Generator, count: int, longest: int) -> list[list[int]]:
    """Documents [1, ids..., 2] of 2 to ``longest`` tokens."""
    sizes = rng.integers(0, longest - 1, count)
    return [[1, *rng.integers(3, 60, n).tolist(), 2] for n in sizes]


def write_jsonl(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    """One object a line."""
    lines = [json.dumps({"id": i, field: t}, ensure_ascii=False) for i, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
