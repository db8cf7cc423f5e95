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
