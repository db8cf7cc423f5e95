"""t5x_llm: from raw text to a trained, aligned, evaluated and exported language model."""

__version__ = "0.1.0"
