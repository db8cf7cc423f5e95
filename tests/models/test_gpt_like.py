"""config.json of GPT-2's successors as they were published: taken in whole, or refused by field."""

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.models.families import FAMILIES
from t5x_llm.models.families.bloom import Bloom
from t5x_llm.models.families.falcon import Falcon
from t5x_llm.models.model import Model

NEO = dict(model_type="gpt_neo", vocab_size=64, hidden_size=32, num_layers=4, num_heads=4)
NEOX = dict(
    model_type="gpt_neox",
    vocab_size=50304,
    hidden_size=512,
    num_hidden_layers=6,
    num_attention_heads=8,
    intermediate_size=2048,
)
BLOOM = dict(model_type="bloom", vocab_size=250880, n_embed=1024, n_layer=24, n_inner=None)
FALCON = dict(
    model_type="falcon",
    vocab_size=65024,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
)
OPT = dict(
    model_type="opt",
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    ffn_dim=40,
)


def read(config):
    return FAMILIES[config["model_type"]].from_hf_config(config)


@pytest.mark.parametrize(
    "config, total",
    [
        # arXiv 2304.01373, table 1
        (NEOX | {"rotary_pct": 0.25, "rotary_emb_base": 10000}, 70_426_624),
        # the model card of GPT-NeoX-20B
        (
            NEOX
            | dict(vocab_size=50432, hidden_size=6144, num_hidden_layers=44, hidden_act="gelu_fast")
            | dict(num_attention_heads=64, intermediate_size=24576),
            20_554_567_680,
        ),
        # the model cards of BLOOM-560M and BLOOM
        (BLOOM | {"num_attention_heads": 16, "offset_alibi": 100}, 559_214_592),
        (BLOOM | dict(n_embed=14336, n_layer=70, n_head=112, pretraining_tp=4), 176_247_271_424),
    ],
)
def test_published_configs_give_published_counts(config, total):
    assert Model(read(config).decoder()).parameter_count()["total"] == total


@pytest.mark.parametrize(
    "config, field",
    [
        (NEO | {"num_attention_heads": 8}, "num_attention_heads"),
        (NEO | {"attention_types": [[["global", "local"], 3]]}, "layer_types"),
        (NEO | {"attention_types": [[["global", "sparse"], 2]]}, "layer_types"),
        (NEO | {"attention_types": [[["local"], 4]], "attention_layers": ["global"] * 4}, "layers"),
        (NEO, "layer_types"),  # absent means 24 layers
        (NEOX | {"hidden_act": "mish"}, "hidden_act"),
        (NEOX | {"rope_parameters": {"rope_type": "ntk", "factor": 2.0}}, "rope_type"),
        (BLOOM | {"n_head": 16, "n_inner": 8}, "n_inner"),
        (FALCON | {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
        (FALCON | {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        (OPT | {"num_attention_heads": 5}, "n_heads"),
        (OPT | {"embed_scale": 2.0}, "embed_scale"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config, field):
    with pytest.raises(ConfigError, match=field):
        read(config)


@pytest.mark.parametrize(
    "changes, heads, parallel",
    [
        ({"num_kv_heads": 4}, 1, "one_norm"),  # transformers writes N where it uses 1
        ({"multi_query": False, "parallel_attn": False}, 4, "no"),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, "two_norms"),
        ({"new_decoder_architecture": True, "multi_query": True}, 4, "two_norms"),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 4, "one_norm"),
    ],
)
def test_falcon_kinds(changes, heads, parallel):
    family = read(FALCON | changes)
    assert (family.kv_heads, family.parallel) == (heads, parallel)
    again = read(family.to_hf_config())
    assert again.decoder() == family.decoder()


def test_patterns_of_layers_are_spelled_out():
    pattern = [[["global"], 1], [["local"], 3]]
    family = read(NEO | {"attention_types": pattern})
    assert family.types == ("global", "local", "local", "local")
    listed = read(NEO | {"attention_layers": list(family.types)})
    assert listed == family and read(family.to_hf_config()) == family


@pytest.mark.parametrize("field, value", [("d_ff", 40), ("activation", "relu")])
def test_what_config_json_cannot_say_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"Bloom.{field}"):
        Bloom(vocab_size=64, d_model=32, n_layers=1, n_heads=4, **{field: value})


def test_sequential_falcon_has_one_or_all_heads():
    with pytest.raises(ConfigError, match="n_kv_heads"):
        Falcon(vocab_size=64, d_model=32, n_layers=1, n_heads=4, n_kv_heads=2, parallel="no")
