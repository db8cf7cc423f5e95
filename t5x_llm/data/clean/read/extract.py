"""Extraction of the main text of an HTML page."""

from __future__ import annotations

from t5x_llm.data.clean.read.bounded import QuarantineError


def extract(page: str | bytes) -> str | QuarantineError:
    """Extracts the main text of a page by trafilatura: no menus, no comments, no scripts."""
    import trafilatura

    if b"\x00" in page[:4096] if isinstance(page, bytes) else "\x00" in page[:4096]:
        return QuarantineError("binary")
    try:
        # Without dates and authors, which cost more than the text.
        text = trafilatura.extract(page, include_comments=False, with_metadata=False)
    except Exception as e:  # whatever a parser makes of a page that somebody made for it
        return QuarantineError("HTML cannot be read", f"{type(e).__name__}: {e}"[:120])
    return text or QuarantineError("no text in HTML")
