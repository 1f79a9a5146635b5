"""The fingerprint of CVE-2017-15361: moduli made the weak way have it, and one prime that does not fit is enough."""

from __future__ import annotations

from math import prod

import pytest

from keyvouch.errors import EvidenceError, Reason
from keyvouch.roca import check_modulus

# The primes of the paper's first size, 512-bit keys, without 2 (Nemec et al., section 2.1).
PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
PRIMES += (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167)
PRODUCT = prod(PRIMES)


def weak(power: int, multiple: int = 12345) -> int:
    """A number that is a power of 65537 modulo each of the primes."""
    return pow(65537, power, PRODUCT) + multiple * PRODUCT


def but_for(prime: int, rest: int) -> int:
    """The same, but for one prime, modulo which it has another rest."""
    others = PRODUCT // prime
    step = (rest - weak(5)) * pow(others, -1, prime) % prime
    return weak(5) + step * others


@pytest.mark.parametrize("power", [*range(170), 10**6, 2**61])
def test_moduli_of_the_weak_library(power: int) -> None:
    for multiple in (1, 2, 3, 4, 1 << 1500):
        with pytest.raises(EvidenceError) as caught:
            check_modulus(weak(power, multiple))
        assert caught.value.reason is Reason.WEAK_KEY_ROCA


@pytest.mark.parametrize("prime", PRIMES)
def test_one_prime_that_does_not_fit_is_enough(prime: int) -> None:
    powers = {pow(65537, power, prime) for power in range(prime)}
    for rest in {0, *range(prime)} - powers:
        check_modulus(but_for(prime, rest))
    with pytest.raises(EvidenceError):
        check_modulus(but_for(prime, weak(5) % prime))


def test_an_ordinary_modulus_is_let_through() -> None:
    check_modulus((1 << 2047) + 1)
