"""Tells what looks like a credential, before it is printed or stored."""

from __future__ import annotations

import re

_NAME = re.compile(
    r"(^|[_-])(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|PWD)($|[_-])", re.I
)
_ISSUED = re.compile(
    r"\b(hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[\w-]{20,}"
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|A[KS]IA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|npm_\w{30,}"
    r"|pypi-[\w-]{20,}|dop_v1_\w{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\"private_key\"\s*:"
)
_PASSWORD_IN_URL = re.compile(r"[A-Za-z][\w+.-]*://[^/\s:@]*:[^/\s@]+@")
_TOKEN_IN_URL = re.compile(
    r"[?&](access_token|token|api_?key|key|sig|signature)=[\w%./+-]{8,}", re.I
)
_RUN = re.compile(r"[A-Za-z0-9+/]{20,}")
_HEX = re.compile(r"(?<![0-9a-fA-F])[0-9a-f]{32,}(?![0-9a-fA-F])")
# Names under which hexadecimal digits are a fingerprint of something.
_DIGEST = re.compile(r"(^|_)(COMMIT|SHA\d*|REV|REVISION|HASH|DIGEST|MD5|VERSION|ID)($|_)", re.I)


def sounds_secret(name: str) -> bool:
    """Returns True for a variable's name, such as HF_TOKEN, under which credentials are kept."""
    return bool(_NAME.search(name))


def looks_secret(value: str, name: str = "") -> bool:
    """Returns True for a value that looks like a credential.

    That is: a token in the form of a known issuer, a private key, a URL with a password or a token,
    or twenty letters and digits in both cases mixed as chance does; 32 or more hexadecimal digits
    too, unless ``name`` says that they are a fingerprint.
    """
    if _ISSUED.search(value) or _PASSWORD_IN_URL.search(value) or _TOKEN_IN_URL.search(value):
        return True
    if any(_random(run) for run in _RUN.findall(value)):
        return True
    return bool(_HEX.search(value)) and not _DIGEST.search(name) and "sha256:" not in value


def _random(run: str) -> bool:
    """True where cases and digits alternate more often than words and numbers do."""
    if run.count("/") > 2:
        return False  # a path
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" if c.islower() else c for c in run]
    changes = sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    return {"d", "u", "l"} <= set(kinds) and changes * 3 >= len(run)
