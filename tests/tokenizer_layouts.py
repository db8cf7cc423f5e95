"""Small tokenizers in every layout in which model directories bring one."""

import base64
import io
import json

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from t5x_llm.text.vocabularies import LLAMA3, QWEN2

CORPUS = [
    "The harbour master counted the boats twice before the fog came down over the quay. ",
    "春天的早晨，老木匠把窗户推开，屋外的桃花已经落了一地。",
    "def f(x):\n    return x + 1\n",
    "It's 2024; 12345 boats, naïve café.\r\n\r\n",
] * 20
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def write(directory, **files):
    """Writes files whose names have ``__`` for the dot; objects as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def byte_level(pattern=None, special=(), size=600, **model):
    """A byte-level tokenizer of the tokenizers library; special tokens come first."""
    made = tokenizers.Tokenizer(models.BPE(**model))
    made.decoder = decoders.ByteLevel()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        regex = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([regex, plain])
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(CORPUS, trainer)
    return made


def pair(made):
    """vocab.json and merges.txt of a byte-level tokenizer."""
    model = json.loads(made.to_str())["model"]
    lines = ["#version: 0.2", *(" ".join(m) for m in model["merges"]), ""]
    return {"vocab__json": model["vocab"], "merges__txt": "\n".join(lines)}


def sentencepiece_model(kind="bpe", size=500, **options):
    """A model file; LLaMA's settings unless told otherwise."""
    written = io.BytesIO()
    settings = dict(
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.98,
    )  # fmt: skip
    lines = [line for text in CORPUS[:4] for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9), model_writer=written, model_type=kind, vocab_size=size,
        hard_vocab_limit=False, minloglevel=2, **(settings | options),
    )  # fmt: skip
    return written.getvalue()


def unigram(**options):
    """A model file with T5's settings."""
    return sentencepiece_model(
        "unigram", 180, byte_fallback=False, normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True, **options,
    )  # fmt: skip


def added(first, *names):
    return {str(i): {"content": n, "special": True} for i, n in enumerate(names, start=first)}


# Each writes a directory. What transformers makes of it is the reference.
def gpt2(at):
    made = byte_level(special=["<|endoftext|>"])
    write(at, **pair(made), config__json={"model_type": "gpt2", "vocab_size": 600},
          tokenizer_config__json={"model_max_length": 1024})  # fmt: skip


def opt(at):
    made = byte_level(special=["<s>", "<pad>", "</s>", "<unk>"])
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    write(at, **pair(made), config__json={"model_type": "opt", "vocab_size": 600},
          special_tokens_map__json=names, tokenizer_config__json={
              **names, "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True})  # fmt: skip


def roberta(at):
    made = byte_level(special=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    write(at, **pair(made), config__json={"model_type": "roberta", "vocab_size": 600},
          tokenizer_config__json={"model_max_length": 512})  # fmt: skip


def qwen2(at):
    made = byte_level(QWEN2)
    n = made.get_vocab_size()
    config = {
        "added_tokens_decoder": added(n, "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE,
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "model_max_length": 32768,
    }  # fmt: skip
    write(at, **pair(made), config__json={"model_type": "qwen2"}, tokenizer_config__json=config)


def bert(at, lower=True):
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    pieces = sorted(made.get_vocab().items(), key=lambda item: item[1])
    write(at, vocab__txt="".join(p + "\n" for p, _ in pieces), config__json={"model_type": "bert"},
          tokenizer_config__json={"do_lower_case": lower, "model_max_length": 512})  # fmt: skip


def bert_cased(at):
    bert(at, lower=False)


def llama(at):
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "pad_token": "</s>", "add_bos_token": False, "legacy": False,
        "chat_template": TEMPLATE, "model_max_length": 4096,
    }  # fmt: skip
    write(at, tokenizer__model=sentencepiece_model(), tokenizer_config__json=config,
          config__json={"model_type": "llama"})  # fmt: skip


def llama_chat(at):
    """Tokens added after the pieces, as chat models have them."""
    model = sentencepiece_model()
    n = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|im_end|>",
        "unk_token": "<unk>", "pad_token": "<|pad|>", "legacy": False, "add_bos_token": True,
        "added_tokens_decoder": added(0, "<unk>", "<s>", "</s>")
        | added(n, "<|im_start|>", "<|im_end|>", "<|pad|>"),
    }  # fmt: skip
    write(at, tokenizer__model=model, tokenizer_config__json=config,
          config__json={"model_type": "llama"}, chat_template__jinja=TEMPLATE)  # fmt: skip


def t5(at):
    model = unigram(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write(at, spiece__model=model, config__json={"model_type": "t5"}, tokenizer_config__json={
        **names, "tokenizer_class": "T5Tokenizer", "extra_ids": 100,
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]})  # fmt: skip


def xlm_roberta(at):
    write(at, sentencepiece__bpe__model=unigram(), config__json={"model_type": "xlm-roberta"},
          tokenizer_config__json={"model_max_length": 512})  # fmt: skip


def llama3(at):
    made = byte_level(LLAMA3, ignore_merges=True)
    n = made.get_vocab_size()
    made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = "<|begin_of_text|>"
    made.post_processor = tokenizers.processors.TemplateProcessing(
        f"{begin} $A", special_tokens=[(begin, n)]
    )
    config = {
        "bos_token": begin, "eos_token": "<|end_of_text|>", "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072,
    }  # fmt: skip
    write(at, tokenizer__json=made.to_str(), tokenizer_config__json=config,
          config__json={"model_type": "llama"})  # fmt: skip


def llama3_tiktoken(at):
    """With the tiktoken file that tokenizer.json was made from beside it."""
    llama3(at)
    lines = [base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(256)]
    write(at, tokenizer__model=b"".join(lines))


def qwen3(at):
    made = byte_level(QWEN2)
    made.normalizer = normalizers.NFC()
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens(["<tool_call>", "</tool_call>"])
    write(at, tokenizer__json=made.to_str(), **pair(made), config__json={"model_type": "qwen3"},
          tokenizer_config__json={
              "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
              "add_bos_token": False, "chat_template": TEMPLATE, "unk_token": None,
              "tokenizer_class": "Qwen2Tokenizer"})  # fmt: skip


ALL = (
    *(gpt2, opt, roberta, qwen2, bert, bert_cased, llama, llama_chat, t5, xlm_roberta),
    *(llama3, llama3_tiktoken, qwen3),
)


def handmade():
    """A small BPE model with nothing trained: the same bytes with every library."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    piece = proto.SentencePiece
    for name, kind in (("<unk>", piece.UNKNOWN), ("<s>", piece.CONTROL), ("</s>", piece.CONTROL)):
        proto.pieces.add(piece=name, score=0.0, type=kind)
    for i in range(256):
        proto.pieces.add(piece=f"<0x{i:02X}>", score=0.0, type=piece.BYTE)
    merged = (
        "▁▁ ▁▁▁▁ th ▁th ▁the in ▁a er an ▁an ▁and 春天 on 12 \n\n ▁春 ing 的春天 ▁b es hi ▁春天 ll"
    )
    letters = "▁ e t a o i n s r h l d c u m f p g w y b v k 1 2 春 天 的 。 ， \n 😀".split(" ")
    for i, text in enumerate(merged.split(" ") + letters):
        proto.pieces.add(piece=text, score=-float(i), type=piece.NORMAL)
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    spec.name, spec.add_dummy_prefix, spec.remove_extra_whitespaces = "identity", False, False
    trainer.model_type, trainer.byte_fallback = trainer.BPE, True
    trainer.vocab_size = len(proto.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    return proto.SerializeToString(deterministic=True)
