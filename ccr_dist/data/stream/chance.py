"""Arithmetic instead of random generators: a seed and a position give the same result on any machine, at any time.

Permutations are stable argsorts of hashes computed here, so that no version of a library can change them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from ccr_dist.errors import ConfigError

LONGEST_CYCLE = 4096


def mix(*parts: int | str) -> int:
    """A 64-bit number from all parts and their order: a seed for what the parts name.

    Example: mix(seed, "dropout", k, rank).
    """
    return int.from_bytes(hashlib.blake2b(b"".join(map(_spelled, parts)), digest_size=8).digest(), "little")


def mixing(*first: int | str) -> Callable[[int], int]:
    """A function of `last` that equals mix(*first, last), faster for many integers."""
    begun = hashlib.blake2b(b"".join(map(_spelled, first)), digest_size=8)

    def mixed(last: int) -> int:
        digest = begun.copy()
        digest.update(_spelled(last))
        return int.from_bytes(digest.digest(), "little")

    return mixed


def _spelled(part: int | str) -> bytes:
    if isinstance(part, str):
        text = part.encode()
        return b"s%d:%b" % (len(text), text)
    text = b"%d" % part
    return b"i%d:%b" % (len(text), text)


def hashes(seed: int, n: int) -> np.ndarray:
    """The splitmix64 sequence (Steele et al. 2014) that starts at `seed`, (n,) uint64."""
    x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(seed: int, n: int) -> np.ndarray:
    """A permutation of range(n), (n,) int64, the same on every machine and with every NumPy version.

    It is the stable argsort of the hashes' high bits. The low bits are replaced by the index, so that all keys differ
    and NumPy's fastest sort gives the same result.
    """
    low = np.uint64((1 << (n - 1).bit_length()) - 1) if n else np.uint64(0)
    keys = hashes(seed, n) & ~low | np.arange(n, dtype=np.uint64)
    keys.sort()
    return (keys & low).astype(np.int64)


class WeightedCycle:
    """A fixed, repeated schedule of choices in proportion to weights.

    It is the shortest exact cycle up to LONGEST_CYCLE, permuted by the seed. Where no cycle is exact, the longest one
    gets quotas by largest remainder.

    Args:
        weights: Finite and above 0.
        seed: Decides the order within the cycle.
        names: Names of the choices, for messages.

    Raises:
        ConfigError: A weight cannot be used.
    """

    def __init__(self, weights: Sequence[float], seed: int, names: Sequence[str]) -> None:
        for weight, name in zip(weights, names, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(
                    f"the weight of {name} is {weight}; it must be a finite number above 0 (to not use {name}, leave"
                    " it out)"
                )
        share = np.array(weights, dtype=np.float64) / math.fsum(weights)
        for length in range(1, LONGEST_CYCLE + 1):
            quotas = np.rint(share * length).astype(np.int64)
            if quotas.sum() == length and np.abs(share * length - quotas).max() < 1e-9 * length:
                break
        else:
            quotas = np.floor(share * length).astype(np.int64)
            remainder = share * length - quotas
            quotas[np.argsort(-remainder, kind="stable")[: length - quotas.sum()]] += 1
        if quotas.min() < 1:
            name = names[int(quotas.argmin())]
            raise ConfigError(
                f"the weight of {name} is below 1/{LONGEST_CYCLE} of the total and would never be drawn; raise it or"
                " leave it out"
            )
        self.length, self.quotas = length, quotas
        choices = np.repeat(np.arange(len(quotas)), quotas)[permutation(seed, length)]
        before = np.empty(length, dtype=np.int64)
        for choice in range(len(quotas)):
            before[choices == choice] = np.arange(quotas[choice])
        self._choices, self._before, self._quotas = choices.tolist(), before.tolist(), quotas.tolist()

    def at(self, n: int) -> tuple[int, int]:
        """(the n-th choice, how often it was made before n); n is counted from 0."""
        cycle, offset = divmod(n, self.length)
        choice = self._choices[offset]
        return choice, cycle * self._quotas[choice] + self._before[offset]

    def counts(self, n: int) -> np.ndarray:
        """How often each choice is made before n, (choices,) int64."""
        cycle, offset = divmod(n, self.length)
        return cycle * self.quotas + np.bincount(self._choices[:offset], minlength=len(self.quotas))
