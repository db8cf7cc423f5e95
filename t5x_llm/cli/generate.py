"""The command ``t5x-llm generate``: a model continues a text."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from t5x_llm.cli.arguments import add_adapter, add_model_arguments, plain_parser
from t5x_llm.cli.main import guard

DESCRIPTION = """Continue texts with a run's newest checkpoint, or with a Hugging Face model.

  t5x-llm generate runs/quickstart --prompt "The President" --prompt "春风"
  t5x-llm generate models/base --adapter runs/lora/adapter --prompt "Hello"
  echo "春风" | t5x-llm generate runs/quickstart --temperature 0

Without --prompt, every line of standard input is one. An encoder-decoder such as T5 reads the text
and writes its answer on the next line.

A text ends at every token that generation_config.json (or config.json) lists as eos_token_id, and
at the tokenizer's own. Flags that are left out are as generation_config.json says (do_sample,
temperature, top_k, top_p, repetition_penalty, max_new_tokens, stop_strings), read as transformers
reads it: greedy without do_sample, top_k 50 where sampling does not say. Where the file says
nothing of sampling, and for a run that began from no other model: temperature 0.8, top_p 0.95. A
run that started from a model (Run.start_from) keeps that model's settings, and so does its
export."""

# Where neither a flag nor the model's files say how texts are drawn.
DEFAULTS = {"temperature": 0.8, "top_p": 0.95}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command ``t5x-llm generate``."""
    guard(_main, sys.argv[1:] if argv is None else list(argv))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's own flags."""

    from t5x_llm.infer.sampler import Sampling

    default = Sampling()
    parser = plain_parser("t5x-llm generate", DESCRIPTION)
    add_model_arguments(parser)
    add_adapter(parser)
    parser.add_argument("--prompt", action="append", help="repeatable")
    model = "as the model's files say, else"
    tokens = f"{model} {default.max_tokens}"
    parser.add_argument("--max_tokens", type=int, help=tokens)
    parser.add_argument(
        "--temperature", type=float, help=f"0 is greedy; {model} {DEFAULTS['temperature']}"
    )
    parser.add_argument("--top_k", type=int, help=f"0 keeps all; {model} {default.top_k}")
    parser.add_argument("--top_p", type=float, help=f"1 keeps all; {model} {DEFAULTS['top_p']}")
    parser.add_argument("--repetition_penalty", type=float, help=f"1 is off; {model} off")
    parser.add_argument("--stop", action="append", help="ends a text; repeatable")
    parser.add_argument("--seed", type=int, help=f"{default.seed} if none")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations")
    return parser


def _main(argv: Sequence[str]) -> None:
    from t5x_llm import api
    from t5x_llm.hf.generation import unsupported
    from t5x_llm.infer.sampler import Sampling
    from t5x_llm.run.use import sampling_for

    args = build_parser().parse_args(argv)
    fields = {f.name for f in dataclasses.fields(Sampling)}
    given = {k: v for k, v in vars(args).items() if k in fields and v is not None}
    if args.stop is not None:
        given["stop"] = tuple(args.stop)
    Sampling(**given)  # a wrong flag is told before the model is read
    prompts = args.prompt or [line.rstrip("\n") for line in sys.stdin]
    model = api.load_model(args.path, args.step, args.dtype, adapter=args.adapter)
    sampling = sampling_for(model.generation, given, DEFAULTS)
    for name, value in unsupported(model.generation).items():
        print(
            f"note: generate does not follow {name} = {value!r} of the model's "
            "generation_config.json; transformers does.",
            file=sys.stderr,
        )

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
