"""A model of byte patches from a gin file: trained on bytes, sampled, exported, read again."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import GIN, corpus, losses, python, train

MODEL = """
Run.model = @BGPT()
BGPT.d_model = 32
BGPT.n_patch_layers = 1
BGPT.n_byte_layers = 1
BGPT.n_heads = 4
BGPT.patch_size = 4
BGPT.max_patches = 32
Data.tokenizer = 'bytes'
"""


@pytest.mark.slow
def test_from_gin_file_to_text(tmp_path):
    corpus(tmp_path)
    kept = [line for line in GIN.splitlines() if "Llama" not in line and "okenizer" not in line]
    (tmp_path / "tiny.gin").write_text("\n".join(kept) + MODEL, encoding="utf-8")
    train(tmp_path, "--gin_bindings=Loop.steps = 30")
    found = [loss for _, loss in sorted(losses(tmp_path / "run").items())]
    assert len(found) == 30 and np.mean(found[-5:]) < np.mean(found[:5]) - 0.5
    assert "ab" in (tmp_path / "run" / "samples.txt").read_text("utf-8")
    done = python(
        *("-m", "t5x_llm.cli.main", "generate", "run/hf", "--prompt", "ab ba 春"),
        cwd=tmp_path,
    )
    assert done.stdout.strip()
