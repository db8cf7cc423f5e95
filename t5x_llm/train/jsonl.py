"""Files of one JSON object a line, read as what anyone may have written there."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from t5x_llm.core.paths import as_path

Line = dict[str, Any]


def clean(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(line: Line) -> str:
    """The line, its end included."""
    return json.dumps(clean(line), ensure_ascii=False, separators=(", ", ": ")) + "\n"


def parse(text: str | bytes) -> Line | None:
    """The object of one line, numbers finite; None for anything else, such as half a line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return clean(value) if isinstance(value, dict) else None


def read_jsonl(path: str | os.PathLike[str]) -> list[Line]:
    """The objects of a file, in order; what is no JSON object is left out, a missing file empty."""
    file = as_path(path)
    if not file.exists():
        return []
    # Not splitlines: a string may hold U+2028 and its like, which end no line of JSON.
    texts = file.read_bytes().decode("utf-8", errors="replace").split("\n")
    return [line for line in map(parse, texts) if line is not None]


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def is_step(value: Any) -> bool:
    """Whether it can be the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
