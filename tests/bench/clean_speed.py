"""MB/s of one core: our steps beside datatrove's pipeline of the same filters, turn by turn.

  .venv/bin/python tests/bench/clean_speed.py

Both run the same rules with the same thresholds on the same documents, and keep the same ones. In
datatrove's pipeline words are found as ours are, since its own way (spaCy) is slower and is not
installed; `--spacy`, in an environment that has spaCy and datatrove, takes datatrove as it comes.
Turns alternate, so that what else the machine does falls on both; times are of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from datatrove.data import Document as Theirs
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from loguru import logger

from t5x_llm.data.clean.chinese import ChineseFineWeb, ChineseQuality, ChineseRepetition
from t5x_llm.data.clean.document import Document
from t5x_llm.data.clean.encoding import FixEncoding
from t5x_llm.data.clean.pii import MaskPii
from t5x_llm.data.clean.quality import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from t5x_llm.data.clean.splitting import splitter
from t5x_llm.data.clean.steps import STEPS
from t5x_llm.data.clean.tally import Chain, Tally

DATA = Path(__file__).parents[2] / "data" / "quickstart"


def texts(name: str) -> list[str]:
    with open(DATA / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def ours(steps: Sequence[object], documents: Sequence[str]) -> Callable[[], int]:
    def run() -> int:
        tally = Tally()
        chain = Chain(steps, tally)
        kept = 0
        for at, text in enumerate(documents):
            # New strings, as a reader gives: what is cached by text is not cached across turns.
            kept += isinstance(chain(Document(f"x/x#{at}", text + "\n")), Document)
        return kept

    return run


def theirs(make: Callable[[], list], documents: Sequence[str]) -> Callable[[], int]:
    def run() -> int:
        pipeline = iter([Theirs(text=text + "\n", id=str(at)) for at, text in enumerate(documents)])
        for step in make():
            pipeline = step.run(pipeline, 0, 1)
        return sum(1 for _ in pipeline)

    return run


def compare(title: str, size: float, sides: dict[str, Callable[[], int]], turns: int) -> None:
    """Prints the best speed of each, and the median of the ratios of turns side by side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    kept = {}
    for turn in range(turns):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            begin = time.process_time()
            kept[name] = sides[name]()
            seconds[name].append(time.process_time() - begin)
    speeds = "  ".join(
        f"{n} {size / min(s):6.2f} MB/s (kept {kept[n]:,})" for n, s in seconds.items()
    )
    first, *others = seconds.values()
    ratios = [b / a for other in others for a, b in zip(first, other, strict=True)]
    ratio = f"  {statistics.median(ratios):.2f} times as fast" if ratios else ""
    print(f"{title:44} {speeds}{ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--spacy", action="store_true", help="datatrove's own words and sentences")
    arguments = parser.parse_args()
    logger.remove()
    language = "en" if arguments.spacy else splitter("en")
    en = texts("en_sotu")[:300]
    zh = texts("zh_poetry")[:1500] + texts("zh_manpages")[:200]
    size, chinese = (sum(len(t.encode()) for t in found) / 1e6 for found in (en, zh))
    pairs = {
        "encoding": (FixEncoding(), FTFYFormatter),
        "C4": (C4Quality(end_of_sentence=False),
               lambda: C4QualityFilter(filter_no_terminal_punct=False, language=language)),
        "Gopher quality": (GopherQuality(), lambda: GopherQualityFilter(language=language)),
        "Gopher repetition": (GopherRepetition(),
                              lambda: GopherRepetitionFilter(language=language)),
        "FineWeb": (FineWebQuality(), lambda: FineWebQualityFilter(language=language)),
        "addresses of mail and IP": (MaskPii(kinds=("email", "ip")), PIIFormatter),
    }  # fmt: skip
    for name, (step, make) in pairs.items():
        sides = {"ours": ours([step], en), "datatrove": theirs(lambda m=make: [m()], en)}
        compare(name, size, sides, arguments.turns)
    steps, makes = zip(*pairs.values(), strict=True)
    sides = {"ours": ours(steps, en), "datatrove": theirs(lambda: [m() for m in makes], en)}
    compare("all of these, counted for the report", size, sides, arguments.turns)
    rules = [FixEncoding(), ChineseQuality(min_characters=16), ChineseRepetition()]
    rules += [ChineseFineWeb(short_line=4), MaskPii()]
    compare("Chinese rules", chinese, {"ours": ours(rules, zh)}, arguments.turns)
    free = [kind() for kind in STEPS if kind.__name__ not in NEED_FILES]
    compare("every step, English", size, {"ours": ours(free, en)}, arguments.turns)
    compare("every step, Chinese", chinese, {"ours": ours(free, zh)}, arguments.turns)


NEED_FILES = ("TemplateLines", "Perplexity", "QualityClassifier", "Label")

if __name__ == "__main__":
    sys.exit(main())
