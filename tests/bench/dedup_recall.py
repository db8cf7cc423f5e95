"""Near copies found, of those that are there: ours beside datatrove's at equal settings.

    python tests/bench/dedup_recall.py

Pieces of the shipped text, English and Chinese, and copies of them with more and more words
replaced. Truth is brute force: the Jaccard similarity of the sets of 5-grams of every two texts,
words by a regular expression. For each threshold bands and rows are ours for 95% recall, and
datatrove gets the same. Found are two texts in one cluster. Prints a table and fails if ours is
worse.
"""

import dataclasses
import itertools
import json
import pathlib
import random
import re
import struct
import sys
import tempfile
import time
from unittest import mock

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import minhash as datatrove_minhash
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from t5x_llm.data.clean.dedup import keys, minhash
from t5x_llm.data.clean.dedup.clusters import clusters
from t5x_llm.data.clean.dedup.dedup_config import MinHash

ROOT = pathlib.Path(__file__).parents[2]
WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")
NGRAM = 5


class Plain(WordTokenizer):
    """The words of the regular expression, for datatrove: its own need spaCy."""

    def word_tokenize(self, text):
        return WORD.findall(text)

    def sent_tokenize(self, text):
        return [text]

    def span_tokenize(self, text):
        return [(0, len(text))]


def texts_of(language, groups, seed=0):
    """Originals of 60 to 400 words and seven copies of each, more and more replaced."""
    rng = random.Random(seed)
    name = "en_sotu" if language == "en" else "zh_manpages"
    raw = (ROOT / f"data/quickstart/{name}.jsonl").read_text(encoding="utf-8")
    every = [w for line in raw.splitlines() for w in WORD.findall(json.loads(line)["text"].lower())]
    if language == "zh":
        every = [w for w in every if "\u4e00" <= w <= "\u9fff"]
    glue, texts, at = " " if language == "en" else "", [], 0
    for _ in range(groups):
        size = rng.randint(60, 400)
        original = every[at : at + size]
        at += size
        texts.append(glue.join(original))
        for rate in (0.003, 0.007, 0.012, 0.02, 0.03, 0.045, 0.08):
            copy = [rng.choice(every) if rng.random() < rate else w for w in original]
            texts.append(glue.join(copy))
    return texts


def similarities(texts):
    """Of every two texts that share an n-gram, by brute force."""
    grams, where = [], {}
    for number, text in enumerate(texts):
        listed = WORD.findall(text.lower())
        found = {tuple(listed[i : i + NGRAM]) for i in range(len(listed) - NGRAM + 1)}
        grams.append(found)
        for gram in found:
            where.setdefault(gram, []).append(number)
    pairs = {p for held in where.values() for p in itertools.combinations(held, 2)}
    return {(a, b): len(grams[a] & grams[b]) / len(grams[a] | grams[b]) for a, b in pairs}


def joined(labels):
    """Every two texts in one cluster."""
    held = {}
    for number, label in enumerate(labels):
        held.setdefault(label, []).append(number)
    return {p for group in held.values() for p in itertools.combinations(group, 2)}


def ours(texts, config):
    """Clusters, and seconds for the signatures."""
    begin = time.process_time()
    signatures = [minhash.signature(minhash.shingles(t, config), config) for t in texts]
    seconds = time.process_time() - begin
    signatures = np.array(signatures)
    high, low = minhash.band_keys(signatures, config)
    stored = np.zeros(high.size, keys.STORED)
    stored["high"], stored["low"] = high.ravel(), low.ravel()
    stored["unit"] = np.repeat(np.arange(len(texts)), config.shape[0])
    stored = keys.sort(stored)
    least = config.least_agreement

    def alike(pairs):
        one, other = (signatures[stored["unit"][pairs[:, i]]] for i in (0, 1))
        return minhash.agreement(one, other) >= least

    pairs, _ = keys.stars(stored, alike if config.verify else None)
    return joined(clusters(len(texts), [stored["unit"][pairs]]).tolist()), seconds


def theirs(texts, config):
    """The same by datatrove."""
    bands, rows = config.shape
    settings = MinhashConfig(
        n_grams=NGRAM,
        num_buckets=bands,
        hashes_per_bucket=rows,
        hash_config=HashConfig(hash_fc="sha1"),
        norm_config=TextNormConfig(norm_numbers=False, norm_unicode_diacritics=False),
    )
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(datatrove_minhash, "load_word_tokenizer", lambda _: Plain()):
            step = MinhashDedupSignature(f"{folder}/sigs", settings)
        begin = time.process_time()
        step.run((Document(text=t, id=str(i)) for i, t in enumerate(texts)), 0, 1)
        seconds = time.process_time() - begin
        for bucket in range(bands):
            buckets = MinhashDedupBuckets(f"{folder}/sigs", f"{folder}/dups", config=settings)
            buckets.run(None, bucket, bands)
        pairs = []
        for path in pathlib.Path(folder, "dups").iterdir():
            pairs += [(a, b) for _, a, _, b in struct.iter_unpack("<4I", path.read_bytes())]
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    return joined(clusters(len(texts), [edges]).tolist()), seconds


def main():
    """Prints the table; the status says whether ours is worse anywhere by more than chance."""
    worse = False
    print("language threshold bands x rows  who        recall  precision  (>= t - 0.1)  MB/s")
    for language in ("en", "zh"):
        texts = texts_of(language, 400)
        size = sum(len(t.encode()) for t in texts) / 1e6
        truth = similarities(texts)
        for threshold in (0.7, 0.8, 0.9):
            config = MinHash(threshold=threshold, recall=0.95, verify=False)
            checked = dataclasses.replace(config, verify=True)
            wanted = {p for p, s in truth.items() if s >= threshold}
            figures = {}
            for who, (found, seconds) in (
                ("ours", ours(texts, config)),
                ("ours, verified", ours(texts, checked)),
                ("datatrove", theirs(texts, config)),
            ):
                recall = len(found & wanted) / len(wanted)
                precision = len(found & wanted) / len(found)
                loose = sum(truth.get(p, 0) >= threshold - 0.1 for p in found) / len(found)
                figures[who] = recall, precision
                print(
                    f"{language:8} {threshold:9} {config.shape[0]:5} x {config.shape[1]:<2}     "
                    f"{who:14} {recall:.4f} {precision:9.4f} {loose:11.4f} {size / seconds:9.1f}"
                )
            # Two draws of the same hashing differ by chance: a pair of standard errors.
            slack = 2 * (0.05 * 0.95 / len(wanted)) ** 0.5
            worse |= figures["ours"][0] < figures["datatrove"][0] - slack
            worse |= figures["ours"][1] < figures["datatrove"][1] - 0.02
    sys.exit(int(worse))


if __name__ == "__main__":
    main()
