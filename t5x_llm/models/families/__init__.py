"""Model families: presets of the generic decoder, each with its weight map."""

from __future__ import annotations

from typing import Any

from t5x_llm.models.families.gpt2 import GPT2
from t5x_llm.models.families.llama import Llama

# Hugging Face's model_type to the family that reads it.
FAMILIES: dict[str, Any] = {family.hf_type: family for family in (Llama, GPT2)}
