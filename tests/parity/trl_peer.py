"""TRL's supervised fine-tuning of a model on given batches, step by step."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import Any

import numpy as np

STEPS, ROWS, LENGTH, LEARNING_RATE = 50, 4, 32, 3e-3


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids [n] of a conversation, and where the answer that is learned begins."""

    ids: np.ndarray
    begin: int


def examples(vocab: int) -> list[list[Example]]:
    """Returns ``ROWS`` examples of unequal length for each of ``STEPS`` steps."""
    rng = np.random.default_rng(3)
    steps = []
    for _ in range(STEPS):
        rows = []
        for size in rng.integers(8, LENGTH, ROWS):
            start, noise = rng.integers(1, vocab), rng.integers(1, 3, size)
            ids = (1 + (start + np.cumsum(noise)) % (vocab - 1)).astype(np.int32)
            rows.append(Example(ids, int(rng.integers(1, size - 2))))
        steps.append(rows)
    return steps


def losses(directory: pathlib.Path, steps: list[list[Example]], lora: Any = None) -> list[float]:
    """Returns TRL's loss before each step.

    Args:
      directory: of the model, in Hugging Face's layout.
      steps: the examples of each step.
      lora: peft's configuration of adapters, or a model that has them; None trains all.
    """
    import datasets
    import torch
    import transformers
    import trl
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    processing = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w0"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    rows = [example for step in steps for example in step]
    data = datasets.Dataset.from_dict({
        "input_ids": [row.ids.tolist() for row in rows],
        "completion_mask": [[int(i >= row.begin) for i in range(len(row.ids))] for row in rows],
    })  # fmt: skip
    found: list[float] = []

    class Recording(trl.SFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            found.append(float((result[0] if isinstance(result, tuple) else result).detach()))
            return result

    with tempfile.TemporaryDirectory() as output:
        settings = trl.SFTConfig(
            output_dir=output, max_steps=len(steps), per_device_train_batch_size=ROWS,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0,
            adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=0.0,
            max_grad_norm=1.0, optim="adamw_torch", train_sampling_strategy="sequential",
            shuffle_dataset=False, completion_only_loss=True, max_length=None, packing=False,
            loss_type="nll", use_cpu=True, bf16=False, fp16=False, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0,
            gradient_checkpointing=False,
        )  # fmt: skip
        Recording(
            model, args=settings, train_dataset=data, processing_class=processing, peft_config=lora
        ).train()
    return found
