"""The command ``t5x-llm generate``: a model continues a text."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_model_arguments, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Continue texts with a run's newest checkpoint, or with a Hugging Face model.

  t5x-llm generate runs/quickstart --prompt "The President" --prompt "春风"
  echo "春风" | t5x-llm generate runs/quickstart --temperature 0

Without --prompt, every line of standard input is one. An encoder-decoder such as T5 reads the text
and writes its answer on the next line."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm generate``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""

    from t5x_llm.infer.sampler import Sampling

    default = Sampling()
    parser = plain_parser("t5x-llm generate", DESCRIPTION)
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", help="repeatable")
    parser.add_argument("--max_tokens", type=int, default=default.max_tokens)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--top_k", type=int, default=default.top_k, help="0 keeps all")
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--repetition_penalty", type=float, default=default.repetition_penalty)
    parser.add_argument("--stop", action="append", default=[], help="ends a text; repeatable")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations")
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm import api
    from t5x_llm.infer.sampler import Sampling

    args = build_parser().parse_args(argv)
    fields = {f.name for f in dataclasses.fields(Sampling)}
    values = {k: v for k, v in vars(args).items() if k in fields}
    sampling = Sampling(**values | {"stop": tuple(args.stop)})
    prompts = args.prompt or [line.rstrip("\n") for line in sys.stdin]
    model = api.load_model(args.path, args.step, args.dtype)

    def show(row: int, text: str) -> None:
        print(text, end="", flush=True)

    stream = show if len(prompts) == 1 and sys.stdout.isatty() else None
    between = "" if model.model.config.kind == "decoder" else "\n"
    if stream is not None:
        print(prompts[0], end=between, flush=True)
    done = api.generate(model, prompts, sampling, on_text=stream)
    if stream is not None:
        print()
        return
    for i, completion in enumerate(done):
        print(f"{'' if i == 0 else chr(10)}{completion.prompt}{between}{completion.text}")
