"""KenLM reads and scores what ``train_language_model`` writes.

Run where kenlm is installed, for instance:
  python -m venv /tmp/kenlm && /tmp/kenlm/bin/pip install kenlm etils[epath]
  PYTHONPATH=. /tmp/kenlm/bin/python tests/bench/clean_kenlm.py
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path

import kenlm

from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.perplexity import Perplexity, train_language_model

DATA = Path(__file__).parents[2] / "data" / "quickstart"


def main() -> None:
    for language, name in (("en", "en_sotu"), ("zh", "zh_poetry")):
        with open(DATA / f"{name}.jsonl", encoding="utf-8") as file:
            texts = [json.loads(line)["text"][:1500] for line in file]
        random.Random(0).shuffle(texts)
        held, train = texts[:100], texts[100:]
        with tempfile.TemporaryDirectory() as scratch:
            path = f"{scratch}/{language}.arpa"
            begin = time.monotonic()
            count = train_language_model(train, path, language)
            seconds = time.monotonic() - begin
            size = sum(len(t.encode()) for t in train) / 1e6
            print(f"{language}: {count:,} n-grams of {size:.1f} MB in {seconds:.0f} s")
            print(f"  sums of probabilities {sums(kenlm.Model(path), path)}")
            judge(path, language, held)


def sums(model: kenlm.Model, path: str) -> list[float]:
    """Of all words after some histories, as KenLM has them: 1 each."""
    words = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("\\2-grams"):
                break
            parts = line.split("\t")
            if len(parts) > 1 and parts[1].strip() != "<s>":
                words.append(parts[1].strip())
    found = []
    for history in ([], words[:1], words[5:7], ["of", "the"]):
        state = kenlm.State()
        model.NullContextWrite(state)
        for word in history:
            after = kenlm.State()
            model.BaseScore(state, word, after)
            state = after
        after = kenlm.State()
        found.append(round(sum(10 ** model.BaseScore(state, w, after) for w in words), 6))
    return found


def judge(path: str, language: str, held: list[str]) -> None:
    """Perplexity of held-out texts and of the same with their words shuffled."""
    rng = random.Random(0)
    gap = "" if language == "zh" else " "
    parts = [list(t) if language == "zh" else t.split() for t in held]
    shuffled = [gap.join(rng.sample(p, len(p))) for p in parts]
    step = Perplexity(path, language, most=1e9).open()

    def scores(texts: list[str]) -> list[float]:
        return [step(Document("a", t)).meta["perplexity"] for t in texts]

    begin = time.process_time()
    good, bad = scores(held), scores(shuffled)
    speed = 2 * sum(len(t.encode()) for t in held) / 1e6 / (time.process_time() - begin)
    most = sorted(good)[95]  # keeps 95% of held-out text
    cut = Perplexity(path, language, most=most).open()
    caught = sum(isinstance(cut(Document("a", t)), Drop) for t in shuffled)
    print(
        f"  perplexity: held out {sorted(good)[50]:.0f}, shuffled {sorted(bad)[50]:.0f} (medians); "
        f"at {most:.0f}, {caught} of {len(shuffled)} shuffled texts are dropped; {speed:.1f} MB/s"
    )


if __name__ == "__main__":
    main()
