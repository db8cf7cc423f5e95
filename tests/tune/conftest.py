"""A small base model with a tokenizer of bytes, and four sources beside it."""

import jax
import pytest
from four_parties import gin, write_sources


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A directory with ``fed.gin``, its sources and ``base``, a model that knows nothing yet."""
    from t5x_llm.core.dtypes import Policy
    from t5x_llm.hf.export import export_hf
    from t5x_llm.models.families import FAMILIES
    from t5x_llm.models.model import Model
    from t5x_llm.text import load_tokenizer

    directory = tmp_path_factory.mktemp("federated")
    write_sources(directory)
    (directory / "fed.gin").write_text(gin())
    family = FAMILIES["llama"](
        vocab_size=257, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=32, max_length=64
    )
    model = Model(family.decoder(), Policy(compute="float32"))
    params = jax.device_get(model.init(jax.random.key(0)))
    export_hf(params, family, load_tokenizer("bytes"), str(directory / "base"))
    return directory
