"""The fingerprint of RSA keys with the ROCA weakness (CVE-2017-15361), whose private key can be computed.

Source: Nemec, Sys, Svenda, Klinec, Matyas, "The Return of Coppersmith's Attack", ACM CCS 2017, section 2. The weak
library made primes of the form k * M + (65537 ** a mod M), where M is a product of the first small primes. So its
moduli, too, are powers of 65537 modulo each of these primes; a modulus made in any other way is one for all of
them with a probability below 2 ** -30.

What is not here: factoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from keyvouch.errors import EvidenceError, Reason

__all__ = ["check_modulus"]

_GENERATOR = 65537
_PRIMES = tuple(n for n in range(3, 168) if all(n % d for d in range(2, n)))
_PRODUCT = prod(_PRIMES)
_POWERS: Mapping[int, frozenset[int]] = {p: frozenset(pow(_GENERATOR, a, p) for a in range(p - 1)) for p in _PRIMES}


def check_modulus(modulus: int) -> None:
    """Check that an RSA modulus does not have the fingerprint. Raises `EvidenceError` with `WEAK_KEY_ROCA`."""
    rest = modulus % _PRODUCT  # one division of the long number instead of 38
    if all(rest % prime in powers for prime, powers in _POWERS.items()):
        raise EvidenceError(
            Reason.WEAK_KEY_ROCA,
            "The RSA key was made by a chip with the ROCA weakness; its private key can be computed from it.",
            fix="Update the firmware of the chip and make a new key, or use an elliptic curve key.",
        )
