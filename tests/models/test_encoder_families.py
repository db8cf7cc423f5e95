"""Published config.json of T5, mT5, BERT and RoBERTa: read, counted, refused by name."""

import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.hf.import_ import family_of
from t5x_llm.models.model import Model
from t5x_llm.optim import decay_summary

# google-t5/t5-small, google/flan-t5-small, google/mt5-small, google-bert/bert-base-uncased and
# -chinese, FacebookAI/roberta-base, without what concerns tasks.
T5_SMALL = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
FLAN_SMALL = T5_SMALL | {
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "relative_attention_max_distance": 128,
    "tie_word_embeddings": False,
}
MT5_SMALL = FLAN_SMALL | {
    "model_type": "mt5",
    "vocab_size": 250112,
    "tokenizer_class": "T5Tokenizer",
}
BERT_BASE = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
BERT_CHINESE = BERT_BASE | {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "vocab_size": 21128,
}
ROBERTA_BASE = {k: v for k, v in BERT_BASE.items() if k != "position_embedding_type"} | {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # as transformers counts them
        (T5_SMALL, 60_506_624),
        (FLAN_SMALL, 76_961_152),
        (MT5_SMALL, 300_176_768),
        (BERT_BASE, 109_514_298),
        (BERT_CHINESE, 102_290_312),
        (ROBERTA_BASE, 124_697_433),
    ],
)
def test_published_models(config, parameters):
    family = family_of(config)
    model = Model(family.decoder())
    assert model.parameter_count()["total"] == parameters
    written = family.to_hf_config()
    assert family_of(written).decoder() == family.decoder()
    for field in (config.keys() & written.keys()) - {"architectures"}:
        assert written[field] == config[field] or "dropout" in field, field


def test_roberta_keeps_room_for_the_pad_token():
    assert Model(family_of(ROBERTA_BASE).decoder()).max_length == 512


def test_biases_by_position_and_tables_do_not_decay():
    model = Model(family_of(FLAN_SMALL).decoder())
    decays = decay_summary(model.abstract_params(), logical_axes=model.logical_axes())
    assert not any(decays[f"{side}relative_0.bias"] for side in ("", "encoder."))
    assert not decays["embed.table"] and decays["head.kernel"]
    assert decays["encoder.group_0.block_0.mlp.up.kernel"]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (T5_SMALL, "feed_forward_proj", "gated-mish"),
        (FLAN_SMALL, "dense_act_fn", "relu"),
        (FLAN_SMALL, "is_gated_act", False),
        (T5_SMALL, "tie_encoder_decoder", True),
        (T5_SMALL, "relative_attention_num_buckets", 30),
        (T5_SMALL, "relative_attention_max_distance", 8),
        (T5_SMALL, "decoder_start_token_id", 32128),
        (BERT_BASE, "position_embedding_type", "relative_key"),
        (BERT_BASE, "tie_word_embeddings", False),
        (BERT_BASE, "is_decoder", True),
        (BERT_BASE, "hidden_act", "mish"),
        (ROBERTA_BASE, "pad_token_id", 50265),
        (ROBERTA_BASE, "adapter_size", 64),
    ],
)
def test_what_they_do_not_know_is_refused(config, field, value):
    with pytest.raises(ConfigError, match=field):
        family_of(config | {field: value})
