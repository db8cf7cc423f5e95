"""Model FLOPs of a token and what chips can do."""

import jax
import pytest

from t5x_llm.train.flops import flops_per_token, peak_of


def test_flops_convention():
    # Workload W1 of docs/benchmarks.md: N = 29.89 M, d 512, 8 layers, T 512. And PaLM 540B,
    # appendix B: 46.2% MFU with attention, 45.7% without; masked products are counted there.
    assert flops_per_token(29_890_000, 8 * 512, 512) == pytest.approx(191.9e6, rel=1e-3)
    full = 2 * (flops_per_token(0, 118 * 48 * 256, 2048))
    assert full / (6 * 540.35e9) == pytest.approx(46.2 / 45.7 - 1, abs=0.004)
    # A state's element is multiplied and added to twice, b x and c h; backward costs twice that.
    assert flops_per_token(0, 0, 2048, state_size=5120 * 16) == 3 * (2 * 2) * 5120 * 16


class Chip:
    platform, process_index = "tpu", 0

    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_peaks(kind, flops):
    assert peak_of([Chip(kind)] * 4).flops == 4 * flops


def test_peak_elsewhere():
    assert peak_of([Chip("Fancy 9000")]) is None
    peak = peak_of(jax.devices(), "float32")
    assert 1e9 < peak.flops < 1e14 and "measured" in peak.source
