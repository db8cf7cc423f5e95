"""Description of an adapter in lines for people."""

from __future__ import annotations

import collections
import os

from t5x_llm.hf.import_ import family_in, resolve
from t5x_llm.hf.peft.base_mark import check_mark
from t5x_llm.hf.peft.config import LOW_RANK, PROMPTS
from t5x_llm.hf.peft.fitting import check_fits
from t5x_llm.hf.peft.layout import linear_layers
from t5x_llm.hf.peft.read import open_adapter, sort_tensors
from t5x_llm.hf.source import open_source


def described(adapter: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> str:
    """Returns lines on an adapter: method, ranks, modules, sizes.

    Args:
      adapter: a PEFT directory.
      base: a Hugging Face directory that it is checked against.

    Raises:
      CheckpointError: it is damaged, or of another base.
      ConfigError: it has what is not known here.
    """
    found = open_adapter(adapter)
    config = found.config
    fits = ""
    if base is not None:
        source = open_source(base)
        family = family_in(source)
        tensors = resolve(source.weights, family)
        found = check_fits(found, linear_layers(family), tensors.shapes)
        check_mark(adapter, tensors.read, tensors.shapes, str(base))
        fits = f"It fits {base}, a {type(family).__name__}."
    count = sum(array.size for array in found.tensors.values())
    lines = [f"{config.kind} of {config.base or 'an unnamed base'}, {count:,} values."]
    if config.kind in PROMPTS:
        lines.append(f"{config.tokens} virtual tokens.")
        return "\n".join([*lines, *filter(None, [fits])])
    held = sort_tensors(found)
    names = collections.Counter(name.rpartition(".")[2] for name in held.leaves)
    lines += [f"  {name}: {number} modules" for name, number in sorted(names.items())]
    lines += [f"  {name}: whole" for name in held.saved]
    if config.kind in LOW_RANK:
        ranks = {len(leaves["lora_A"]) for leaves in held.leaves.values() if "lora_A" in leaves}
        said = ", ".join(map(str, sorted(ranks)))
        kinds = [n for n, on in (("DoRA", config.dora), ("rsLoRA", config.rank_stabilised)) if on]
        lines.append(f"rank {said}, alpha {config.alpha:g}{''.join(f', {k}' for k in kinds)}.")
    return "\n".join([*lines, *filter(None, [fits])])
