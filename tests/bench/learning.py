"""Learning for the time spent: held-out bits per byte after a fixed time of training on the CPU.

    .venv-parity/bin/python tests/bench/learning.py --peer               # every setting, 150 s each
    .venv-parity/bin/python tests/bench/learning.py --peer --settings 0 --seconds 5
    .venv-parity/bin/python tests/bench/learning.py --nanochat           # nanochat's recipe
    .venv/bin/python tests/bench/learning.py --ours                      # the quickstart recipe
    .venv/bin/python tests/bench/learning.py                             # xz and the corpus alone

Our side is the quickstart recipe as it stands but for the number of steps, which is set so that it
takes the same time: a newcomer's defaults are what is measured.

The peers are transformers' LLaMA and nanochat's recipe in torch, bf16 autocast; where a CPU has no
bfloat16 arithmetic, --float32 has both sides compute in float32. Each side gets the shipped text,
the same tokenizer and the same held-out documents, which are predicted in full, end-of-text
included, in windows of T tokens: what ``t5x_llm.evaluate.perplexity`` computes. The clock starts
before the first step, which compiles on our side and takes torch seconds as well; imports,
tokenization and evaluation are not counted. Results go to --out as JSON lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t5x_llm.data.record import Record, split_of
from t5x_llm.text import Tokenizer, TokenizerTraining, load_tokenizer, train_tokenizer

DATA = Path(__file__).parents[2] / "data"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A peer model and how it is trained; the feed-forward is 8/3 d, rounded up to 64."""

    d_model: int
    layers: int
    batch: int
    lr: float
    tied: bool = True

    @property
    def heads(self) -> int:
        return max(self.d_model // 64, 4 if self.d_model < 256 else 1)

    @property
    def d_ff(self) -> int:
        return -(-self.d_model * 8 // 3 // 64) * 64


GRID = (
    Setting(256, 4, 4, 4e-3),
    Setting(256, 4, 4, 4e-3, tied=False),
    Setting(256, 4, 2, 3e-3),
    Setting(256, 6, 4, 3e-3),
    Setting(384, 4, 4, 3e-3),
    Setting(384, 6, 8, 2e-3),
    Setting(512, 8, 8, 1e-3, tied=False),
    Setting(128, 4, 4, 6e-3),
    Setting(128, 4, 4, 1e-2),
    Setting(128, 2, 4, 6e-3),
    Setting(64, 2, 8, 1e-2),
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The shipped text as both sides see it.

    Attributes:
      train, held_out: texts by language, in the order of the files.
    """

    train: dict[str, list[str]]
    held_out: dict[str, list[str]]

    @classmethod
    def read(cls, fraction: float) -> Corpus:
        """Splits the documents as the token store does: by hash of the text."""
        parts: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}}
        files = json.loads((DATA / "manifest.json").read_text("utf-8"))["files"]
        for file, entry in files.items():
            for line in (DATA / file).read_text("utf-8").rstrip("\n").split("\n"):
                text = json.loads(line)["text"]
                split = split_of(Record(text, 0, 0).digest(), fraction)
                parts[split].setdefault(entry["language"], []).append(text)
        return cls(parts["train"], parts["validation"])

    def tokenizer(self, path: str | None) -> Tokenizer:
        """The one at ``path``, or one trained on the documents trained on."""
        if path:
            return load_tokenizer(path)
        texts = [t for group in self.train.values() for t in group]
        with tempfile.TemporaryDirectory() as out:
            return train_tokenizer(TokenizerTraining(), texts, out)


def documents(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """[bos] ids [eos] of each text."""
    encoded = tokenizer.encode_batch(texts, threads=2)
    return [np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int64) for ids in encoded]


def blocks(docs: list[np.ndarray], length: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of ``length`` + 1 tokens without end: documents shuffled, joined, cut; rows shuffled."""
    rng = np.random.default_rng(seed)
    while True:
        stream = np.concatenate([docs[i] for i in rng.permutation(len(docs))])
        rows = len(stream) // (length + 1)
        yield from rng.permutation(stream[: rows * (length + 1)].reshape(rows, length + 1))


def windows(doc: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets that predict every token but the first, ``length`` at a time."""
    for start in range(0, len(doc) - 1, length):
        stop = min(start + length, len(doc) - 1)
        yield doc[start:stop], doc[start + 1 : stop + 1]


def xz_bits_per_byte(texts: list[str], context: list[str] | None = None) -> float:
    """Bits that xz -9e needs for a byte of ``texts``, joined by empty lines.

    Args:
      texts: to compress, together.
      context: texts that the decompressor has already: what they take alone is subtracted.
    """
    held_out = "\n\n".join(texts).encode()
    before = "\n\n".join(context).encode() + b"\n\n" if context else b""
    size = _xz(before + held_out) - (_xz(before) if before else 0)
    return 8 * size / sum(len(t.encode()) for t in texts)


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


class Peer:
    """transformers' LLaMA, trained by torch.

    Args:
      setting: the model and its training.
      tokenizer: for sizes and special tokens.
      length: tokens in a row, T.
      bfloat16: whether products are computed in bfloat16.
    """

    def __init__(self, setting: Setting, tokenizer: Tokenizer, length: int, bfloat16: bool):
        import torch
        import transformers

        torch.manual_seed(0)
        torch.set_num_threads(2)
        self.setting, self.length, self.bfloat16 = setting, length, bfloat16
        config = transformers.LlamaConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=setting.d_model,
            num_hidden_layers=setting.layers, num_attention_heads=setting.heads,
            num_key_value_heads=setting.heads, intermediate_size=setting.d_ff,
            max_position_embeddings=length, tie_word_embeddings=setting.tied, use_cache=False,
            bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        )  # fmt: skip
        self.model: Any = transformers.LlamaForCausalLM(config)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def train(self, docs: list[np.ndarray], seconds: float, warmup: int = 100) -> dict[str, Any]:
        """Trains for ``seconds``; the learning rate falls linearly to nothing at their end."""
        import torch

        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, self.setting.lr, (0.9, 0.95), weight_decay=0.1)
        rows = blocks(docs, self.length, seed=0)
        self.model.train()
        step, loss, first, start = 0, math.nan, math.nan, time.monotonic()
        while (spent := time.monotonic() - start) < seconds:
            rate = self.setting.lr * min(1.0, (step + 1) / warmup) * (1 - spent / seconds)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = np.stack([next(rows) for _ in range(self.setting.batch)])
            nll = self._nll(batch[:, :-1], batch[:, 1:]).mean()
            nll.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, loss = step + 1, nll.item()
            first = time.monotonic() - start if step == 1 else first
        spent = time.monotonic() - start
        tokens = step * self.setting.batch * self.length
        return {"steps": step, "tokens": tokens, "seconds": round(spent, 1),
                "first_step_seconds": round(first, 1), "loss": round(loss, 3),
                "tokens_per_second": round(tokens / spent)}  # fmt: skip

    def bits(self, docs: list[np.ndarray]) -> float:
        """Bits of the documents in full, begin-of-text given, end-of-text predicted."""
        import torch

        pieces = sorted((w for d in docs for w in windows(d, self.length)), key=lambda w: len(w[0]))
        self.model.eval()
        nats = 0.0
        with torch.no_grad():
            for at in range(0, len(pieces), 16):
                group = pieces[at : at + 16]
                longest = len(group[-1][0])
                inputs = np.zeros((len(group), longest), np.int64)
                targets = np.full((len(group), longest), -100, np.int64)
                for row, (given, predicted) in enumerate(group):
                    inputs[row, : len(given)], targets[row, : len(given)] = given, predicted
                nats += self._nll(inputs, targets).double().sum().item()
        return nats / math.log(2)

    def _nll(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(torch.from_numpy(inputs)).logits
        flat = logits.float().flatten(0, 1)
        goal = torch.from_numpy(targets).flatten()
        return torch.nn.functional.cross_entropy(flat, goal, ignore_index=-100, reduction="none")


class Ours:
    """The quickstart recipe, trained by our own loop.

    Args:
      bindings: gin bindings on top of the recipe.
    """

    def __init__(self, bindings: list[str]):
        from t5x_llm.config import parse_flags
        from t5x_llm.run.config import load_run

        recipe = DATA.parent / "configs/recipes/quickstart.gin"
        flags = [f"--gin_file={recipe}", *(f"--gin_bindings={b}" for b in bindings)]
        self.run, _ = load_run(parse_flags(flags))

    def train(self, seconds: float) -> dict[str, Any]:
        """Trains so many steps that it takes about ``seconds``; the first step compiles in them."""
        speed = self._steps(200, 0.0)
        steps = int((seconds - speed["first_step_seconds"]) / speed["step_seconds"])
        return self._steps(steps, speed["step_seconds"])

    def _steps(self, steps: int, expected: float) -> dict[str, Any]:
        import jax

        from t5x_llm.core.rng import named_key
        from t5x_llm.data.positions import DataState
        from t5x_llm.evaluate.perplexity import Evaluator
        from t5x_llm.run.assembled import assemble
        from t5x_llm.run.data import held_out, open_data
        from t5x_llm.train.feed import StreamFeed
        from t5x_llm.train.state import init_state

        run, data = self.run, open_data(self.run)
        run = dataclasses.replace(run, loop=dataclasses.replace(run.loop, steps=steps))
        made = assemble(run, data=data)
        step = made.make_step(guarded=False)
        state = init_state(made.task, made.tx, named_key(run.loop.seed, "params"), made.placement)
        jax.block_until_ready(state)
        start = first = time.monotonic()
        feed = StreamFeed(data.stream, run.loop.size_at, made.placement)
        with feed(DataState()) as batches:
            for i in range(steps):
                state, metrics = step(state, next(batches).batch)
                if i == 0:
                    jax.block_until_ready(metrics)
                    first = time.monotonic()
            loss = float(metrics["loss"])
        end = time.monotonic()
        found = {
            "steps": steps, "tokens": steps * run.loop.batch_size * run.loop.sequence_length,
            "seconds": round(end - start, 1), "first_step_seconds": round(first - start, 1),
            "step_seconds": (end - first) / max(steps - 1, 1), "loss": round(loss, 3),
        }  # fmt: skip
        if expected:
            length, rows = run.loop.sequence_length, run.evaluation.batch_size
            evaluator = Evaluator(made.model, made.mesh, made.rules, length, rows)
            results = evaluator(state.params, held_out(data.opened))
            scores = {k: results[k]["bits_per_byte"] for k in ("en_sotu", "zh")}
            found["bits_per_byte"] = {k[:2]: round(v, 4) for k, v in scores.items()}
            found["tokens_per_second"] = round(found["tokens"] / (end - start))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", action="store_true", help="train the peer (needs torch)")
    parser.add_argument("--nanochat", action="store_true", help="train it (needs torch)")
    parser.add_argument("--float32", action="store_true", help="compute in it, not in bfloat16")
    parser.add_argument("--ours", action="store_true", help="train the quickstart recipe")
    parser.add_argument("--gin_bindings", action="append", default=[], help="on top of the recipe")
    parser.add_argument("--settings", type=int, nargs="*", help="indices into GRID; all if absent")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--length", type=int, default=256, help="tokens in a row, T")
    parser.add_argument("--held_out", type=float, default=0.03, help="Data.validation_fraction")
    parser.add_argument("--tokenizer", help="directory; trained on the training text if absent")
    parser.add_argument("--out", default="runs/bench/learning.jsonl")
    args = parser.parse_args()

    corpus = Corpus.read(args.held_out)
    sizes = {k: sum(len(t.encode()) for t in v) for k, v in corpus.held_out.items()}
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)

    def report(side: str, **values: Any) -> None:
        line = json.dumps({"side": side, "held_out_bytes": sizes} | values)
        print(line, flush=True)
        with out.open("a") as file:
            file.write(line + "\n")

    report("xz -9e", bits_per_byte={k: xz_bits_per_byte(v) for k, v in corpus.held_out.items()})
    known = {k: xz_bits_per_byte(v, corpus.train[k]) for k, v in corpus.held_out.items()}
    report("xz -9e given the training text", bits_per_byte=known)
    if args.ours:
        bindings = [*args.gin_bindings, *(["Policy.compute='float32'"] if args.float32 else [])]
        report("t5x_llm", bindings=bindings, **Ours(bindings).train(args.seconds))
    if not (args.peer or args.nanochat):
        return
    tokenizer = corpus.tokenizer(args.tokenizer)
    train = [d for v in corpus.train.values() for d in documents(v, tokenizer)]
    held_out = {k: documents(v, tokenizer) for k, v in corpus.held_out.items()}

    def compare(side: str, grid: tuple[Any, ...], make: Callable[..., Any]) -> None:
        for index in args.settings if args.settings is not None else range(len(grid)):
            peer = make(grid[index], tokenizer, args.length, not args.float32)
            trained = peer.train(train, args.seconds)
            scores = {k: round(peer.bits(v) / sizes[k], 4) for k, v in held_out.items()}
            setting = dataclasses.asdict(grid[index]) | {"parameters": peer.parameters}
            report(side, setting=setting, bits_per_byte=scores, **trained)

    if args.peer:
        compare("transformers + torch", GRID, Peer)
    if args.nanochat:
        from learning_nanochat import NANOCHAT_GRID, Nanochat

        compare("nanochat", NANOCHAT_GRID, Nanochat)


if __name__ == "__main__":
    main()
