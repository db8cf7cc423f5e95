"""Masked sums: exact, and of a single message nothing is seen."""

import numpy as np
import pytest

from t5x_llm.core.errors import DataError, PeerLost
from t5x_llm.tune.federated.masks import (
    FRACTION_BITS,
    GENERATOR,
    KEY_BYTES,
    PRIME,
    KeyPair,
    Masker,
    decode,
    encode,
    unmask,
)


@pytest.fixture(scope="module")
def maskers():
    keys = [KeyPair.fresh() for _ in range(4)]
    publics = {i: key.public for i, key in enumerate(keys)}
    return [Masker(i, key, publics) for i, key in enumerate(keys)]


def vectors(size, count=4, scale=1.0):
    return np.random.default_rng(0).normal(size=(count, size)) * scale


def _arctan_of_inverse(x, one):
    total = term = one // x
    n, sign = 3, -1
    while term:
        term //= x * x
        total += sign * (term // n)
        n, sign = n + 2, -sign
    return total


def test_the_group_is_that_of_rfc_3526():
    one = 1 << (1918 + 64)
    pi = 4 * (4 * _arctan_of_inverse(5, one) - _arctan_of_inverse(239, one))
    assert PRIME == 2**2048 - 2**1984 - 1 + 2**64 * ((pi >> 64) + 124476)
    # A safe prime, of which the generator makes the subgroup of order (p - 1) / 2.
    assert pow(3, PRIME - 1, PRIME) == 1
    assert pow(GENERATOR, (PRIME - 1) // 2, PRIME) == 1


def test_two_parties_know_the_same_secret_and_a_third_another():
    a, b, c = (KeyPair.fresh() for _ in range(3))
    assert a.agree(b.public) == b.agree(a.public) != c.agree(a.public)
    assert str(a.secret) not in repr(a)


@pytest.mark.parametrize("value", [0, 1, PRIME - 1, PRIME, PRIME + 1])
def test_a_key_that_makes_the_secret_known_is_refused(value):
    with pytest.raises(DataError, match="RFC 3526"):
        KeyPair.fresh().agree(value.to_bytes(KEY_BYTES))


def test_masks_cancel_to_the_bit(maskers):
    parts = vectors(1000, scale=100.0)
    messages = {m.party: m.message(parts[m.party], 7) for m in maskers}
    plain = sum(encode(part, 4) for part in parts)
    np.testing.assert_array_equal(sum(messages.values()), plain)
    total = unmask(messages, range(4))
    np.testing.assert_array_equal(total, decode(plain))
    assert np.abs(total - parts.sum(0)).max() <= 4 * 2.0 ** -(FRACTION_BITS + 1)


def test_one_message_looks_uniform_whatever_it_holds(maskers):
    """Chi-squared over the 256 values of every byte; 255 degrees of freedom, 6 deviations."""
    for vector in (np.zeros(20_000), vectors(20_000)[0]):
        octets = maskers[1].message(vector, 3).view(np.uint8)
        counts = np.bincount(octets, minlength=256)
        expected = len(octets) / 256
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - 255) < 6 * np.sqrt(2 * 255)
    # The vector itself does not pass: most of its bytes are 0 or 255.
    octets = encode(vector, 4).view(np.uint8)
    counts = np.bincount(octets, minlength=256)
    assert ((counts - expected) ** 2 / expected).sum() > 10_000


def test_three_of_four_together_learn_nothing_of_less_than_all(maskers):
    """Sums of some messages are still masked: far from the sum of their vectors."""
    parts = vectors(100)
    messages = {m.party: m.message(parts[m.party], 0) for m in maskers}
    some = decode(messages[0] + messages[1] + messages[2])
    assert np.median(np.abs(some - parts[:3].sum(0))) > 1e5


def test_rounds_have_masks_of_their_own(maskers):
    vector = np.zeros(64)
    first, second = (maskers[0].message(vector, number) for number in (0, 1))
    assert np.count_nonzero(first == second) == 0
    np.testing.assert_array_equal(first, maskers[0].message(vector, 0))


def test_a_missing_party_is_named_and_the_round_made_again_without_it(maskers):
    parts = vectors(50)
    messages = {m.party: m.message(parts[m.party], 5) for m in maskers if m.party != 2}
    with pytest.raises(PeerLost, match="No message of party 2"):
        unmask(messages, range(4))
    there = [0, 1, 3]
    again = {i: maskers[i].message(parts[i], 5, there) for i in there}
    assert np.count_nonzero(again[0] == messages[0]) == 0  # or both together would tell of party 2
    np.testing.assert_allclose(unmask(again, there), parts[there].sum(0), atol=1e-11)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**21, -(2.0**21)])
def test_numbers_out_of_range_are_refused_before_they_are_masked(maskers, bad):
    with pytest.raises(DataError, match=r"change of party 3 .*Schedule\.peak"):
        maskers[3].message(np.array([0.0, bad]), 0)
