"""Chat template that a run directory holds, in place of the one beside its tokenizer."""

from __future__ import annotations

from t5x_llm.core.paths import as_path
from t5x_llm.text import Tokenizer
from t5x_llm.text.companions import CONFIG, Companions, dumped

TEMPLATE = "chat_template.jinja"


def with_run_template(directory: str, tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer with the template of a run directory in place of its own, if it has one.

    It is saved with the tokenizer, as chat_template.jinja.
    """
    path = as_path(directory) / TEMPLATE
    if not path.exists():
        return tokenizer
    files = {n: raw for n, raw in tokenizer.companions.items() if n != "chat_template.json"}
    files[TEMPLATE] = path.read_bytes()
    config = Companions(files).config
    if "chat_template" in config:
        files[CONFIG] = dumped({k: v for k, v in config.items() if k != "chat_template"})
    return tokenizer.with_companions(files)
