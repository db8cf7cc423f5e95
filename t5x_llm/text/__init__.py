"""Text to token ids and back: train, load, save."""

from t5x_llm.text.load import load_tokenizer
from t5x_llm.text.tokenizer import Tokenizer
from t5x_llm.text.training import TokenizerTraining, train_tokenizer

__all__ = ["Tokenizer", "TokenizerTraining", "load_tokenizer", "train_tokenizer"]
