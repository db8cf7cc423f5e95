"""The parameter counts that the presets of configs/models are held to, each with its source."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A count and where it stands.

    Attributes:
      count: exact, or a figure as printed, such as '8.63B'.
      source: what says so.
      digits: of a printed figure, how many count; None for all.
      without: a part of the model that the source does not count.
    """

    count: int | str
    source: str
    digits: int | None = None
    without: str | None = None

    def agrees(self, parts: dict[str, int]) -> bool:
        """Whether a model of these parameter counts ('total' and by part) has the published one.

        A printed figure may have been rounded or cut off: its last digit may be one away.
        """
        ours = parts["total"] - (parts[self.without] if self.without else 0)
        if isinstance(self.count, int):
            return ours == self.count
        number, size = self.count[:-1], {"M": 10**6, "B": 10**9}[self.count[-1]]
        whole, _, fraction = number.partition(".")
        last = len(whole) - self.digits if self.digits else -len(fraction)
        return abs(ours - float(number) * size) < size * 10.0**last


# The number of elements that Hugging Face shows beside a model, read from its weight files.
SAFETENSORS = {
    "llama/llama2_7b": (6_738_415_616, "lmsys/vicuna-7b-v1.5, of the same shapes"),
    "llama/llama2_13b": (13_015_864_320, "lmsys/vicuna-13b-v1.5, of the same shapes"),
    "llama/code_llama_7b": (6_738_546_688, "codellama/CodeLlama-7b-hf"),
    "llama/code_llama_13b": (13_016_028_160, "meta-llama/CodeLlama-13b-Instruct-hf"),
    "llama/code_llama_34b": (33_743_970_304, "codellama/CodeLlama-34b-Instruct-hf"),
    "llama/llama3_8b": (8_030_261_248, "meta-llama/Meta-Llama-3-8B"),
    "llama/llama3_70b": (70_553_706_496, "meta-llama/Meta-Llama-3-70B"),
    "llama/llama3_1_8b": (8_030_261_248, "meta-llama/Llama-3.1-8B"),
    "llama/llama3_1_70b": (70_553_706_496, "meta-llama/Llama-3.1-70B"),
    "llama/llama3_1_405b": (405_853_388_800, "meta-llama/Llama-3.1-405B"),
    "llama/llama3_2_1b": (1_235_814_400, "meta-llama/Llama-3.2-1B"),
    "llama/llama3_2_3b": (3_212_749_824, "meta-llama/Llama-3.2-3B"),
    "llama/yi_6b": (6_061_035_520, "01-ai/Yi-6B"),
    "llama/yi_34b": (34_388_917_248, "01-ai/Yi-34B"),
    "llama/tinyllama_1_1b": (1_100_048_384, "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    "llama/smollm2_135m": (134_515_008, "HuggingFaceTB/SmolLM2-135M"),
    "llama/smollm2_360m": (361_821_120, "HuggingFaceTB/SmolLM2-360M"),
    "llama/smollm2_1_7b": (1_711_376_384, "HuggingFaceTB/SmolLM2-1.7B"),
    "mistral/mistral_7b": (7_241_732_096, "mistralai/Mistral-7B-v0.1"),
    "mistral/mistral_7b_v0_3": (7_248_023_552, "mistralai/Mistral-7B-Instruct-v0.3"),
    "mistral/mistral_nemo_12b": (12_247_782_400, "casperhansen/mistral-nemo-instruct-2407-awq"),
    "mistral/mistral_small_24b": (23_572_403_200, "stelterlab/Mistral-Small-24B-Instruct-2501-AWQ"),
    "mistral/mistral_large_123b": (122_610_069_504, "mistralai/Mistral-Large-Instruct-2407"),
    "mixtral/mixtral_8x7b": (46_702_792_704, "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    "mixtral/mixtral_8x22b": (140_630_071_296, "mistralai/Mixtral-8x22B-Instruct-v0.1"),
    "qwen/qwen1_5_1_8b": (1_836_828_672, "Qwen/Qwen1.5-1.8B"),
    "qwen/qwen1_5_4b": (3_950_369_280, "Qwen/Qwen1.5-4B"),
    "qwen/qwen1_5_7b": (7_721_324_544, "Qwen/Qwen1.5-7B"),
    "qwen/qwen1_5_14b": (14_167_290_880, "Qwen/Qwen1.5-14B"),
    "qwen/qwen1_5_32b": (32_512_218_112, "Qwen/Qwen1.5-32B"),
    "qwen/qwen1_5_110b": (111_209_914_368, "Qwen/Qwen1.5-110B-Chat-AWQ"),
    "qwen/qwen2_0_5b": (494_032_768, "Qwen/Qwen2-0.5B-Instruct"),
    "qwen/qwen2_1_5b": (1_543_714_304, "Qwen/Qwen2-1.5B"),
    "qwen/qwen2_7b": (7_615_616_512, "Qwen/Qwen2-7B"),
    "qwen/qwen2_72b": (72_706_203_648, "Qwen/Qwen2-72B"),
    "qwen/qwen2_5_0_5b": (494_032_768, "Qwen/Qwen2.5-0.5B"),
    "qwen/qwen2_5_1_5b": (1_543_714_304, "Qwen/Qwen2.5-1.5B"),
    "qwen/qwen2_5_3b": (3_085_938_688, "Qwen/Qwen2.5-3B"),
    "qwen/qwen2_5_7b": (7_615_616_512, "Qwen/Qwen2.5-7B"),
    "qwen/qwen2_5_14b": (14_770_033_664, "Qwen/Qwen2.5-14B"),
    "qwen/qwen2_5_32b": (32_763_876_352, "Qwen/Qwen2.5-32B"),
    "qwen/qwen2_5_72b": (72_706_203_648, "Qwen/Qwen2.5-72B"),
    "qwen/qwen3_1_7b": (1_720_574_976, "Qwen/Qwen3-1.7B-Base"),
    "qwen/qwen3_4b": (4_022_468_096, "Qwen/Qwen3-4B"),
    "qwen/qwen3_8b": (8_190_735_360, "Qwen/Qwen3-8B"),
    "qwen/qwen3_14b": (14_768_307_200, "Qwen/Qwen3-14B-AWQ"),
    "qwen/qwen3_32b": (32_762_123_264, "Qwen/Qwen3-32B"),
    "qwen/qwen1_5_moe_a2_7b": (14_315_784_192, "Qwen/Qwen1.5-MoE-A2.7B"),
    "qwen/qwen2_57b_a14b": (57_408_658_944, "Qwen/Qwen2-57B-A14B"),
    "qwen/qwen3_30b_a3b": (30_532_122_624, "Qwen/Qwen3-30B-A3B"),
    "qwen/qwen3_235b_a22b": (235_093_634_560, "Qwen/Qwen3-235B-A22B"),
    "gemma/gemma_2b": (2_506_172_416, "google/gemma-1.1-2b-it"),
    "gemma/gemma_7b": (8_537_680_896, "google/gemma-1.1-7b-it"),
    "gemma/gemma2_2b": (2_614_341_888, "google/gemma-2-2b-it"),
    "gemma/gemma2_9b": (9_241_705_984, "google/gemma-2-9b-it"),
    "gemma/gemma2_27b": (27_227_128_320, "google/gemma-2-27b-it"),
    "olmo/olmo_1b": (1_176_764_416, "allenai/OLMo-1B-hf"),
    "olmo/olmo2_1b": (1_484_916_736, "allenai/OLMo-2-0425-1B"),
    "olmo/olmo2_7b": (7_298_617_344, "allenai/OLMo-2-1124-7B-Instruct"),
    "olmo/olmo2_13b": (13_716_198_400, "allenai/OLMo-2-1124-13B-Instruct"),
    "olmo/olmo2_32b": (32_234_279_936, "allenai/OLMo-2-0325-32B-Instruct"),
    "internlm/internlm2_1_8b": (1_889_110_016, "internlm/internlm2_5-1_8b-chat"),
    "internlm/internlm2_7b": (7_737_708_544, "internlm/internlm2_5-7b-chat"),
    "internlm/internlm2_20b": (19_861_149_696, "internlm/internlm2-chat-20b"),
    "glm/glm4_9b": (9_399_951_360, "zai-org/glm-4-9b-chat-hf"),
    "deepseek/deepseek_v2_lite": (15_706_484_224, "deepseek-ai/DeepSeek-V2-Lite"),
    "deepseek/deepseek_v2": (235_741_434_880, "deepseek-ai/DeepSeek-V2.5, of the same shapes"),
    "gpt_neox/pythia_14m": (14_067_712, "EleutherAI/pythia-14m"),
    "gpt_neox/pythia_31m": (30_494_720, "EleutherAI/pythia-31m"),
    "bloom/bloom_560m": (559_214_592, "bigscience/bloom-560m"),
    "bloom/bloom_1_1b": (1_065_314_304, "bigscience/bloom-1b1"),
    "bloom/bloom_1_7b": (1_722_408_960, "bigscience/bloom-1b7"),
    "bloom/bloom_3b": (3_002_557_440, "bigscience/bloom-3b"),
    "bloom/bloom_176b": (176_247_271_424, "bigscience/bloom"),
    "phi/phi_1_5": (1_418_270_720, "microsoft/phi-1_5"),
    "phi/phi_2": (2_779_683_840, "microsoft/phi-2"),
    "phi/phi_3_mini": (3_821_079_552, "microsoft/Phi-3-mini-4k-instruct"),
    "phi/phi_3_medium": (13_960_238_080, "microsoft/Phi-3-medium-4k-instruct"),
    "starcoder/starcoder2_3b": (3_030_371_328, "bigcode/starcoder2-3b"),
    "starcoder/starcoder2_7b": (7_173_923_840, "bigcode/starcoder2-7b"),
    "stablelm/stablelm_3b": (2_795_443_200, "stabilityai/stablelm-3b-4e1t"),
    "stablelm/stablelm2_1_6b": (1_644_515_328, "stabilityai/stablelm-2-1_6b-chat"),
    "mamba/mamba_130m": (129_135_360, "state-spaces/mamba-130m-hf"),
    "mamba/mamba_370m": (371_516_416, "state-spaces/mamba-370m-hf"),
    "mamba/falcon_mamba_7b": (7_272_665_088, "tiiuae/falcon-mamba-7b-instruct"),
    "jamba/jamba_v0_1": (51_570_323_328, "ai21labs/AI21-Jamba-Mini-1.5, of the same shapes"),
}

# Counted by transformers 5.23 itself, built on torch's meta device from the same sizes:
# tests/parity/test_parameter_counts.py, which counts those above as well.
COUNTED = {
    "llama/llama1_7b": 6_738_415_616,
    "llama/llama1_13b": 13_015_864_320,
    "llama/llama1_33b": 32_528_943_616,
    "llama/llama1_65b": 65_285_660_672,
    "llama/llama2_70b": 68_976_648_192,
    "llama/chinese_llama_7b": 6_885_486_592,
    "llama/chinese_llama_13b": 13_199_703_040,
    "llama/chinese_llama2_7b": 6_929_256_448,
    "llama/chinese_llama2_13b": 13_254_415_360,
    "llama/colossal_llama2_7b": 7_042_371_584,
    "llama/colossal_llama2_13b": 13_395_809_280,
    "gpt2/small": 124_439_808,
    "gpt2/medium": 354_823_168,
    "gpt2/large": 774_030_080,
    "gpt2/xl": 1_557_611_200,
    "qwen/qwen1_5_0_5b": 463_987_712,
    "qwen/qwen1_5_72b": 72_287_920_128,
    "qwen/qwen3_0_6b": 596_049_920,
    "olmo/olmo_7b": 6_888_095_744,
    "internlm/internlm_7b": 7_321_948_160,
    "internlm/internlm_20b": 20_088_714_240,
    "baichuan/baichuan2_7b": 7_505_973_248,
    "baichuan/baichuan2_13b": 13_896_668_160,
    "dbrx/dbrx": 131_596_523_520,
    "gpt_neo/gpt_neo_125m": 125_198_592,
    "gpt_neo/gpt_neo_1_3b": 1_315_575_808,
    "gpt_neo/gpt_neo_2_7b": 2_651_307_520,
    "gptj/gptj_6b": 6_050_882_784,
    "gpt_neox/gpt_neox_20b": 20_554_567_680,
    "opt/opt_125m": 125_239_296,
    "opt/opt_350m": 331_196_416,
    "opt/opt_1_3b": 1_315_758_080,
    "opt/opt_2_7b": 2_651_596_800,
    "opt/opt_6_7b": 6_658_473_984,
    "opt/opt_13b": 12_853_473_280,
    "opt/opt_30b": 29_974_540_288,
    "opt/opt_66b": 65_719_701_504,
    "opt/opt_175b": 174_604_468_224,
    "bloom/bloom_7_1b": 7_069_016_064,
    "falcon/falcon_7b": 6_921_720_704,
    "falcon/falcon_40b": 41_303_293_952,
    "falcon/falcon_180b": 178_557_088_768,
    "falcon/falcon_rw_1b": 1_311_625_216,
    "mpt/mpt_7b": 6_649_286_656,
    "mpt/mpt_30b": 29_957_200_896,
    "phi/phi_4": 14_659_507_200,
    "starcoder/starcoder_1b": 1_137_207_296,
    "starcoder/starcoder_3b": 3_043_311_104,
    "starcoder/starcoder_7b": 7_327_263_232,
    "starcoder/starcoder_15b": 15_517_456_384,
    "starcoder/starcoder2_15b": 15_957_889_024,
    "stablelm/stablelm2_12b": 12_143_185_920,
    "mamba/mamba_790m": 793_204_224,
    "mamba/mamba_1_4b": 1_372_178_432,
    "mamba/mamba_2_8b": 2_768_345_600,
    "mamba/mamba2_130m": 128_989_632,
    "mamba/mamba2_370m": 368_346_624,
    "mamba/mamba2_780m": 780_161_280,
    "mamba/mamba2_1_3b": 1_343_757_312,
    "mamba/mamba2_2_7b": 2_702_599_680,
    "mamba/codestral_mamba_7b": 7_285_403_648,
    "jamba/jamba_1_5_large": 398_555_145_696,
    "rwkv/rwkv4_169m": 169_342_464,
    "rwkv/rwkv4_430m": 430_397_440,
    "rwkv/rwkv4_1_5b": 1_515_106_304,
    "rwkv/rwkv4_3b": 2_984_627_200,
    "rwkv/rwkv4_7b": 7_392_649_216,
    "rwkv/rwkv4_14b": 14_148_597_760,
    "t5/t5_small": 60_506_624,
    "t5/t5_base": 222_903_552,
    "t5/t5_large": 737_668_096,
    "t5/t5_3b": 2_851_598_336,
    "t5/t5_11b": 11_307_321_344,
    "t5/t5_v1_1_small": 76_961_152,
    "t5/t5_v1_1_base": 247_577_856,
    "t5/t5_v1_1_large": 783_150_080,
    "t5/t5_v1_1_xl": 2_849_757_184,
    "t5/t5_v1_1_xxl": 11_135_332_352,
    "t5/mt5_small": 300_176_768,
    "t5/mt5_base": 582_401_280,
    "t5/mt5_large": 1_229_581_312,
    "t5/mt5_xl": 3_742_619_648,
    "t5/mt5_xxl": 12_921_057_280,
    "bert/bert_base": 109_514_298,
    "bert/bert_large": 335_174_458,
    "bert/bert_base_chinese": 102_290_312,
    "bert/roberta_base": 124_697_433,
    "bert/roberta_large": 355_412_057,
}

STATED = {
    "baichuan/baichuan_7b": Published(
        7_000_559_616, "Baichuan-13B's model card, table of model details"
    ),
    "baichuan/baichuan_13b": Published(
        13_264_901_120, "Baichuan-13B's model card, table of model details"
    ),
    "glm/chatglm_6b": Published(
        6_173_286_400, "THUDM/chatglm-6b, 'all params' that peft prints of it"
    ),
    "glm/chatglm2_6b": Published(
        6_243_584_000, "THUDM/chatglm2-6b, 'Total params' that torchinfo prints of it"
    ),
    "glm/chatglm3_6b": Published(
        6_243_584_000, "THUDM/chatglm3-6b, 'Total params' that torchinfo prints of it"
    ),
    "glm/glm_130b": Published("130B", "arXiv 2210.02414, abstract", digits=2),
    "bgpt/bgpt_110m": Published("110M", "sanderwood/bgpt, its README"),
    "palm/palm_8b": Published("8.63B", "arXiv 2204.02311, table 1"),
    "palm/palm_62b": Published("62.50B", "arXiv 2204.02311, table 1"),
    "palm/palm_540b": Published("540.35B", "arXiv 2204.02311, table 1"),
    "grok/grok_1": Published(
        "314B", "xai-org/grok-1, its README; met by all but the embeddings", without="embed"
    ),
    "deepseek/deepseek_v3": Published("671B", "arXiv 2412.19437, abstract"),
    "gpt3/gpt3_125m": Published("125M", "arXiv 2005.14165, table D.1"),
    "gpt3/gpt3_350m": Published("356M", "arXiv 2005.14165, table D.1"),
    "gpt3/gpt3_760m": Published("760M", "arXiv 2005.14165, table D.1"),
    "gpt3/gpt3_1_3b": Published("1320M", "arXiv 2005.14165, table D.1", digits=3),
    "gpt3/gpt3_2_7b": Published("2650M", "arXiv 2005.14165, table D.1", digits=3),
    "gpt3/gpt3_6_7b": Published("6660M", "arXiv 2005.14165, table D.1", digits=3),
    "gpt3/gpt3_13b": Published("12850M", "arXiv 2005.14165, table D.1", digits=4),
    "gpt3/gpt3_175b": Published("174600M", "arXiv 2005.14165, table D.1", digits=4),
    "gpt_neox/pythia_70m": Published(
        70_426_624, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_160m": Published(
        162_322_944, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_410m": Published(
        405_334_016, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_1b": Published(
        1_011_781_632, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_1_4b": Published(
        1_414_647_808, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_2_8b": Published(
        2_775_208_960, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_6_9b": Published(
        6_857_302_016, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "gpt_neox/pythia_12b": Published(
        11_846_072_320, "arXiv 2304.01373, its repository's table of sizes"
    ),
    "yuan/yuan2_2_1b": Published("2.1B", "arXiv 2311.15786"),
    "yuan/yuan2_51b": Published("51B", "arXiv 2311.15786"),
    "yuan/yuan2_102b": Published("102.6B", "arXiv 2311.15786"),
}

# arXiv 2407.04620 names these by GPT-3's sizes and prints no counts: theirs are by hand, from
# (d_model, n_layers, n_heads, d_ff) of the released configs.
TTT_LINEAR = {
    "ttt/ttt_linear_125m": (768, 12, 12, 2048),
    "ttt/ttt_linear_350m": (1024, 24, 16, 2736),
    "ttt/ttt_linear_760m": (1536, 24, 16, 4096),
    "ttt/ttt_linear_1_3b": (2048, 24, 32, 5504),
}


def ttt_linear(d: int, layers: int, heads: int, d_ff: int) -> int:
    """Parameters of TTT-Linear in Mamba's backbone, with 32,000 tokens."""
    products = 4 * d * d + 3 * d * d_ff
    convolutions = 3 * (4 + 1) * d
    inner = d * (d // heads) + d + 2 * d + heads * (d + 1) + 16
    norms = 2 * d + 2 * d + d
    return layers * (products + convolutions + inner + norms) + d + 32_000 * d


# Models of our own.
OURS = {
    "llama/quickstart": 1_450_624,
    "llama/w1": 34_087_424,
}

PARAMETERS: dict[str, Published] = {
    **{k: Published(n, f"{repo}, its safetensors") for k, (n, repo) in SAFETENSORS.items()},
    **{k: Published(n, "transformers") for k, n in COUNTED.items()},
    **STATED,
    **{k: Published(ttt_linear(*sizes), "by hand") for k, sizes in TTT_LINEAR.items()},
    **{k: Published(n, "ours") for k, n in OURS.items()},
}
