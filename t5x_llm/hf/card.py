"""The model card, README.md of an exported model, with the front matter that hubs read.

It says what was recorded and measured, and nothing else: a licence only where one was given, no
promise of fitness. Fields of the front matter are the Hugging Face hub's
(https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import yaml

from t5x_llm.core.errors import CheckpointError
from t5x_llm.hf import parity
from t5x_llm.hf.reference import auto_class
from t5x_llm.hf.shards import inside
from t5x_llm.models.family import Family

FILE = "README.md"
_MAX_BYTES = 1_000_000
# What a converted model keeps of its original's front matter.
_KEPT = ("license", "license_name", "license_link", "language", "base_model", "datasets")
_LONGEST, _MOST = 200, 100
# Hugging Face's words for what kinds of models do.
_TASKS = {
    "decoder": "text-generation",
    "encoder": "fill-mask",
    "encoder_decoder": "text2text-generation",
}
_SEQ2SEQ = """inputs = tokenizer("A text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""
_USES = {"decoder": _SEQ2SEQ, "encoder_decoder": _SEQ2SEQ, "encoder": ""}


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """Facts of a model card besides the model's shape and its parity check.

    Attributes:
      origin: the first words about where the model comes from.
      front: fields of the front matter.
      sections: (title, markdown) in order.
    """

    origin: str
    front: dict[str, Any] = dataclasses.field(default_factory=dict)
    sections: tuple[tuple[str, str], ...] = ()


def model_card(family: Family, report: parity.ParityReport, facts: CardFacts) -> str:
    """Returns README.md of an exported model."""
    config, kind = family.to_hf_config(), family.decoder().kind
    auto = auto_class(config)
    front = {"library_name": "transformers", "pipeline_tag": _TASKS[kind], "tags": ["t5x_llm"]}
    front = {k: v for k, v in facts.front.items() if v} | front
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    checked = f"Not checked: {report.summary()}"
    if report.prompts:
        long = report.prompts["long"]
        checked = (
            f"Checked against {report.reference}: on a prompt of {long.tokens} tokens the logits "
            f"differ by at\nmost {long.max_abs:.2g} (largest logit {long.scale:.3g}) and the "
            f"likeliest token agrees at\n{long.top1:.1%} of positions."
        )
    use = f"\n{_USES[kind]}" if _USES[kind] else ""
    sections = "".join(f"\n## {title}\n\n{text}\n" for title, text in facts.sections)
    return f"""---
{matter}---

# {config["architectures"][0]}, {parity.count(family):,} parameters

{facts.origin} in {report.dtype}.

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = {auto}.from_pretrained("path/to/this/directory"){use}
```

{checked} `parity.json` has the full report.
{sections}"""


def front_matter(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields of a directory's model card that hold for a conversion of it too.

    What is not plain text, or a list of such, is left out; {} where there is no card that can be
    read: a card is for people, and no reason to refuse a model.
    """
    place = pathlib.Path(directory)
    try:
        path = inside(place, FILE, ".md")
        if path.stat().st_size > _MAX_BYTES:
            return {}
        text = path.read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
        if found is None or "&" in found[1]:  # no anchors, which can repeat themselves endlessly
            return {}
        values = yaml.safe_load(found[1])
    except (CheckpointError, OSError, UnicodeDecodeError, ValueError, yaml.YAMLError):
        return {}
    except RecursionError:
        return {}
    values = values if isinstance(values, dict) else {}
    return {k: values[k] for k in _KEPT if _plain(values.get(k))}


def _plain(value: object) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= _MOST and all(isinstance(v, str) and _plain(v) for v in value)
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in markdown; bars and line ends in cells are spaces."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"[|\s]+", " ", text).strip()
