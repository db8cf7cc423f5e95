"""Weight maps: both directions, fused tensors, stacked layers, experts, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from t5x_llm.core.errors import CheckpointError
from t5x_llm.models.weight_map import Entry, flatten, from_hf, hf_shapes, to_hf, unflatten


def tree(shapes):
    rng = np.random.default_rng(0)
    return unflatten({k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})


def round_trip(entries, params):
    hf = {name: make() for name, make in to_hf(entries, params)}
    assert {name: x.shape for name, x in hf.items()} == hf_shapes(entries, params)
    back = from_hf(entries, params, hf.__getitem__)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(flatten(back)[path], value, err_msg=path)
    return hf


def test_plain_transposed_and_stacked():
    d, n, h, repeats = 6, 2, 4, 3
    params = tree({"embed.table": (5, d), "group_0.block_0.q.kernel": (repeats, d, n, h)})
    entries = [
        Entry("wte.weight", "embed.table", "V D", "V D"),
        Entry("h.{layer}.q.weight", "group_0.block_0.q.kernel", "(N H) D", "D N H"),
    ]
    hf = round_trip(entries, params)
    kernel = params["group_0"]["block_0"]["q"]["kernel"]
    for layer in range(repeats):
        expected = kernel[layer].reshape(d, n * h).T
        np.testing.assert_array_equal(hf[f"h.{layer}.q.weight"], expected)


def test_layer_numbers_run_through_repeats_then_blocks_then_groups():
    """Two groups: (a b) x 3, then c x 2: layers a b a b a b c c."""
    params = tree(
        {f"group_0.block_{j}.w": (3, 2) for j in range(2)} | {"group_1.block_0.w": (2, 2)}
    )
    hf = round_trip([Entry("l.{layer}", "group_{group}.block_{block}.w", "D", "D")], params)
    stacks = [params["group_0"]["block_0"]["w"], params["group_0"]["block_1"]["w"]]
    expected = [stacks[i % 2][i // 2] for i in range(6)] + list(params["group_1"]["block_0"]["w"])
    for layer, value in enumerate(expected):
        np.testing.assert_array_equal(hf[f"l.{layer}"], value)


def test_heads_cut_over_two_tensors():
    """Queries and keys of two heads in q, of the other two in k: one tensor cut in the middle."""
    n, h, d = 4, 3, 5
    params = tree({f"group_0.block_0.{name}": (2, d, n, h) for name in ("query", "key")})
    entries = [
        Entry(
            *(f"l.{{layer}}.{name}", f"group_0.block_0.{part}", "(N P H) D", "D N H"),
            part=(i, 2),
            run=("N", half, 2),
        )
        for half, name in enumerate("qk")
        for i, part in enumerate(("query", "key"))
    ]
    hf = round_trip(entries, params)
    block = params["group_0"]["block_0"]
    for layer in range(2):
        heads = [block[part][layer].transpose(1, 2, 0) for part in ("query", "key")]
        whole = np.stack(heads, axis=1).reshape(2 * n * h, d)
        for tensor, half in zip("qk", np.split(whole, 2), strict=True):
            np.testing.assert_array_equal(hf[f"l.{layer}.{tensor}"], half)
    with pytest.raises(CheckpointError, match=r"without an entry.*query"):
        list(to_hf(entries[1:], params))


def test_a_template_fills_only_the_blocks_that_have_the_parameter():
    params = tree({"group_0.block_0.attn": (2, 3), "group_0.block_1.ssm": (2, 3)})
    entries = [
        Entry("l.{layer}.attn", "group_{group}.block_{block}.attn", "D", "D"),
        Entry("l.{layer}.ssm", "group_{group}.block_{block}.ssm", "D", "D"),
    ]
    assert set(round_trip(entries, params)) == {"l.0.attn", "l.2.attn", "l.1.ssm", "l.3.ssm"}


@pytest.mark.parametrize(
    ("hf_axes", "expect"),
    [
        ("D (P N H)", lambda q, k, v: np.concatenate([x.reshape(6, 8) for x in (q, k, v)], 1)),
        ("(N P H) D", lambda q, k, v: np.stack([q, k, v], 2).reshape(6, 24).T),
    ],
)
def test_equal_parts_concatenated_and_interleaved(hf_axes, expect):
    """GPT-2 concatenates query, key, value; GPT-NeoX and BLOOM interleave them by head."""
    params = tree({f"{name}.kernel": (6, 2, 4) for name in "qkv"})
    entries = [
        Entry("qkv", f"{name}.kernel", hf_axes, "D N H", part=(i, 3))
        for i, name in enumerate("qkv")
    ]
    hf = round_trip(entries, params)
    np.testing.assert_array_equal(hf["qkv"], expect(*(params[n]["kernel"] for n in "qkv")))


def test_unequal_parts():
    """Phi-3: N query heads, then K key heads, then K value heads in one matrix."""
    n, k, d, h = 4, 2, 6, 3
    params = tree({"q": (d, n, h), "k": (d, k, h), "v": (d, k, h)})
    entries = [
        Entry("qkv", "q", "(P H) D", "D P H", part=(0, n + 2 * k), span=n),
        Entry("qkv", "k", "(P H) D", "D P H", part=(n, n + 2 * k), span=k),
        Entry("qkv", "v", "(P H) D", "D P H", part=(n + k, n + 2 * k), span=k),
    ]
    hf = round_trip(entries, params)
    both = np.concatenate([params[x] for x in "qkv"], 1)
    np.testing.assert_array_equal(hf["qkv"], both.reshape(d, -1).T)


def test_grouped_unequal_parts():
    """Falcon-40B, InternLM2: per key head, its G query heads, its key, its value."""
    g, k, d, h = 3, 2, 6, 4
    params = tree({"q": (d, k * g, h), "k": (d, k, h), "v": (d, k, h)})
    entries = [
        Entry("qkv", "q", "(K P H) D", "D (K P) H", part=(0, g + 2), span=g),
        Entry("qkv", "k", "(K P H) D", "D K H", part=(g, g + 2)),
        Entry("qkv", "v", "(K P H) D", "D K H", part=(g + 1, g + 2)),
    ]
    hf = round_trip(entries, params)
    whole = hf["qkv"].reshape(k, g + 2, h, d)
    np.testing.assert_array_equal(whole[:, :g].reshape(k * g, h, d), params["q"].transpose(1, 2, 0))
    np.testing.assert_array_equal(whole[:, g], params["k"].transpose(1, 2, 0))


def test_experts_count_along_an_axis():
    params = tree({"group_0.block_0.up": (2, 3, 4, 5)})
    entry = Entry("l.{layer}.e.{expert}.up", "group_0.block_0.up", "F D", "expert D F")
    hf = round_trip([entry], params)
    assert len(hf) == 6
    np.testing.assert_array_equal(hf["l.1.e.2.up"], params["group_0"]["block_0"]["up"][1, 2].T)


def test_interleaved_rotary_is_a_pattern():
    """GPT-J rotates neighbouring channels; halves of the head are the same numbers reordered."""
    params = tree({"q": (6, 2, 8)})
    entry = Entry("q", "q", "(N h two) D", "D N (two h)", sizes=(("two", 2),))
    hf = round_trip([entry], params)
    expected = params["q"].reshape(6, 2, 2, 4).transpose(1, 3, 2, 0).reshape(16, 6)
    np.testing.assert_array_equal(hf["q"], expected)


def test_refusals_name_what_is_wrong():
    params = tree({"a": (2, 3), "b": (3,)})
    entry = Entry("a.weight", "a", "D V", "V D")
    with pytest.raises(CheckpointError, match=r"without an entry \['b'\]"):
        list(to_hf([entry], params))
    both = [entry, Entry("b.weight", "b", "D", "D")]
    with pytest.raises(CheckpointError, match=r"more than one \['b'\]"):
        list(to_hf([*both, both[1]], params))
    good = {"a.weight": np.zeros((3, 2)), "b.weight": np.zeros(3)}
    for name, shape in (("a.weight", (2, 3)), ("b.weight", (1,)), ("a.weight", (3, 2, 1))):
        wrong = good | {name: np.zeros(shape)}
        with pytest.raises(CheckpointError, match=name):
            from_hf(both, params, wrong.__getitem__)
    with pytest.raises(CheckpointError, match="has axes"):
        list(to_hf([Entry("a", "a", "D", "D"), both[1]], params))
    with pytest.raises(CheckpointError, match="do not make up the whole"):
        entries = [Entry("a", "a", "(P D) V", "V D", part=(0, 2)), both[1]]
        [make() for _, make in to_hf(entries, params)]


def test_parameters_are_placed_one_by_one():
    params = tree({"a": (2, 3), "b": (3,)})
    entries = [Entry("a", "a", "V D", "V D"), Entry("b", "b", "D", "D")]
    seen = []
    from_hf(entries, params, flatten(params).__getitem__, lambda path, x: seen.append(path) or x)
    assert seen == ["a", "b"]
