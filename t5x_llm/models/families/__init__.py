"""Model families: presets of the generic stacks, each with its weight map."""

from __future__ import annotations

from t5x_llm.models.families.baichuan import Baichuan
from t5x_llm.models.families.bert import Bert
from t5x_llm.models.families.bgpt import BGPT
from t5x_llm.models.families.bloom import Bloom
from t5x_llm.models.families.dbrx import Dbrx
from t5x_llm.models.families.deepseek import DeepseekV2, DeepseekV3
from t5x_llm.models.families.falcon import Falcon
from t5x_llm.models.families.falcon_mamba import FalconMamba
from t5x_llm.models.families.gemma import Gemma, Gemma2
from t5x_llm.models.families.glm import ChatGLM, ChatGLM1, Glm
from t5x_llm.models.families.glm130b import Glm130B
from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.gpt_neo import GPTNeo
from t5x_llm.models.families.gpt_neox import GPTNeoX
from t5x_llm.models.families.gptj import GPTJ
from t5x_llm.models.families.grok import Grok1
from t5x_llm.models.families.internlm import InternLM, InternLM2
from t5x_llm.models.families.jamba import Jamba
from t5x_llm.models.families.llama import Llama
from t5x_llm.models.families.mamba import Mamba
from t5x_llm.models.families.mamba2 import Mamba2
from t5x_llm.models.families.mistral import Mistral
from t5x_llm.models.families.mixtral import Mixtral
from t5x_llm.models.families.mpt import MPT
from t5x_llm.models.families.olmo import Olmo, Olmo2
from t5x_llm.models.families.opt import OPT
from t5x_llm.models.families.palm import PaLM
from t5x_llm.models.families.phi import Phi, Phi3
from t5x_llm.models.families.qwen import Qwen2, Qwen3
from t5x_llm.models.families.qwen_moe import Qwen2Moe, Qwen3Moe
from t5x_llm.models.families.roberta import Roberta
from t5x_llm.models.families.rwkv import RWKV
from t5x_llm.models.families.stablelm import StableLM
from t5x_llm.models.families.starcoder import StarCoder, StarCoder2
from t5x_llm.models.families.t5 import MT5, T5
from t5x_llm.models.families.ttt import TTTLinear
from t5x_llm.models.families.yuan import Yuan
from t5x_llm.models.family import Family

# Hugging Face's model_type to the family that reads it.
FAMILIES: dict[str, type[Family]] = {
    "baichuan": Baichuan,
    "bert": Bert,
    "bgpt": BGPT,
    "bloom": Bloom,
    "dbrx": Dbrx,
    "deepseek_v2": DeepseekV2,
    "deepseek_v3": DeepseekV3,
    "falcon": Falcon,
    "falcon_mamba": FalconMamba,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "glm": Glm,
    "chatglm": ChatGLM,
    "chatglm_6b": ChatGLM1,
    "glm130b": Glm130B,
    "gpt2": GPT2,
    "gpt_neo": GPTNeo,
    "gpt_neox": GPTNeoX,
    "gptj": GPTJ,
    "grok-1": Grok1,
    "internlm": InternLM,
    "internlm2": InternLM2,
    "jamba": Jamba,
    "llama": Llama,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mistral": Mistral,
    "mixtral": Mixtral,
    "mpt": MPT,
    "olmo": Olmo,
    "olmo2": Olmo2,
    "opt": OPT,
    "palm": PaLM,
    "phi": Phi,
    "phi3": Phi3,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen2_moe": Qwen2Moe,
    "qwen3_moe": Qwen3Moe,
    "roberta": Roberta,
    "rwkv": RWKV,
    "stablelm": StableLM,
    "gpt_bigcode": StarCoder,
    "starcoder2": StarCoder2,
    "t5": T5,
    "mt5": MT5,
    "ttt": TTTLinear,
    "yuan": Yuan,
}
