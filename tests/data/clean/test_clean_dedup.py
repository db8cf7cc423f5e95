"""Repeats against brute force: keys, pairs, clusters, MinHash, lines, suffixes."""

import collections
import difflib
import itertools
import math
import random
import re
from typing import NamedTuple

import numpy as np
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.data.clean.dedup import exact, keys, minhash
from t5x_llm.data.clean.dedup.clusters import clusters
from t5x_llm.data.clean.dedup.dedup_config import MinHash, Repeats
from t5x_llm.data.clean.dedup.suffix import without_repeats
from t5x_llm.data.clean.hashing import ngrams, text_key, words


def plain_words(text):
    """What ``words`` should find, by a regular expression."""
    return re.findall(
        r"[\u4e00-\u9fff\u3041-\u312f]|[^\W_\u4e00-\u9fff\u3041-\u312f]+", text.lower()
    )


@pytest.mark.parametrize(
    "text",
    ["", "  !? ", "One, two; ONE two.", "混合 mixed 文本2024年，带 标点。", "naïve café, a_b",
     "a" * 300 + " b" + "a" * 300, "かなカナ漢字", " ".join(f"w{i % 91}" for i in range(40_000))],
)  # fmt: skip
def test_words_are_those_of_a_regular_expression(text):
    hashes, starts, ends = words(text)
    lowered = text.lower()
    found = [lowered[a:b] for a, b in zip(starts, ends, strict=True)]
    assert found == plain_words(text)
    # Equal words have equal hashes wherever they stand, others have others.
    by_word = collections.defaultdict(set)
    for word, value in zip(found, hashes.tolist(), strict=True):
        by_word[word[:256]].add(value)
    assert all(len(values) == 1 for values in by_word.values())
    assert len(set.union(set(), *by_word.values())) == len(by_word)


def test_ngrams_are_equal_when_their_words_are():
    text = " ".join(random.Random(1).choices("abc", k=300))
    listed = plain_words(text)
    for n in (1, 2, 5, 13):
        grams = ngrams(words(text)[0], n).tolist()
        expected = [tuple(listed[i : i + n]) for i in range(len(listed) - n + 1)]
        assert len(grams) == len(expected)
        pairs = set(zip(grams, expected, strict=True))
        assert len(pairs) == len({g for g, _ in pairs}) == len({e for _, e in pairs})
    assert len(ngrams(words("one two")[0], 5)) == 1


def test_the_key_of_a_text_minds_neither_case_nor_space_nor_width():
    assert text_key("Ａbc\n d") == text_key("abc  D ") != text_key("abcd")


class Files(NamedTuple):
    """The files of a run, as the context knows them."""

    parts: range
    bases: list
    outs: list

    def by_part(self, phase, suffix):
        return [base + suffix for base in self.bases]

    def by_partition(self, phase, suffix):
        return self.outs


def test_repeats_of_keys_in_many_parts(tmp_path):
    """External grouping against a dictionary, for any number of partitions and copies."""
    rng = random.Random(3)
    parts = [[rng.randrange(60) for _ in range(rng.randrange(80))] for _ in range(5)]
    for copies in (1, 3):
        seen, first, expected = collections.Counter(), {}, []
        for part, values in enumerate(parts):
            for unit, value in enumerate(values):
                seen[value] += 1
                first.setdefault(value, (part, unit))
                if seen[value] > copies:
                    expected.append((part, unit))
        paths = []
        for part, values in enumerate(parts):
            base = str(tmp_path / f"{copies}-{part}")
            digests = b"".join(text_key(str(v)) for v in values)
            exact.write_keys(digests, np.arange(len(values)), copies, base)
            paths.append(base + exact.KEYS)
        for count in (1, 4, 32):
            outs = [str(tmp_path / f"{i:04d}{exact.UNITS}") for i in range(count)]
            for partition, out in enumerate(outs):
                loaded = keys.load(paths, partition, count)
                keys.write_repeats(out, loaded, copies, len(parts))
            context = Files(range(len(parts)), [p[: -len(exact.KEYS)] for p in paths], outs)
            found = []
            for part, values in enumerate(parts):
                again = exact.repeated(context, part, "units", "repeats")
                found += [(part, unit) for unit in again["unit"].tolist()]
                for unit, *where in again.tolist():
                    where = tuple(where)
                    assert parts[where[0]][where[1]] == values[unit] and where < (part, unit)
                    assert copies > 1 or where == first[values[unit]]
            assert found == expected


def test_clusters_are_connected_components():
    rng = np.random.default_rng(0)
    for edges in (0, 40, 90, 400):
        pairs = rng.integers(0, 100, (edges, 2))
        label = list(range(100))
        for _ in range(100):
            for a, b in pairs.tolist():
                label[a] = label[b] = min(label[a], label[b])
        blocks = np.array_split(pairs, 3)
        assert clusters(100, blocks).tolist() == label
    chain = np.stack([np.arange(999, 0, -1), np.arange(998, -1, -1)], 1)
    assert not clusters(1000, [chain]).any()


def test_bands_and_rows_reach_the_stated_recall():
    for threshold, recall in itertools.product((0.5, 0.7, 0.8, 0.9), (0.8, 0.95, 0.99)):
        for verify in (False, True):
            config = MinHash(threshold=threshold, recall=recall, hashes=256, verify=verify)
            bands, rows = config.shape
            assert bands * rows <= 256
            assert config.found(threshold) >= recall - 1e-9
            # One row more within the same number of hashes would fall short.
            more = 256 // (rows + 1)
            wanted = recall / 0.99379 if verify else recall
            assert 1 - (1 - threshold ** (rows + 1)) ** more < wanted
    with pytest.raises(ConfigError, match="enough for recall"):
        MinHash(threshold=0.1, recall=0.99, hashes=4)
    with pytest.raises(ConfigError, match="both or neither"):
        MinHash(bands=4)


