"""Inline elements of an HTML tree, made plain text before the main text of the page is looked for.

An extractor decides by the name and the class of an element whether it belongs to the page's text,
and so loses words out of the middle of sentences: ``<span class="menuitem">``, ``<time>``,
``<button>``. What stands inside a sentence belongs to it, whatever it is called: such elements are
replaced by their text, and the extractor decides about the paragraph as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_BLOCKS = frozenset(
    "address article aside blockquote body caption center col colgroup dd details dialog dir "
    "div dl dt fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head "
    "header hgroup hr html legend li main menu nav ol optgroup option p pre search section "
    "summary table tbody td tfoot th thead title tr ul".split()
)
# What holds no words of the sentence that it stands in.
_OPAQUE = frozenset(
    "applet area audio base br canvas datalist embed iframe img input link map marquee meta "
    "noframes noscript object param picture rp rt rtc script select source style svg template "
    "textarea track video".split()
)
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I)
_CLAUSE = re.compile(r"[,.;:!?](?:\s|$)|[，。；：！？、]")


def flatten_inline(tree: Any) -> None:
    """Replaces, in place, the inline elements of every sentence of an lxml tree by their text.

    Inline elements stand in a sentence if their parent has text of its own beside them, or if there
    are several of them and together they read as a clause. Links stay, without their attributes,
    since extractors judge a block by its share of links. Hidden elements, scripts, media and the
    readings of ruby stay as they are; ``<q>`` gets its quotation marks.
    """
    gone: set[int] = set()
    elements = [each for each in tree.iter() if isinstance(each.tag, str)]
    holds_block = _holders(elements)
    # Those that are removed are kept in ``elements``, so that no id is used twice.
    for element in elements:
        if id(element) in gone or element.tag in _OPAQUE or element.tag == "math":
            continue
        for words, run in list(_runs(element, holds_block)):
            if run and (words or _is_clause(run)):
                for child in run:
                    _flatten(child, gone)


def _holders(elements: list[Any]) -> set[int]:
    """Returns ids of the elements that are, or contain, a block."""
    found: set[int] = set()
    for element in elements:
        if element.tag in _BLOCKS:
            place = element
            while place is not None and id(place) not in found:
                found.add(id(place))
                place = place.getparent()
    return found


def _runs(element: Any, blocks: set[int]) -> Iterator[tuple[bool, list[Any]]]:
    """Yields each run of inline children, and whether there is text of the element beside them."""
    words = _has_words(element.text)
    run: list[Any] = []
    for child in element:
        if id(child) in blocks:
            yield words, run
            words, run = False, []
        elif isinstance(child.tag, str) and child.tag not in _OPAQUE and not _is_hidden(child):
            run.append(child)
        words = words or _has_words(child.tail)
    yield words, run


def _has_words(text: str | None) -> bool:
    return text is not None and bool(text.strip())


def _is_hidden(element: Any) -> bool:
    return element.get("aria-hidden") == "true" or bool(_HIDDEN.search(element.get("style", "")))


def _is_clause(run: list[Any]) -> bool:
    texts = [text for each in run if (text := each.text_content().strip())]
    return len(texts) > 1 and _CLAUSE.search(" ".join(texts)) is not None


def _flatten(element: Any, gone: set[int]) -> None:
    """Replaces an inline element and those inside it by their text."""
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag in _OPAQUE or _is_hidden(child):
            continue
        _flatten(child, gone)
    gone.add(id(element))
    if element.tag == "a":
        for name in set(element.attrib) - {"href"}:
            del element.attrib[name]
        return
    if element.tag == "math":
        _make_text(element)
    elif element.tag == "q":
        element.text = "“" + (element.text or "")
        if len(element):
            element[-1].tail = (element[-1].tail or "") + "”"
        else:
            element.text += "”"
    element.drop_tag()


def _make_text(math: Any) -> None:
    """Replaces the content of MathML by what it says as text: TeX if there is, else its letters."""
    text = math.get("alttext")
    for note in list(math.iter("annotation", "annotation-xml")):
        if text is None and "tex" in note.get("encoding", "").lower():
            text = note.text
        note.drop_tree()
    text = math.text_content() if text is None else text
    for child in list(math):
        child.drop_tree()
    math.text = " ".join((text or "").split())
