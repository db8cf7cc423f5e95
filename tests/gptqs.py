"""GPTQ directories, packed by NumPy from the description of their format alone."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file


def quantised(weight, bits, group, desc_act, rng):
    """(codes [in, out], scales [G, out] float16, zeros [G, out], g_idx [in]) of [out, in]."""
    w = weight.T.astype(np.float64)
    inputs, most = len(w), 2**bits - 1
    g_idx = np.arange(inputs) // (group or inputs)
    if desc_act:
        g_idx = g_idx[rng.permutation(inputs)]
    count = math.ceil(inputs / (group or inputs))
    low = np.stack([np.minimum(w[g_idx == g].min(0), 0) for g in range(count)])
    high = np.stack([np.maximum(w[g_idx == g].max(0), 0) for g in range(count)])
    scales = ((high - low) / most + 1e-6).astype(np.float16)
    zeros = np.clip(np.rint(-low / scales.astype(np.float64)), 1, most).astype(np.int64)
    codes = np.clip(np.rint(w / scales[g_idx].astype(np.float64)) + zeros[g_idx], 0, most)
    return codes.astype(np.int64), scales, zeros, g_idx.astype(np.int32)


def words(values, bits, axis):
    """Codes of ``bits`` bits, so many in an int32 along an axis, the first in the lowest bits."""
    values = np.moveaxis(values, axis, 0)
    each = 32 // bits
    parts = values.reshape(-1, each, *values.shape[1:]).astype(np.uint64)
    shifts = (bits * np.arange(each, dtype=np.uint64)).reshape(1, each, *[1] * (values.ndim - 1))
    packed = (parts << shifts).sum(1).astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(np.moveaxis(packed, 0, axis))


def write(source, target, bits=4, group=8, desc_act=False, form="gptq"):
    """Writes a GPTQ directory of a plain one; gives its dequantised weights by name."""
    rng = np.random.default_rng(5)
    shutil.copytree(source, target)
    held, whole, stored = load_file(target / "model.safetensors"), {}, {}
    for name, weight in held.items():
        if "_proj.weight" not in name:
            whole[name] = stored[name] = weight
            continue
        codes, scales, zeros, g_idx = quantised(weight, bits, group, desc_act, rng)
        layer = name.removesuffix(".weight")
        stored |= {
            f"{layer}.qweight": words(codes, bits, 0),
            f"{layer}.qzeros": words(zeros - (form == "gptq"), bits, 1),
            f"{layer}.scales": scales,
            f"{layer}.g_idx": g_idx,
        }
        wide = scales.astype(np.float32)[g_idx] * (codes - zeros[g_idx]).astype(np.float32)
        whole[name] = np.ascontiguousarray(wide.T)
    save_file(stored, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {
        **{"quant_method": "gptq", "bits": bits, "group_size": group or -1},
        **{"desc_act": desc_act, "checkpoint_format": form, "sym": False},
    }
    (target / "config.json").write_text(json.dumps(config))
    return whole
