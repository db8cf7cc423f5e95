"""Presets have as many parameters as transformers' models of the same sizes; needs torch."""

from __future__ import annotations

import pathlib
import runpy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from t5x_llm.config import parse_flags  # noqa: E402
from t5x_llm.run.config import load_run  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
PARAMETERS = runpy.run_path(ROOT / "tests" / "configs" / "parameters.py")["PARAMETERS"]

AUTO = transformers.models.auto.modeling_auto
CLASSES = {
    **dict.fromkeys(AUTO.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    **dict.fromkeys(
        AUTO.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForSeq2SeqLM
    ),
    **dict.fromkeys(AUTO.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
    **dict.fromkeys(("bert", "roberta"), transformers.AutoModelForMaskedLM),
}
# LLaMAs under names of their own, fused tensors apart: transformers' LLaMA counts for them.
LLAMAS = ("baichuan", "internlm", "internlm2")
FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "tie_word_embeddings"),
)
# What transformers does not have.
ABSENT = ("bgpt/", "glm/chatglm", "glm/glm_130b", "grok/", "palm/", "ttt/", "yuan/")
NAMES = [name for name in sorted(PARAMETERS) if not name.startswith(ABSENT)]
# What a model that is no decoder learns.
OBJECTIVES = {"t5": "span_corruption", "bert": "mlm"}
REST = ["Run.data=@Data()", "Data.store_dir='x'", "Data.tokenizer='x'", "Data.seqio_mixture='x'"]
REST += ["Run.loop=@Loop()", "Loop.steps=1", "Loop.batch_size=8", "Loop.sequence_length=8"]
REST += ["Run.directory='x'"]


@pytest.mark.parametrize("name", NAMES)
def test_transformers_counts_the_same(name):
    file = ROOT / "configs" / "models" / f"{name}.gin"
    objective = OBJECTIVES.get(name.partition("/")[0], "lm")
    bindings = [*REST, f"Denoising.objective='{objective}'"]
    run, _ = load_run(parse_flags([f"--gin_file={file}", *(f"--gin.{b}" for b in bindings)]))
    config = run.model.to_hf_config()
    kind = run.model.hf_type
    if kind in LLAMAS:
        bias = config.get("bias", False)
        config = {field: config[field] for field in FIELDS if field in config}
        config |= {"attention_bias": bias}
        kind = "llama"
    # Fields that decide no size; files write infinity in a way that only ``from_pretrained`` reads.
    apart = ("model_type", "architectures", "time_step_limit")
    fields = {k: v for k, v in config.items() if k not in apart}
    with torch.device("meta"):
        model = CLASSES[kind].from_config(transformers.AutoConfig.for_model(kind, **fields))
    # A correction of the router is no parameter there, but a tensor of the checkpoint.
    corrections = [x for n, x in model.named_buffers() if n.endswith("e_score_correction_bias")]
    count = sum(x.numel() for x in [*model.parameters(), *corrections])
    if kind in ("t5", "mt5") and not run.model.tied:  # transformers 5 ties it whatever is said
        count += run.model.vocab_size * run.model.d_model
    assert PARAMETERS[name].agrees({"total": count, "embed": 0}), f"{count:,}"
