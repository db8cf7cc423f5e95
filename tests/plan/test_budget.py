"""Budgets against the tables of the papers they come from."""

import json

import commands
import pytest

from t5x_llm.core.errors import ConfigError
from t5x_llm.core.slices import parse_slice
from t5x_llm.plan.budget import Machine, effective_tokens, loss, optimal, points

# arXiv 2203.15556, table 3: parameters, FLOPs, tokens.
TABLE_3 = [
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (1e12, 1.27e26, 21.2e12),
]


@pytest.mark.parametrize("parameters, flops, tokens", TABLE_3)
def test_chinchilla(parameters, flops, tokens):
    found = {p.name: p for p in points(parameters, 6 * parameters)}["compute-optimal"]
    assert found.tokens == pytest.approx(tokens, rel=0.12)
    assert found.flops == pytest.approx(flops, rel=0.12)


def test_the_optimum_is_one():
    """No other split of the same compute has a lower loss; some 20 tokens a parameter."""
    for compute in (1e20, 5.76e23, 1e25):
        n, d = optimal(compute)
        assert 6 * n * d == pytest.approx(compute)
        assert all(loss(n, d) < loss(n * f, d / f) for f in (0.8, 0.95, 1.05, 1.25))
    n, d = optimal(5.76e23)
    assert 15 < d / n < 30


def test_repeats():
    """arXiv 2305.16264: four epochs are nearly worth fresh data, forty are worth little more."""
    assert effective_tokens(5e9, 10e9) == 5e9
    assert effective_tokens(4e9, 1e9) == pytest.approx(3.73e9, rel=0.01)
    assert effective_tokens(1e15, 1e9) == pytest.approx(16.39e9, rel=0.01)
    assert loss(1e9, effective_tokens(40e9, 1e9)) > loss(1e9, 40e9)


def test_days_and_money():
    """LLaMA-2 7B of 2T tokens took 184,320 A100 hours (arXiv 2307.09288, table 2)."""
    machine = Machine(parse_slice("x", "v5p-128"), slices=2, mfu=0.5, price=3.0)
    [point] = [p for p in points(6.74e9, 6 * 6.74e9, tokens=2e12, machine=machine)
               if p.name == "asked for"]  # fmt: skip
    hours = 6 * 6.74e9 * 2e12 / (459e12 * 0.5) / 3600
    assert point.days == pytest.approx(hours / 128 / 24)
    assert point.cost == pytest.approx(hours * 3)
    # The same FLOPs on A100s at what that run reached, 312e12 x 39%.
    assert 6 * 6.74e9 * 2e12 / (312e12 * 0.39) / 3600 == pytest.approx(184_320, rel=0.03)


@pytest.mark.parametrize("changes", [{"mfu": 0}, {"mfu": 1.5}, {"slices": 0}, {"price": -1}])
def test_impossible_machines(changes):
    with pytest.raises(ConfigError, match=f"--{next(iter(changes))}"):
        Machine(parse_slice("x", "v5p-128"), **changes)


def test_impossible_amounts():
    with pytest.raises(ConfigError, match="--unique_tokens"):
        points(1e9, 6e9, unique=0)


def command(*words):
    return commands.run("budget", *words)


def test_the_command():
    flags = ["--parameters=7e9", "--unique_tokens=1e11", "--slice=v5p-128", "--price=4"]
    shown = command(*flags)
    assert shown.returncode == 0, shown.stderr
    assert "compute-optimal" in shown.stdout and "epochs" in shown.stdout
    rows = json.loads(command(*flags, "--json").stdout)
    assert [r["tokens"] for r in rows] == sorted(r["tokens"] for r in rows)
    assert all(r["cost"] > 0 and r["days"] > 0 and r["epochs"] > 0 for r in rows)
    recipe = command("--gin_file=configs/recipes/quickstart.gin")
    assert recipe.returncode == 0 and "1.45M parameters" in recipe.stdout
    assert command().returncode == 2
    refused = command("--parameters=7e9", "--slice=v5p-9")
    assert refused.returncode == 2 and "--slice = 'v5p-9'" in refused.stderr
