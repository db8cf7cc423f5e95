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
    "palm/palm_8b": Published("8.63B", "arXiv 2204.02311, table 1"),
    "palm/palm_62b": Published("62.50B", "arXiv 2204.02311, table 1"),
    "palm/palm_540b": Published("540.35B", "arXiv 2204.02311, table 1"),
    "grok/grok_1": Published(
        "314B", "xai-org/grok-1, its README; met by all but the embeddings", without="embed"
    ),
    "deepseek/deepseek_v3": Published("671B", "arXiv 2412.19437, abstract"),
}

# Models of our own.
OURS = {
    "llama/quickstart": 1_450_624,
    "llama/w1": 34_087_424,
}

PARAMETERS: dict[str, Published] = {
    **{k: Published(n, f"{repo}, its safetensors") for k, (n, repo) in SAFETENSORS.items()},
    **{k: Published(n, "transformers") for k, n in COUNTED.items()},
    **STATED,
    **{k: Published(n, "ours") for k, n in OURS.items()},
}
