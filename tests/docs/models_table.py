"""Writes docs/models.md and its translation from the presets: python tests/docs/models_table.py"""

import pathlib
import re
import runpy

from t5x_llm.models.families import FAMILIES

ROOT = pathlib.Path(__file__).parents[2]
MODELS = ROOT / "configs" / "models"
PARAMETERS = runpy.run_path(ROOT / "tests" / "configs" / "parameters.py")["PARAMETERS"]
TEXTS = {
    "docs/models.md": {
        "top": """# Models

[中文](models.zh.md)

A preset is a gin file of `configs/models/`; this table says how many parameters each has, and what
it is held to by `tests/configs`. A figure such as 8.63B is met to its printed digits. Recipes with
the papers' hyperparameters are in `configs/recipes/`. Vicuna and other fine-tuned models have the
preset of the model they come from. `python tests/docs/models_table.py` writes this page.

Other people's `config.json` is read as transformers reads it: absent fields have its classes'
defaults, null and switches that are off change nothing, and what only concerns training or
generation is passed over. A field that nobody here knows is noted in `parity.json` where
transformers computes the reference, since equal logits prove the reading; elsewhere the flag
`--ignore_field NAME` of `t5x-llm import` says that it has no effect.

LongRoPE (Phi-3, Phi-4-mini) and dynamic NTK (InternLM 2) rotate queries and keys by the length of
the sequence: in training and scoring by that of each packed document; in generation by that of
the row so far, whatever else is in the batch. Under dynamic NTK cached keys keep the rotation
that they were stored with, as in transformers. Under LongRoPE a row that outgrows the pretrained
context is read again from its first token, as transformers does with Phi-3, so every token
follows from one pass over its row.
""",
        "head": "| preset | parameters | held to |",
        "files": "`{files}`",
        "rest": "\nFamilies without a preset of a published size: {rest}.\n",
    },
    "docs/models.zh.md": {
        "top": """# 模型

[English](models.md)

预设是 `configs/models/` 里的 gin 文件；下表给出各自的参数量，以及 `tests/configs` 用来核对的依据。
像 8.63B 这样的数字按其印出的位数核对。论文的超参数在 `configs/recipes/` 的配方里。
Vicuna 等微调模型使用其基座模型的预设。本页由 `python tests/docs/models_table.py` 生成。

别人的 `config.json` 按 transformers 的方式读取：缺省字段取其配置类的默认值，null 和关闭的开关不
起作用，只与训练或生成有关的字段略过。本软件不认识的字段，若参考由 transformers 计算，则记入
`parity.json`，因为 logits 相等就证明读法正确；否则用 `t5x-llm import --ignore_field 字段名` 声明
它不起作用。

LongRoPE（Phi-3、Phi-4-mini）和动态 NTK（InternLM 2）的旋转取决于序列长度：训练和打分时取打包行
中各文档的长度；生成时取该行到目前为止的长度，与同批其他行无关。动态 NTK 下，缓存中的键保留写入
时的旋转，与 transformers 相同。LongRoPE 下，一行超出预训练长度时从头重读，与 transformers 对
Phi-3 的做法相同，因此每个词元都来自对整行的一次计算。
""",
        "head": "| 预设 | 参数量 | 依据 |",
        "files": "`{files}`",
        "rest": "\n尚无公开规模预设的模型族：{rest}。\n",
    },
}


def table(texts):
    """One of the two pages."""
    presets = {}
    for file in sorted(MODELS.rglob("*.gin")):
        name = str(file.relative_to(MODELS).with_suffix(""))
        presets.setdefault(re.search(r"@(\w+)\(\)", file.read_text())[1], []).append(name)
    parts = [texts["top"]]
    for family in sorted(FAMILIES.values(), key=lambda f: (f.__module__, f.__name__)):
        names = presets.get(family.__name__)
        if names is None:
            continue
        path = family.__module__.replace(".", "/") + ".py"
        parts.append(f"\n## {family.__name__}\n\n{texts['files'].format(files=path)}\n")
        parts.append(f"\n{texts['head']}\n|---|---|---|\n")
        for name in sorted(names, key=lambda n: (size(PARAMETERS[n].count), n)):
            count, source = PARAMETERS[name][:2]
            shown = f"{count:,}" if isinstance(count, int) else count
            parts.append(f"| `{name}` | {shown} | {source} |\n")
    rest = sorted(f.__name__ for f in FAMILIES.values() if f.__name__ not in presets)
    return "".join(parts) + (texts["rest"].format(rest=", ".join(rest)) if rest else "")


def size(count):
    """A count as a number, printed figures too."""
    if isinstance(count, int):
        return count
    return float(count[:-1]) * {"M": 1e6, "B": 1e9}[count[-1]]


if __name__ == "__main__":
    for name, texts in TEXTS.items():
        (ROOT / name).write_text(table(texts), encoding="utf-8")
