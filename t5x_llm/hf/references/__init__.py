"""Forward passes in NumPy, one module a model_type, that share no code with ``nn``."""
