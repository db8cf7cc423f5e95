"""Fine-tuning steps by TRL and peft. Run by tuning.py, one process for each measurement.

Reads one line for each step on stdin and answers with one JSON line.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

from answering import answer


def main() -> None:
    """argv: directory of the model, full or lora, dtype, B, T, threads."""
    begin = time.perf_counter()
    directory, method, dtype, rows, length, threads = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = threads
    import datasets
    import numpy as np
    import peft
    import torch
    import transformers
    import trl

    torch.set_num_threads(int(threads))
    b, t = int(rows), int(length)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype)
    )
    processing = transformers.AutoTokenizer.from_pretrained(directory)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (b, t)).astype(np.int64))
    settings = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=b, max_length=None,
        learning_rate=1e-4, use_cpu=True, bf16=dtype == "bfloat16", report_to="none",
        gradient_checkpointing=False, disable_tqdm=True, shuffle_dataset=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model, args=settings, processing_class=processing,
        train_dataset=datasets.Dataset.from_dict({"input_ids": ids.tolist()}),
        peft_config=lora if method == "lora" else None,
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    inputs = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}

    def step() -> float:
        loss = trainer.training_step(trainer.model, dict(inputs), torch.tensor(b * (t - 1)))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    answer(begin, step)


if __name__ == "__main__":
    main()
