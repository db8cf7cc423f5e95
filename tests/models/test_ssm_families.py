"""State-space families at their published sizes, and config.json as it was published."""

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.families.jamba import Jamba
from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.model import Model

MAMBA = dict(
    model_type="mamba",
    vocab_size=50280,
    hidden_size=2560,
    num_hidden_layers=64,
    intermediate_size=5120,
    time_step_rank=160,
    d_inner=5120,
    d_model=2560,
    n_layer=64,
    rms_norm=True,
    ssm_cfg={},
    fused_add_norm=True,
    pad_vocab_size_multiple=8,
    residual_in_fp32=True,
    time_step_min=0.001,
)
FALCON = dict(
    model_type="falcon_mamba",
    vocab_size=65024,
    hidden_size=4096,
    num_hidden_layers=64,
    intermediate_size=8192,
    expand=16,
    time_step_rank=256,
    tie_word_embeddings=False,
)
CODESTRAL = dict(
    model_type="mamba2",
    vocab_size=32768,
    hidden_size=4096,
    num_hidden_layers=64,
    intermediate_size=8192,
    time_step_limit=[0.0, float("inf")],
    norm_before_gate=True,
    chunk_size=256,
)
JAMBA = dict(
    model_type="jamba",
    vocab_size=65536,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    mamba_dt_rank=256,
    sliding_window=None,
    num_logits_to_keep=1,
)


def read(config):
    return FAMILIES[config["model_type"]].from_hf_config(config)


@pytest.mark.parametrize(
    "config, total, state",
    [
        # Sizes of the released weights; their states follow from sections 3.4 and 6 of the papers.
        (MAMBA, 2_768_345_600, 64 * 5120 * 16),
        (FALCON, 7_272_665_088, 64 * 8192 * 16),
        (CODESTRAL, 7_285_403_648, 64 * 8192 * 128),
        (JAMBA, 51_570_323_328, 28 * 8192 * 16),
    ],
    ids=["mamba", "falcon_mamba", "codestral", "jamba"],
)
def test_published_sizes(config, total, state):
    decoder = read(config).decoder()
    assert Model(decoder).parameter_count()["total"] == total
    assert decoder.state_size == state


def test_one_jamba_layer_in_eight_attends_and_every_other_is_sparse():
    decoder = read(JAMBA).decoder()
    assert decoder.attention_width == 4 * 4096
    parts = [type(b.mixer).__name__[:4] for b in decoder.groups[0].blocks]
    assert parts == ["Sele"] * 4 + ["Atte"] + ["Sele"] * 3
    sparse = [type(b.feed_forward).__name__ for b in decoder.groups[0].blocks]
    assert sparse == ["MlpConfig", "MoeConfig"] * 4
    dense = Jamba(64, 32, 4, 4, 40, n_kv_heads=4, n_experts=1).decoder()
    assert not any("Moe" in type(b.feed_forward).__name__ for g in dense.groups for b in g.blocks)


def test_what_stands_for_itself_in_config_json():
    assert read({**MAMBA, "time_step_rank": "auto"}).decoder() == read(MAMBA).decoder()
    small = dict(model_type="mamba2", vocab_size=64, hidden_size=32, num_hidden_layers=1)
    small |= dict(num_heads=4, head_dim=16, n_groups=2)
    for limit in ([0.0, "Infinity"], [0.0, {"__float__": "Infinity"}], (0.0, float("inf"))):
        assert read({**small, "time_step_limit": limit}).dt_limit == (0.0, None)
    assert read({**small, "time_step_limit": [0.1, 0.5]}).dt_limit == (0.1, 0.5)


def test_what_cannot_be_computed_is_named():
    with pytest.raises(ConfigError, match="config.json ssm_cfg"):
        read({**MAMBA, "ssm_cfg": {"layer": "Mamba2"}})
    with pytest.raises(ConfigError, match="config.json hidden_act"):
        read({**MAMBA, "hidden_act": "gelu"})
    with pytest.raises(ConfigError, match="config.json expand = 4.*num_heads \\* head_dim = 8192"):
        read({**CODESTRAL, "expand": 4})
    with pytest.raises(ConfigError, match="Mamba.d_inner = 100.*multiple of Mamba.d_model = 64"):
        Mamba(64, 64, 2, d_inner=100)
    with pytest.raises(ConfigError, match="Jamba.attention_offset"):
        Jamba(64, 32, 4, 4, 40, attention_offset=9)
