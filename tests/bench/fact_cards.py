"""Fact cards: answers of a model in a format that fine-tuning taught, on entities it has not seen.

    .venv-parity/bin/python tests/bench/fact_cards.py MODEL [--adapter DIR] [--peer 8]

MODEL is a Hugging Face directory, ``data/dialogues/heldout.jsonl`` holds the questions. An answer
is in the format if it has the lines of its kind of card and no other ("Name: ...", "Kind: ..." and
two more), and right if all of them are the expected ones. With ``--peer N`` transformers with peft
answers the first N of them too, greedily in float32 as we do, and answers that differ are counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DIALOGUES = Path(__file__).parents[2] / "data" / "dialogues" / "heldout.jsonl"
TOKENS = 64


def cards() -> list[dict[str, Any]]:
    """Returns the held-out conversations that ask for a card."""
    rows = [json.loads(line) for line in DIALOGUES.read_text("utf-8").splitlines()]
    return [row for row in rows if row["id"].endswith("/card")]


def names(text: str) -> list[str]:
    """Returns what stands before the colon of each line; '' where there is none."""
    lines = text.strip().replace("：", ":").splitlines()
    return [line.partition(":")[0] if ":" in line else "" for line in lines]


def peer_answers(model: str, adapter: str | None, prompts: list[list[int]], end: int) -> list[str]:
    """Returns the greedy answers of transformers, with the adapter by peft."""
    import torch
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    if adapter is not None:
        import peft

        net = peft.PeftModel.from_pretrained(net, adapter)
    answers = []
    for ids in prompts:
        out = net.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        answers.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    return answers


def main() -> None:
    """Prints the counts and an example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--adapter")
    parser.add_argument("--peer", type=int, default=0, help="answers compared with transformers'")
    args = parser.parse_args()

    from t5x_llm.infer.decode import generate_ids
    from t5x_llm.infer.sampling import Sampling
    from t5x_llm.run.load import load
    from t5x_llm.text.chat import Conversation, Message, encode_prompt, prove, template_for

    loaded = load(args.model, adapter=args.adapter)
    tokenizer = loaded.tokenizer
    template = template_for("auto", tokenizer)
    end = prove(template, tokenizer).stop_id
    asked = cards()
    prompts = [
        encode_prompt(
            template, tokenizer,
            Conversation(tuple(Message(m["role"], m["content"]) for m in row["messages"][:1])),
        )
        for row in asked
    ]  # fmt: skip
    greedy = Sampling(max_tokens=TOKENS, temperature=0.0)
    made = generate_ids(loaded.model, loaded.params, prompts, greedy, end_ids=[end])
    answers = [tokenizer.decode(samples[0].tokens).strip() for samples in made]
    wanted = [row["messages"][1]["content"] for row in asked]
    form = sum(names(a) == names(w) for a, w in zip(answers, wanted, strict=True))
    right = sum(a == w for a, w in zip(answers, wanted, strict=True))
    print(f"{len(asked)} cards: {form} in the format, {right} right in every line")
    print(f"asked: {asked[0]['messages'][0]['content']}\nanswered:\n{answers[0]}")
    if args.peer:
        theirs = peer_answers(args.model, args.adapter, prompts[: args.peer], end)
        same = sum(a.strip() == b for a, b in zip(theirs, answers, strict=False))
        print(f"transformers and peft: {same} of {args.peer} answers are the same")


if __name__ == "__main__":
    main()
