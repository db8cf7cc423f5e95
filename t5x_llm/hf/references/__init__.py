"""Forward passes in NumPy, one module a model_type, that share no code with ``nn``."""

# Hugging Face's model_type to the module, whose function of the same name computes the logits.
MODULES: dict[str, str] = {
    "baichuan": "baichuan",
    "bert": "bert",
    "bgpt": "bgpt",
    "chatglm": "chatglm",
    "glm130b": "glm130b",
    "grok-1": "grok_1",
    "internlm": "internlm",
    "internlm2": "internlm2",
    "mt5": "mt5",
    "palm": "palm",
    "roberta": "roberta",
    "t5": "t5",
    "ttt": "ttt",
    "yuan": "yuan",
}
