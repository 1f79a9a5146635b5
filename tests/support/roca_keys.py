"""RSA moduli with the ROCA weakness (CVE-2017-15361), made the way the weak library made them.

Source: Nemec, Sys, Svenda, Klinec, Matyas, "The Return of Coppersmith's Attack", ACM CCS 2017, section 2.1: for keys of
2048 bits each prime is k * M + (65537 ** a mod M), M being the product of the first 126 primes.
"""

from __future__ import annotations

from functools import cache
from math import prod

_PRIMES = tuple(n for n in range(2, 702) if all(n % d for d in range(2, int(n**0.5) + 1)))
_M = prod(_PRIMES)


@cache
def weak_modulus() -> int:
    """Return a product of two such primes: 2048 bits, odd, always the same."""
    return _weak_prime(exponent=20171016) * _weak_prime(exponent=15361)


def _weak_prime(exponent: int) -> int:
    """The first prime of this form at or above three quarters of 2 ** 1024."""
    candidate = (3 << 1022) // _M * _M + pow(65537, exponent, _M)
    while pow(2, candidate - 1, candidate) != 1:
        candidate += _M
    return candidate
