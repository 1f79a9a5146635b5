"""The key pairs of the software vault: made, turned into bytes and back, and used, by their COSE algorithm.

What is not here: where the bytes are kept, and under what seal (`sealed_key`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, Reason

__all__ = ["ALGORITHMS", "PrivateKey", "generate", "restore", "sign", "to_bytes"]

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | Ed25519PrivateKey

ALGORITHMS: Final = (Algorithm.ES256, Algorithm.EDDSA, Algorithm.ES384)
"""The algorithms of the keys it makes. ES256 comes first: every relying party takes it."""


@dataclass(frozen=True, slots=True)
class _Ecdsa:
    curve: ec.EllipticCurve
    hash: hashes.HashAlgorithm


_ECDSA: Final[Mapping[int, _Ecdsa]] = {
    Algorithm.ES256: _Ecdsa(ec.SECP256R1(), hashes.SHA256()),
    Algorithm.ES384: _Ecdsa(ec.SECP384R1(), hashes.SHA384()),
}


def generate(algorithm: int) -> PrivateKey:
    """Make a key pair. Raises `DeviceError(UNSUPPORTED)`."""
    if algorithm == Algorithm.EDDSA:
        return Ed25519PrivateKey.generate()
    return ec.generate_private_key(_ecdsa(algorithm).curve)


def to_bytes(private: PrivateKey) -> bytes:
    """The scalar (big-endian, as long as the curve's order), or the 32 bytes of an Ed25519 private key (RFC 8032)."""
    if isinstance(private, Ed25519PrivateKey):
        return private.private_bytes_raw()
    return private.private_numbers().private_value.to_bytes((private.key_size + 7) // 8, "big")


def restore(algorithm: int, data: bytes) -> PrivateKey:
    """Undo `to_bytes`. Raises `DeviceError(UNSUPPORTED)`, `ValueError`."""
    if algorithm == Algorithm.EDDSA:
        return Ed25519PrivateKey.from_private_bytes(data)
    return ec.derive_private_key(int.from_bytes(data, "big"), _ecdsa(algorithm).curve)


def sign(private: PrivateKey, algorithm: int, message: bytes) -> bytes:
    """Sign: ECDSA in DER, Ed25519 as RFC 8032 has it. Raises `DeviceError(UNSUPPORTED)`."""
    if isinstance(private, Ed25519PrivateKey):
        return private.sign(message)
    return private.sign(message, ec.ECDSA(_ecdsa(algorithm).hash))


def _ecdsa(algorithm: int) -> _Ecdsa:
    scheme = _ECDSA.get(algorithm)
    if scheme is None:
        raise DeviceError(
            Reason.UNSUPPORTED, f"The software vault makes no keys for COSE algorithm {algorithm}.", fix="Use ES256."
        )
    return scheme