def near_copies(count, seed, alphabet):
    """Groups of texts: an original and copies with more and more words replaced."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        original = rng.choices(alphabet, k=rng.randint(60, 160))
        texts.append(original)
        for rate in (0.005, 0.015, 0.03, 0.06):
            texts.append([rng.choice(alphabet) if rng.random() < rate else w for w in original])
    return texts


@pytest.mark.parametrize("language", ["en", "zh"])
def test_minhash_finds_what_it_states(language):
    """Recall at 0.7, 0.8, 0.9 is the formula's; nothing unlike is joined."""
    if language == "en":
        alphabet, glue = [f"word{i}" for i in range(3000)], " "
    else:
        alphabet, glue = [chr(0x4E00 + i) for i in range(3000)], ""
    config = MinHash(bands=14, rows=8, verify=False)
    texts = [glue.join(words) for words in near_copies(150, 5, alphabet)]
    listed = [plain_words(t) for t in texts]
    grams = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in listed]
    signatures = [minhash.signature(minhash.shingles(t, config), config) for t in texts]
    high, low = minhash.band_keys(np.array(signatures), config)
    tables = collections.defaultdict(list)
    for number, (one, other) in enumerate(zip(high.tolist(), low.tolist(), strict=True)):
        for key in zip(one, other, strict=True):
            tables[key].append(number)
    met = {pair for held in tables.values() for pair in itertools.combinations(held, 2)}
    similarity = {
        (a, b): len(grams[a] & grams[b]) / len(grams[a] | grams[b])
        for a, b in itertools.combinations(range(len(texts)), 2)
        if b - a < 5
    }
    assert all(similarity.get(pair, 0) > 0.2 for pair in met)
    for low_end in (0.7, 0.8, 0.9):
        near = [p for p, s in similarity.items() if low_end <= s < low_end + 0.1]
        expected = sum(config.found(similarity[p]) for p in near)
        deviation = math.sqrt(sum(f * (1 - f) for f in (config.found(similarity[p]) for p in near)))
        assert len(near) > 30
        assert abs(sum(p in met for p in near) - expected) < 4 * deviation + 2
    for (a, b), s in list(similarity.items())[:200]:
        estimate = minhash.agreement(signatures[a][None], signatures[b][None])[0]
        assert abs(estimate - s) < 5 * math.sqrt(s * (1 - s) / 112) + 0.02


def test_stars_join_what_is_alike_in_a_bucket():
    stored = np.zeros(6, keys.STORED)
    stored["high"] = [1, 1, 1, 1, 2, 2]
    stored["unit"] = [0, 1, 2, 3, 4, 5]
    pairs, firsts = keys.stars(stored, None)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [4, 5]] and firsts.tolist() == [0, 4]
    # Even places are like even ones, odd like odd.
    pairs, firsts = keys.stars(stored, lambda p: (p[:, 0] + p[:, 1]) % 2 == 0)
    assert sorted(pairs.tolist()) == [[0, 2], [1, 3]] and firsts.tolist() == [0, 1, 4, 5]


def test_lines_and_paragraphs_that_repeat_are_cut():
    text = "A line to keep here\nshort\nA line to drop here\n\nlast one, to be kept"
    repeats = Repeats("line", shortest=10)
    assert exact.without(text, repeats, 0, np.array([False, True, False])) == (
        "A line to keep here\nshort\n\nlast one, to be kept", 3)  # fmt: skip
    assert exact.without(text, repeats, 5, np.zeros(8, bool)) == (text, 8)
    whole = Repeats("paragraph", shortest=10)
    cut, unit = exact.without(text, whole, 0, np.array([False, True]))
    assert cut == text.partition("\n\n")[0] and unit == 2
    assert "".join(p for p, _ in exact.pieces(text, whole)) == text


def brute_force(texts, length):
    """Bytes that lie in a stretch which stands earlier, by comparing every two places."""
    data = [t.encode() for t in texts]
    kept = []
    earlier = {}
    for number, raw in enumerate(data):
        gone = np.zeros(len(raw), bool)
        for i in range(len(raw) - length + 1):
            piece = raw[i : i + length]
            first = earlier.setdefault(piece, (number, i))
            if first != (number, i):
                begin = i if first[0] != number else max(i, first[1] + length)
                gone[begin : i + length] = True
        kept.append(gone)
    return kept


def test_long_repeats_are_those_of_brute_force():
    rng = random.Random(2)
    shared = ["".join(rng.choices("abcd ", k=40)) for _ in range(4)] + [
        "中文" * 9 + "汉字很长的重复"
    ]
    texts = []
    for _ in range(40):
        noise = ["".join(rng.choices("efgh 是", k=rng.randint(5, 60))) for _ in range(3)]
        texts.append(noise[0] + rng.choice(shared) + noise[1] + rng.choice(shared) + noise[2])
    texts += ["", "x" * 200, "short"]
    for length in (16, 30):
        found = without_repeats(texts, length)
        for text, got, gone in zip(texts, found, brute_force(texts, length), strict=True):
            raw, at, expected = text.encode(), 0, []
            for character in text:
                size = len(character.encode())
                if not gone[at : at + size].all():
                    expected.append(character)
                at += size
            assert got == "".join(expected), difflib.ndiff([text], [got])
            assert at == len(raw)
    assert without_repeats(["nothing repeats", "in these two"], 10) == [
        "nothing repeats", "in these two"]  # fmt: skip
