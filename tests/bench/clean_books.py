"""False drops of clean documents: books, manuals and help pages as Debian packages have them.

  mkdir /tmp/books && cd /tmp/books
  apt-get download anarchism debian-reference-en debian-reference-zh-cn libreoffice-help-zh-cn
  for f in *.deb; do dpkg -x "$f" "${f%%_*}"; done
  .venv/bin/python tests/bench/clean_books.py en /tmp/books/anarchism /tmp/books/debian-reference-en
  .venv/bin/python tests/bench/clean_books.py zh /tmp/books/libreoffice-help-zh-cn \\
    /tmp/books/debian-reference-zh-cn

Documents are read as ``t5x-llm data clean`` reads them and pass the steps of the shipped gin file
of their language; copies are not looked for. A document is clean by a rule that no step has: seven
characters in ten stand in paragraphs of prose (English: 10 words and more, letters and blanks
to 85%; Chinese: 12 Han and more, half of the paragraph), no table, with the end of a sentence in
them; no more than one in ten stands in a sentence that was there before; 100 words, or 60 Han.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator

from t5x_llm.cli.data_clean import load_clean
from t5x_llm.config import parse_flags
from t5x_llm.data.clean.clean_config import Input, Limits
from t5x_llm.data.clean.document import Document, Drop
from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.clean.read.files import find_files
from t5x_llm.data.clean.read.formats import check_head, format_of
from t5x_llm.data.clean.read.records import Bad, read
from t5x_llm.data.clean.wrapping import join_wrapped
from t5x_llm.data.formats import read_head
from t5x_llm.data.reading import Stretch

CONFIGS = {"en": "configs/data/clean_english.gin", "zh": "configs/data/clean_chinese.gin"}
HAN = re.compile("[\u4e00-\u9fff]")
END = re.compile(r"[.!?。！？：:；;](?:\W|$)")
SENTENCE = re.compile(r"(?<=[。！？；.!?])|\n")


def documents(places: list[str]) -> Iterator[Document]:
    source = Input("books", tuple(places))
    for file in find_files(source)[0]:
        try:
            with open(file.path, "rb") as opened:
                head, content = read_head(opened, file.path)
            kind = format_of(source, file.path, content)
            check_head(head, kind)
        except (QuarantineError, OSError):
            continue
        stretch = Stretch(0, file.path, 0, file.size, 1)
        for found in read(source, Limits(), stretch, file.name, kind):
            if not isinstance(found, Bad):
                yield found


def is_clean(text: str, language: str) -> bool:
    lines = [line.strip() for line in join_wrapped(text).split("\n") if line.strip()]
    prose = sum(len(line) for line in lines if is_prose(line, language))
    said = [each.strip() for each in SENTENCE.split(text) if len(each.strip()) >= 8]
    again = sum(map(len, said)) - sum(map(len, set(said)))
    size = len(HAN.findall(text)) if language == "zh" else len(text.split())
    return (
        prose >= 0.7 * sum(map(len, lines))
        and again <= 0.1 * len(text)
        and size >= (60 if language == "zh" else 100)
    )


def is_prose(line: str, language: str) -> bool:
    if line.startswith("|") or not END.search(line):
        return False
    if language == "zh":
        return len(HAN.findall(line)) >= max(12, len(line) / 2)
    letters = sum(c.isalpha() or c == " " for c in line)
    return len(line.split()) >= 10 and letters >= 0.85 * len(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("language", choices=CONFIGS)
    parser.add_argument("places", nargs="+")
    args = parser.parse_args()
    clean, _ = load_clean(parse_flags([f"--gin_file={CONFIGS[args.language]}"]))
    steps = [(step.name, step.open()) for step in clean.steps]
    counts, reasons, empty = Counter(), Counter(), 0
    for document in documents(args.places):
        counts["read"] += 1
        empty += document.text.count("「」")
        judged = is_clean(document.text, args.language)
        counts["clean"] += judged
        for name, step in steps:
            answer = step(document)
            if isinstance(answer, Drop):
                counts["dropped"] += judged
                counts["dropped in all"] += 1
                if judged:
                    reasons[f"{name}: {answer.reason}"] += 1
                    print(f"dropped: {document.id}: {name}: {answer.reason} {answer.detail}")
                break
            document = answer
    print(f"{counts['read']} documents, {counts['dropped in all']} dropped; empty brackets {empty}")
    print(f"{counts['clean']} clean, {counts['dropped']} of them dropped: "
          f"{counts['dropped'] / max(1, counts['clean']):.2%} {dict(reasons)}")  # fmt: skip


if __name__ == "__main__":
    main()
