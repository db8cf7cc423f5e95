"""Comments of the gin file that ``t5x-llm init`` writes, by language."""

from __future__ import annotations

COMMENTS: dict[str, dict[str, str]] = {
    "en": {
        "head": """
Training on text of your own, written by t5x-llm init.
  t5x-llm train --gin_file={file} --dry_run   the plan; nothing is trained
  t5x-llm train --gin_file={file}
Every line can be given on the command line too and then wins: --gin.Loop.steps=100.
All classes: t5x-llm fields. Fields of one, with defaults: t5x-llm fields Loop
""",
        "preset": """
The model. Others are in configs/models/, one file a size.
""",
        "resized": """
The model, with a vocabulary small enough to be learned from this much text. With more text
remove the second line, and set TokenizerTraining.vocab_size to the preset's.
""",
        "continued": """
The model that is continued, as its config.json says. Training changes none of these.
""",
        "mesh": """
All devices of this machine. For a TPU slice: configs/meshes/, such as v5p_128.gin.
""",
        "directory": """
Checkpoints, metrics, report.html and samples go here; it may be a gs:// path. The same command
continues a run that was stopped.
""",
        "data": """
Sources, mixed in proportion to their tokens; rates may also be numbers, (0.7, 0.3), or
'temperature'. Documents, not lines, are kept whole. store_dir keeps the tokens, prepared once.
""",
        "held_out": """
Share of the documents that evaluation reads and training does not.
""",
        "tokenizer": """
A SentencePiece tokenizer is trained on the documents. Data.tokenizer = 'path/of/one' takes one
that you have; the model must have a row for each of its pieces.
""",
        "bytes": """
One token a byte, as this model reads.
""",
        "their_tokenizer": """
The tokenizer of the model, whose ids its embeddings belong to.
""",
        "loop": """
A step reads batch_size rows of sequence_length tokens: {chosen.rows} x {chosen.length}. The data
has about {chosen.tokens:,} tokens by its size. Too little memory? More microbatches, the same
result.
""",
        "optimizer": """
The learning rate rises to its peak in warmup_steps, then falls until the last step.
""",
        "checkpoint": """
Steps between two checkpoints; the last step is saved anyway.
""",
        "samples": """
Steps between evaluations, and between samples of what the model writes by then.
""",
        "export": """
At the end, Hugging Face weights in hf/ of the run, compared with ours before they are kept.
""",
    },
    "zh": {
        "head": """
用自己的文本训练；本文件由 t5x-llm init 生成。
  t5x-llm train --gin_file={file} --dry_run   只看计划，不训练
  t5x-llm train --gin_file={file}
每一行都可以在命令行上给出，并以命令行为准：--gin.Loop.steps=100。
所有类：t5x-llm fields。某个类的字段和默认值：t5x-llm fields Loop
""",
        "preset": """
模型。其他模型在 configs/models/，每种规模一个文件。
""",
        "resized": """
模型；词表按文本量缩小，使其能从这些文本中学到。文本更多时，删去第二行，并把
TokenizerTraining.vocab_size 设为预设的大小。
""",
        "continued": """
继续训练的模型，取自它的 config.json。训练不会改变这些字段。
""",
        "mesh": """
使用本机的全部设备。TPU 切片见 configs/meshes/，例如 v5p_128.gin。
""",
        "directory": """
检查点、指标、report.html 和样例写在这里；可以是 gs:// 路径。中断之后，用同一条命令继续。
""",
        "data": """
数据源，按各自的词元数成比例混合；rates 也可以是数字，如 (0.7, 0.3)，或 'temperature'。
store_dir 存放准备好的词元，只准备一次。
""",
        "held_out": """
留作评估、不参与训练的文档比例。
""",
        "tokenizer": """
在这些文档上训练 SentencePiece 分词器。若已有分词器，写 Data.tokenizer = '路径'；模型的词表
必须与它一样大。
""",
        "bytes": """
一个字节一个词元，与此模型相符。
""",
        "their_tokenizer": """
模型自带的分词器，嵌入表按它的编号排列。
""",
        "loop": """
每步读 batch_size 行，每行 sequence_length 个词元：{chosen.rows} x {chosen.length}。按文件大
小估计，数据约有 {chosen.tokens:,} 个词元。内存不够时增大 microbatches，结果不变。
""",
        "optimizer": """
学习率在 warmup_steps 步内升到峰值，然后一直下降到最后一步。
""",
        "checkpoint": """
两次检查点之间的步数；最后一步总会保存。
""",
        "samples": """
两次评估之间、两次生成样例之间的步数。
""",
        "export": """
结束时在运行目录的 hf/ 写出 Hugging Face 权重，与我们的模型核对一致后才保留。
""",
    },
}
