"""Held-out loss of a model before and after growth, at step 0, by how its new rows begin.

    python tests/bench/new_rows.py models/base grown/subpieces grown/random \
      --text data/quickstart/en_sotu.jsonl data/quickstart/zh_manpages.jsonl

Directories are Hugging Face's, each read with its own tokenizer; of every text the same documents
are read, each to its first --characters. Bits per byte compare across tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from typing import Any

import numpy as np

from t5x_llm.core.dtypes import Policy
from t5x_llm.evaluate.perplexity import windows
from t5x_llm.hf.import_ import import_model
from t5x_llm.infer.score import score
from t5x_llm.models.model import Model


def documents(path: str, count: int, characters: int) -> list[str]:
    """The last documents of a jsonl file, each cut to its first characters."""
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"][:characters] for line in lines[-count:]]


def measure(imported: Any, texts: list[str], length: int) -> tuple[float, float]:
    """(nats per token, bits per byte) of texts."""
    model = Model(imported.family.decoder(), Policy(compute="float32"))
    asked = []
    for text in texts:
        ids = np.asarray([imported.tokenizer.bos_id, *imported.tokenizer.encode(text)], np.int32)
        asked += windows(ids, length)
    scores = score(model, imported.params, asked, length=length)
    total = -sum(one.total for one in scores)
    tokens = sum(len(one.log_probs) for one in scores)
    size = sum(len(text.encode()) for text in texts)
    return total / tokens, total / math.log(2) / size


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", help="the old one first")
    parser.add_argument("--text", nargs="+", required=True, help="jsonl files")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--characters", type=int, default=400, help="of a document")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    args = parser.parse_args()
    print(f"{'model':<32} {'text':<16} {'nats/token':>10} {'bits/byte':>10}")
    for path in args.models:
        imported = import_model(path, check=False)
        for text in args.text:
            loss, bits = measure(
                imported, documents(text, args.documents, args.characters), args.length
            )
            name = pathlib.Path(text).stem
            print(f"{path[-32:]:<32} {name:<16} {loss:>10.5f} {bits:>10.5f}", flush=True)


if __name__ == "__main__":
    main()
