"""Masking of personal data: addresses, telephone numbers, numbers of identity and of cards."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from t5x_llm.core.errors import ConfigError, check_choice
from t5x_llm.data.clean.document import Answer, Document

Found = tuple[int, int, str]  # start, end, kind
STYLES = ("placeholder", "constant")


class Kind(NamedTuple):
    """Kind of personal data.

    Attributes:
      pattern: its form; None for addresses of mail, which are found from their @ on.
      constant: a harmless value of that form: reserved domains, numbers and networks.
      check: test of whether a match is of this kind.
    """

    pattern: re.Pattern[str] | None
    constant: str
    check: Callable[[str], bool] = lambda text: True


def is_chinese_id(text: str) -> bool:
    """Tests whether 18 characters end with the check digit of GB 11643-1999 (ISO 7064)."""
    if len(text) != 18 or not (text[:17].isascii() and text[:17].isdecimal()):
        return False
    total = sum(int(digit) * pow(2, 17 - at, 11) for at, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def is_card(text: str) -> bool:
    """Tests whether a text has 13 to 19 digits, not all equal, that pass Luhn's check."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if at % 2 == 0 else 2 * d - 9 * (d > 4) for at, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def is_public_ip(text: str) -> bool:
    """Tests whether an address of IPv4, or of IPv6's 2000::/3, is of the public Internet."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and (address.version == 4 or int(address) >> 125 == 1)


def _is_international(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


# In the order in which they are looked for: a number of identity also looks like a telephone's.
KINDS = {
    "email": Kind(None, "email@example.com"),
    "chinese_id": Kind(
        re.compile(
            r"(?<![\d.])[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}"
            r"[\dXx](?![\dA-Za-z])",
            re.ASCII,
        ),
        "000000190001010000",
        is_chinese_id,
    ),
    "card": Kind(
        # Visa, Mastercard, American Express, Discover, UnionPay, JCB.
        re.compile(
            r"(?<![\d.+-])(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|3[47]\d{2}|35\d{2}|6\d{3})"
            r"(?:[ -]?\d){9,15}(?![\d-])",
            re.ASCII,
        ),
        "0000 0000 0000 0000",
        is_card,
    ),
    "ssn": Kind(
        re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", re.ASCII),
        "000-00-0000",
    ),
    "phone": Kind(
        re.compile(
            # China: mobiles, land lines, 400 and 800.
            r"(?<![\d.])(?:(?:\+|00)?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)"
            r"|(?<![\d.-])(?:\(0\d{2,3}\) ?|（0\d{2,3}） ?|0\d{2,3}[- ])[2-9]\d{6,7}(?![\d-])"
            r"|(?<![\d.-])[48]00[- ]\d{3}[- ]?\d{4}(?![\d-])"
            # North America.
            r"|(?<![\d.-])(?:\+?1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])"
            r"[2-9]\d{2}[-. ]\d{4}(?![\d-])"
            # Any country, with its code.
            r"|(?<![\w+])\+[1-9]\d{0,2}(?:[-. ]?\(?\d{1,5}\)?){2,6}(?!\d)",
            re.ASCII,
        ),
        "555-0100",
        lambda text: not text.startswith("+") or _is_international(text),
    ),
    "ip": Kind(
        re.compile(
            # Not a number of a version.
            r"(?<![\w.])(?<!版本)(?<!ersion )"
            r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\w|\.\d)"
            r"|(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}(?![\w:])",
            re.ASCII,
        ),
        "192.0.2.1",
        is_public_ip,
    ),
}
# Where a number may be: patterns are tried there alone, which is what makes masking fast.
_NUMBER = re.compile(r"[+(（]{0,2}\d[\dXx ().+（）-]{5,}", re.ASCII)
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{0,4}:[0-9a-fA-F:]{2,}", re.ASCII)
_LOCAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\Z", re.ASCII)
_DOMAIN = re.compile(
    r"[@＠](?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])",
    re.ASCII,
)


@dataclasses.dataclass(frozen=True)
class MaskPii:
    """Masks personal data, and counts it by kind. Nothing is dropped.

    Numbers that have a check digit are masked only where it is right; addresses of IP only if they
    are public. Names and postal addresses are not looked for.

    Attributes:
      kinds: ``email``, ``chinese_id``, ``card``, ``ssn`` (of the United States), ``phone``, ``ip``.
      style: ``placeholder`` writes ``<email>``; ``constant`` a value of the same form that is
        nobody's, such as ``email@example.com``.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    style: str = "placeholder"

    def __post_init__(self) -> None:
        kinds = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        object.__setattr__(self, "kinds", kinds)
        for kind in kinds:
            check_choice("MaskPii.kinds", kind, KINDS)
        if not kinds:
            raise ConfigError("MaskPii.kinds", kinds, "at least one kind", choices=KINDS)
        check_choice("MaskPii.style", self.style, STYLES)

    @property
    def name(self) -> str:
        return "pii"

    def open(self) -> Callable[[Document], Answer]:
        placeholder = self.style == "placeholder"
        masks = {k: f"<{k}>" if placeholder else KINDS[k].constant for k in self.kinds}
        patterns = [
            (name, kind.pattern, kind.check)
            for name, kind in KINDS.items()
            if name in masks and kind.pattern is not None
        ]

        def step(document: Document) -> Answer:
            text = document.text
            found = _emails(text) if "email" in masks else []
            for place in _places(text, "ip" in masks):
                found += _numbers(text, place, patterns)
            found = [each for each in found if text[each[0] : each[1]] != masks[each[2]]]
            if not found:
                return document
            parts, counts, end = [], Counter[str](), 0
            # Of two that overlap the first, and the longer: a number may be part of an address.
            for start, stop, name in sorted(found, key=lambda each: (each[0], -each[1])):
                if start >= end:
                    parts += [text[end:start], masks[name]]
                    counts[name] += 1
                    end = stop
            text = "".join([*parts, text[end:]])
            return document.with_text(text).with_meta(masked=dict(sorted(counts.items())))

        return step


def _emails(text: str) -> list[Found]:
    found, end = [], 0
    for match in _DOMAIN.finditer(text) if "@" in text or "＠" in text else ():
        local = _LOCAL.search(text[max(end, match.start() - 64) : match.start()])
        if local is not None:
            found.append((match.start() - len(local.group()), match.end(), "email"))
        end = match.end()
    return found


def _places(text: str, hexadecimal: bool) -> Iterator[tuple[int, int]]:
    """Yields the places where numbers may be, with what must not follow them."""
    for match in _NUMBER.finditer(text):
        yield match.start(), match.end() + 2
    if hexadecimal and ":" in text:
        for match in _HEXADECIMAL.finditer(text):
            yield match.start(), match.end() + 2


def _numbers(
    text: str,
    place: tuple[int, int],
    patterns: Sequence[tuple[str, re.Pattern[str], Callable[[str], bool]]],
) -> list[Found]:
    """Finds numbers in a place; if two kinds overlap, the one that is first in ``KINDS``."""
    found: list[Found] = []
    for name, pattern, check in patterns:
        for match in pattern.finditer(text, *place):
            start, stop = match.span()
            taken = any(start < other[1] and other[0] < stop for other in found)
            if not taken and check(match.group()):
                found.append((start, stop, name))
    return found
