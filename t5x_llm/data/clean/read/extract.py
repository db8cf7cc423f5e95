"""Extraction of the main text of an HTML page."""

from __future__ import annotations

from t5x_llm.data.clean.read.bounded import QuarantineError
from t5x_llm.data.clean.read.charset import decode_page
from t5x_llm.data.clean.read.inline import flatten_inline


def extract(page: str | bytes, charset: str = "") -> str | QuarantineError:
    """Extracts the main text of a page by trafilatura: no menus, no comments, no scripts.

    Args:
      page: the page, as text or as bytes.
      charset: what the server said of the bytes; a page's own words are found in it.
    """
    import trafilatura

    text = decode_page(page, charset) if isinstance(page, bytes) else page
    if "\x00" in text[:4096]:
        return QuarantineError("binary")
    try:
        tree = trafilatura.load_html(text)
        if tree is None:
            return QuarantineError("no text in HTML")
        flatten_inline(tree)
        # Without dates and authors, which cost more than the text.
        found = trafilatura.extract(tree, include_comments=False, with_metadata=False)
    except Exception as e:  # whatever a parser makes of a page that somebody made for it
        return QuarantineError("HTML cannot be read", f"{type(e).__name__}: {e}"[:120])
    return found or QuarantineError("no text in HTML")
