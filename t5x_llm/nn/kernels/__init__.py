"""Forms of the heavy operations by platform: the rest of ``nn`` calls these, and asks for none.

Which form is taken depends on the devices that a computation is traced for (``parallel.platform``):
TPUs have Pallas kernels, GPUs cuDNN's, a single CPU device the products that XLA's CPU backend is
fast at. Every form gives the same numbers up to rounding.
"""

from t5x_llm.nn.kernels.attention import attend
from t5x_llm.nn.kernels.attention_mask import Bias, score_rows
from t5x_llm.nn.kernels.chunks import scan_chunks
from t5x_llm.nn.kernels.grouped import block_size, exchange, grouped_product
from t5x_llm.nn.kernels.products import linear, one_cpu
from t5x_llm.nn.kernels.rotation import turn_whole, turns_whole
from t5x_llm.nn.kernels.saving import keep, keeps_bits

__all__ = [
    "Bias",
    "attend",
    "block_size",
    "exchange",
    "grouped_product",
    "keep",
    "keeps_bits",
    "linear",
    "one_cpu",
    "scan_chunks",
    "score_rows",
    "turn_whole",
    "turns_whole",
]
