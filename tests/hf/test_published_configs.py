"""config.json of published models, by repository: read, or refused for a reason that is true.

``published_configs.jsonl`` has the fields that decide (lists of LongRoPE factors are shortened to
equal numbers), as the repositories have them; ``refused`` is a pattern of the reason.
"""

from __future__ import annotations

import json
import pathlib

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.model_config import family_of

LINES = (pathlib.Path(__file__).parent / "published_configs.jsonl").read_text().splitlines()
ROWS = {row["repository"]: row for row in map(json.loads, LINES)}
READ = [name for name, row in ROWS.items() if "refused" not in row]


def test_there_are_enough():
    assert len(READ) >= 90 and len(ROWS) == len(LINES)


@pytest.mark.parametrize("name", READ)
def test_read(name):
    family = family_of(ROWS[name]["config"])
    again = family_of(json.loads(json.dumps(family.to_hf_config())))
    assert again.decoder() == family.decoder()


@pytest.mark.parametrize("name", sorted(ROWS.keys() - set(READ)))
def test_refused_for_a_true_reason(name):
    with pytest.raises(ConfigError, match=ROWS[name]["refused"]):
        family_of(ROWS[name]["config"])
