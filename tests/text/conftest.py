"""Small tokenizers trained on a slice of the shipped text, once a session."""

import json
from pathlib import Path

import pytest

from t5x_llm.text import TokenizerTraining, train_tokenizer

DATA = Path(__file__).parents[2] / "data" / "quickstart"


def shipped(count: int = 60) -> list[str]:
    texts = []
    for path in sorted(DATA.glob("*.jsonl")):
        lines = path.read_text("utf-8").split("\n")[:count]
        texts += [json.loads(line)["text"] for line in lines]
    return texts


@pytest.fixture(scope="session")
def texts():
    return shipped()


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def trained(request, texts, tmp_path_factory):
    """(tokenizer, directory) of each kind."""
    directory = tmp_path_factory.mktemp(request.param)
    config = TokenizerTraining(vocab_size=4096, kind=request.param, sample_bytes=500_000)
    return train_tokenizer(config, texts, directory, progress=False), directory
