"""The documentation site has every page and every room, and its links lead somewhere."""

import importlib.util
import pathlib
import re
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = load("docs_site")
DOCS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))


def leaves(tree):
    for entry in tree:
        held = next(iter(entry.values()))
        yield from [held] if isinstance(held, str) else leaves(held)


def page(name):
    """The page of a file, without its language."""
    return SITE.PAGES.get(name, name.removeprefix("docs/")).replace(".zh.md", ".md")


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(leaves(config["nav"]))
    reference = [f"reference/{name}.md" for name in SITE.rooms()]
    assert sorted(listed) == sorted({page(n) for n in [*DOCS, *SITE.PAGES]} | set(reference))
    names = [name for entry in config["nav"] for name in entry]
    plugins = {k: v for p in config["plugins"] if isinstance(p, dict) for k, v in p.items()}
    chinese = plugins["i18n"]["languages"][1]
    assert chinese["locale"] == "zh" and set(names) <= set(chinese["nav_translations"])


@pytest.mark.parametrize("name", [*DOCS, *SITE.PAGES])
def test_links_of_the_site(name):
    text = SITE.rewrite((ROOT / name).read_text(encoding="utf-8"), name)
    pages = {page(n) for n in [*DOCS, *SITE.PAGES]}
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", re.sub(r"(?ms)^```.*?^```", "", text)):
        assert target in pages or (ROOT / "docs" / target).is_file(), target
    assert "[中文]" not in text and "[English]" not in text


def test_rewriting_leaves_code_alone():
    text = "[中文](a.zh.md)\n\n[b](b.zh.md#x) and [c](../train.py), ![i](images/i.png)\n"
    code = "```python\nx[0](y)\n[b](../README.md)\n```\n"
    assert SITE.rewrite(text + code, "docs/a.md") == (
        "[b](b.md#x) and c, ![i](images/i.png)\n" + code
    )
    assert SITE.rewrite("[c](../train.py#a)", "docs/a.md", "https://h/r/") == (
        "[c](https://h/r/blob/main/train.py#a)"
    )
    assert SITE.rewrite("[t](docs/tutorial.md) [c](https://h/x)", "README.md") == (
        "[t](tutorial.md) [c](https://h/x)"
    )


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    subprocess.run(["make", "docs", f"DOCS={tmp_path}/venv"], cwd=ROOT, check=True)
    assert "春风" in (ROOT / "site" / "zh" / "index.html").read_text(encoding="utf-8")
    reference = (ROOT / "site" / "reference" / "api.html").read_text(encoding="utf-8")
    assert 'id="t5x_llm.api.load_run"' in reference
