"""Decoding of pages: by what the server said, by what the page says, by what the bytes look like.

The order is that of the HTML standard (html.spec.whatwg.org, "determining the character encoding"),
but that bytes that are UTF-8 are UTF-8, whatever is said of them, and that a charset is believed
only if the bytes fit.
"""

from __future__ import annotations

import codecs
import re

# Names of charsets whose pages hold more than the name allows (encoding.spec.whatwg.org, "names
# and labels"), to the superset that browsers read them by.
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "hz": "hz",
    "iso8859-1": "windows-1252",
    "ascii": "windows-1252",
    "cp1252": "windows-1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "cp950": "big5hkscs",
}
_ALIASES = {
    "x-gbk": "gbk", "gb_2312-80": "gb2312", "x-sjis": "shift_jis", "x-euc-jp": "euc-jp",
    "windows-31j": "cp932", "ks_c_5601-1987": "euc-kr", "ksc5601": "euc-kr", "x-x-big5": "big5",
    "windows-949": "cp949", "x-cp1251": "cp1251", "x-cp1252": "cp1252", "dos-874": "cp874",
    "windows-874": "cp874", "unicode-1-1-utf-8": "utf-8", "x-mac-cyrillic": "mac-cyrillic",
}  # fmt: skip
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_DECLARED = re.compile(
    rb"""<meta\b[^>]{0,400}?\bcharset\s*=\s*["']?\s*([\w:.+-]{2,40})"""
    rb"""|<\?xml\b[^>]{0,200}?\bencoding\s*=\s*["']([\w:.+-]{2,40})["']""",
    re.I,
)
_DECLARED_WITHIN = 4096  # bytes; the standard asks for 1,024, pages are less careful
# Codecs of Python that make text of bytes and are no charsets, and one that browsers refuse.
_NO_CHARSETS = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf_7", "undefined")
_ESCAPES = (b"\x1b$", b"\x1b(", b"~{")  # of encodings whose bytes are all ASCII
_MOST_LOST = 0.002  # of the characters, in a text whose charset both fits and is declared


def header_charset(content_type: str) -> str:
    """Returns the charset of a Content-Type header, such as ``text/html; charset=GBK``, or ""."""
    found = re.search(r"""\bcharset\s*=\s*["']?\s*([\w:.+-]{2,40})""", content_type, re.I)
    return found.group(1) if found else ""


def codec_of(label: str) -> str:
    """Returns the codec that browsers read a charset by; "" for one that is not known.

    Codecs of Python that make no text of bytes, such as ``rot13``, and those of another kind than
    charsets, such as ``idna`` and ``unicode_escape``, are not known.
    """
    label = label.strip().lower()
    label = _ALIASES.get(label, label)
    try:
        info = codecs.lookup(label)
        known = info.name
        text = isinstance(b"a".decode(known), str)
    except (LookupError, TypeError, ValueError, UnicodeError):
        return ""
    if not text or known.replace("-", "_") in _NO_CHARSETS:
        return ""
    found = _SUPERSETS.get(known, known)
    if found == "windows-1252":
        import ftfy  # noqa: F401  # knows Windows-1252 as browsers do, every byte a character

        return "sloppy-windows-1252"
    return found


def decode_page(raw: bytes, charset: str = "") -> str:
    """Decodes a page or a text from the web; bytes that fit nothing become U+FFFD.

    Args:
      raw: the bytes.
      charset: what the server said, if anything.
    """
    for mark, codec in _BOMS:
        if raw.startswith(mark):
            return raw.decode(codec, "replace").removeprefix("\ufeff")
    declared = _DECLARED.search(raw[:_DECLARED_WITHIN])
    inside = next(filter(None, declared.groups()), b"").decode() if declared else ""
    codecs_said = [codec for label in (charset, inside) if (codec := codec_of(label))]
    escaped = any(mark in raw for mark in _ESCAPES)
    if not (escaped and any(c.startswith(("iso2022", "hz")) for c in codecs_said)):
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            pass
    for codec in codecs_said:
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    for codec in codecs_said:  # one bad byte in a page is more likely than another charset
        text = raw.decode(codec, "replace")
        if text.count("\ufffd") <= _MOST_LOST * len(text):
            return text
    return _guessed(raw)


def _guessed(raw: bytes) -> str:
    from trafilatura.utils import decode_file

    return decode_file(raw)
