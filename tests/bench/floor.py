"""The floor: the cryptography of one sign-in, measured on this machine in this run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True, slots=True)
class Floor:
    """Microseconds of one P-256 verification and one P-256 signature."""

    verify_us: float
    token_us: float

    @property
    def total_us(self) -> float:
        """Both."""
        return self.verify_us + self.token_us


def measure_floor() -> Floor:
    """Medians of several rounds."""
    key, message = ec.generate_private_key(ec.SECP256R1()), os.urandom(200)
    public, algorithm = key.public_key(), ec.ECDSA(hashes.SHA256())
    signature = key.sign(message, algorithm)
    return Floor(
        _median_us(lambda: public.verify(signature, message, algorithm)),
        _median_us(lambda: key.sign(message, algorithm)),
    )


def _median_us(act: Callable[[], object], rounds: int = 9, times: int = 2000) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            act()
        taken.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(taken)
