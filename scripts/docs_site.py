"""Hooks of the documentation site: pages that lie outside ``docs/``, and links between all pages.

The site's pages are the files that people also read in the repository. What differs is made here:
README, CONTRIBUTING and the like become pages, every room of the package gets a page of its
docstrings, links between languages go, as the theme has a switch, and links to files that are no
pages become their text, or lead to ``repo_url`` where mkdocs.yml has one.
"""

from __future__ import annotations

import pathlib
import posixpath
import re
import shutil
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files outside docs/, from the repository's top, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "shipped_text.md",
}
_PAGES = tempfile.TemporaryDirectory(prefix="t5x_llm-docs-")  # until the process ends
_FILES = {page: name for name, page in PAGES.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_SWITCH = re.compile(r"^\[(?:中文|English)\]\([^)]*\)\n+| *\[(?:中文|English)\]\([^)]*\)", re.M)
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.M | re.S)


def rooms() -> list[str]:
    """Returns the modules and packages that get a page: the Python API, and all rooms but cli."""
    package = ROOT / "t5x_llm"
    found = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    return ["api", *(name for name in found if name != "cli")]


def on_config(config: Any) -> Any:
    """Puts all pages into one directory, from which the site is built."""
    pages = pathlib.Path(_PAGES.name)
    shutil.copytree(ROOT / "docs", pages, dirs_exist_ok=True)
    for name, page in PAGES.items():
        shutil.copy(ROOT / name, pages / page)
    (pages / "reference").mkdir(exist_ok=True)
    for name in rooms():
        text = f"# t5x_llm.{name}\n\n::: t5x_llm.{name}\n"
        (pages / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    config.docs_dir = str(pages)
    config.watch += [str(ROOT / "docs"), *(str(ROOT / name) for name in PAGES)]
    return config


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]  # before the plugin of languages


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links of a page; code stays as it is."""
    uri = page.file.src_uri
    return rewrite(markdown, _FILES.get(uri, f"docs/{uri}"), config.repo_url or "")


def rewrite(markdown: str, name: str, repo_url: str = "") -> str:
    """Returns a page's text with the site's links.

    Args:
      markdown: the text of a file.
      name: the file, from the repository's top.
      repo_url: where files that are no pages are linked to; if empty they become their text.
    """

    def link(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if path in PAGES:
            uri = PAGES[path]
        elif path.startswith("docs/"):
            uri = path.removeprefix("docs/")
        elif repo_url:
            return f"{mark}[{text}]({repo_url.rstrip('/')}/blob/main/{path}{anchor or ''})"
        else:
            return text
        # The language of a page is the reader's, not the link's.
        return f"{mark}[{text}]({uri.replace('.zh.md', '.md')}{anchor or ''})"

    def prose(text: str) -> str:
        return _LINK.sub(link, _SWITCH.sub("", text))

    parts, at = [], 0
    for code in _CODE.finditer(markdown):
        # A link's text may itself be code: that is prose.
        if code[0].startswith("```"):
            parts += [prose(markdown[at : code.start()]), code[0]]
            at = code.end()
    return "".join([*parts, prose(markdown[at:])])
