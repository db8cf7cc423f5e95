"""Sums of vectors of which nobody sees a single one (Bonawitz et al., CCS 2017).

Every two parties share a secret by Diffie and Hellman. From it and the round both draw the same
mask; the one of the lower number adds it to its vector, the other subtracts it. Vectors are whole
numbers modulo 2^64, so masks cancel in the sum to the bit, and one message alone, masked by a
stream of uniform numbers, says nothing about its vector.

Promised is this: a server that follows the protocol and wants to know more (honest but curious)
learns the sum, as long as at least two parties do not work with it. There is no recovery: when a
party's message is missing the sum of the others is noise. The round is refused and made again with
those that are there, whose masks are new, since they are drawn for that set of parties.

Public keys are exchanged as they are: whoever could change messages on the way could stand between
two parties. Give them an authenticated channel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from t5x_llm.core.errors import DataError, PeerLost

# Group 14 of RFC 3526: p = 2^2048 - 2^1984 - 1 + 2^64 (floor(2^1918 pi) + 124476), generator 2.
PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74"
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437"
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05"
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB"
    "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718"
    "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
GENERATOR = 2
KEY_BYTES = 256
# Numbers are multiples of 2^-40: an error of 5e-13 each, and sums below 2^23.
FRACTION_BITS = 40
_SECRET_BITS = 512


@dataclasses.dataclass(frozen=True)
class KeyPair:
    """Key of one party for the agreement with each other one.

    Attributes:
      secret: exponent, which never leaves the party.
      public: bytes that all others get.
    """

    secret: int = dataclasses.field(repr=False)
    public: bytes

    @classmethod
    def fresh(cls) -> KeyPair:
        """Draws a key from the operating system's random numbers."""
        secret = secrets.randbits(_SECRET_BITS) | 1 << (_SECRET_BITS - 1)
        return cls(secret, pow(GENERATOR, secret, PRIME).to_bytes(KEY_BYTES))

    def agree(self, public: bytes) -> bytes:
        """Returns the 32 bytes that this party and the owner of ``public`` alone know.

        Raises:
          DataError: ``public`` is no key of the group: it would make the secret a known one.
        """
        other = int.from_bytes(public)
        if len(public) != KEY_BYTES or not 1 < other < PRIME - 1:
            raise DataError(
                "A party's public key is not one of RFC 3526's group 14 (2048 bit): its message "
                "was damaged or made to be known. No mask is drawn with it."
            )
        return hashlib.sha256(pow(other, self.secret, PRIME).to_bytes(KEY_BYTES)).digest()


class Masker:
    """Masks the vectors of one party.

    Args:
      party: its number.
      keys: its keys.
      publics: public keys of all parties by number, its own included.
    """

    def __init__(self, party: int, keys: KeyPair, publics: Mapping[int, bytes]):
        self.party = party
        self._shared = {i: keys.agree(key) for i, key in publics.items() if i != party}

    def message(
        self, vector: np.ndarray, number: int, parties: Iterable[int] | None = None
    ) -> np.ndarray:
        """Returns the masked vector that the server gets, [n] uint64.

        Args:
          vector: [n], what is to be summed up.
          number: of the round; the same twice gives the same masks.
          parties: those that take part in it; all if None.

        Raises:
          DataError: see ``encode``.
        """
        there = sorted({*(self._shared if parties is None else parties), self.party})
        encoded = encode(vector, len(there), f"party {self.party}")
        context = f"t5x_llm.federated {number} {there}".encode()
        for other in there:
            if other == self.party:
                continue
            mask = _stream(self._shared[other] + context, len(encoded))
            encoded = encoded + mask if self.party < other else encoded - mask
        return encoded


def unmask(messages: Mapping[int, np.ndarray], parties: Sequence[int]) -> np.ndarray:
    """Computes the sum of the vectors of all parties from their masked messages, [n] float64.

    Args:
      messages: those that arrived, by party.
      parties: those whose masks they carry.

    Raises:
      PeerLost: a message is missing, without which the others are noise.
    """
    if missing := sorted(set(parties) - set(messages)):
        raise PeerLost(
            f"No message of {', '.join(f'party {i}' for i in missing)}: the masks of the others do "
            "not cancel, and nothing of this round is used. Make it again with the parties that "
            "are there."
        )
    total = np.zeros_like(messages[parties[0]])
    for party in parties:
        total = total + messages[party]
    return decode(total)


def encode(vector: np.ndarray, parties: int, name: str = "the vector") -> np.ndarray:
    """Returns numbers as multiples of 2^-40 modulo 2^64, rounded to the nearest: [n] uint64.

    Args:
      vector: [n] numbers.
      parties: summands, whose sum must stay in range.
      name: whose it is, for messages.

    Raises:
      DataError: one is NaN, or too large for a sum of so many.
    """
    limit = 2.0 ** (63 - FRACTION_BITS) / parties
    worst = float(np.max(np.abs(vector), initial=0.0))  # NaN if there is one
    if not worst < limit:
        raise DataError(
            f"The change of {name} has a number of size {worst:g}; a masked sum of {parties} "
            f"parties takes numbers below {limit:g}. Training diverged there: lower Schedule.peak "
            "or Federated.local_steps."
        )
    return (
        np.rint(np.ldexp(np.asarray(vector, np.float64), FRACTION_BITS))
        .astype(np.int64)
        .view(np.uint64)
    )


def decode(total: np.ndarray) -> np.ndarray:
    """Returns the numbers of a sum, [n] float64; see ``encode``."""
    return np.ldexp(total.view(np.int64).astype(np.float64), -FRACTION_BITS)


def _stream(seed: bytes, size: int) -> np.ndarray:
    """Returns [size] uniform uint64 of a seed by SHAKE-256, a stream that nobody predicts."""
    drawn = hashlib.shake_256(seed).digest(8 * size)
    return np.frombuffer(drawn, "<u8").astype(np.uint64)
