"""PIN/UV auth protocols one and two, the authenticator's side (sections 6.5.4, 6.5.6 and 6.5.7).

Pure key agreement, encryption and MACs. What is *not* here: PINs, tokens, their permissions and life
time (`pin_token`, `client_pin`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import ClassVar, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyvouch_agent.authenticator.ports import Entropy
from keyvouch_agent.authenticator.status import CommandError, Status

__all__ = ["PinProtocol", "PinProtocolOne", "PinProtocolTwo", "PinProtocols"]

_BLOCK = 16
_ECDH_ES_HKDF_256 = -25
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class PinProtocol(Protocol):
    """The operations of section 6.5.4 that an authenticator needs."""

    version: ClassVar[int]

    def regenerate(self) -> None:
        """Draw a new key agreement key pair."""

    def public_key(self) -> Mapping[int, object]:
        """The authenticator's key agreement key as COSE_Key."""

    def decapsulate(self, peer: Mapping[object, object]) -> bytes:
        """Shared secret with the platform's key. `INVALID_PARAMETER` when that is not a P-256 point."""

    def encrypt(self, key: bytes, plaintext: bytes) -> bytes:
        """Encrypt whole blocks."""

    def decrypt(self, key: bytes, ciphertext: bytes) -> bytes:
        """Decrypt whole blocks. `PIN_AUTH_INVALID` for anything else."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> None:
        """Check a MAC in constant time. `PIN_AUTH_INVALID` when it is not right."""


class PinProtocolOne:
    """Section 6.5.6: SHA-256 of the shared point, AES-256-CBC with a zero IV, HMAC cut to 16 bytes."""

    version: ClassVar[int] = 1

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self.regenerate()

    def regenerate(self) -> None:
        """Draw a new key agreement key pair. 48 bytes reduced to the order leave no bias worth the name."""
        scalar = int.from_bytes(self._entropy.token(48), "big") % (_P256_ORDER - 1) + 1
        self._key = ec.derive_private_key(scalar, ec.SECP256R1())

    def public_key(self) -> Mapping[int, object]:
        """COSE_Key with alg -25, which is *not* the algorithm used (section 6.5.6, getPublicKey)."""
        numbers = self._key.public_key().public_numbers()
        x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
        return {1: 2, 3: _ECDH_ES_HKDF_256, -1: 1, -2: x, -3: y}

    def decapsulate(self, peer: Mapping[object, object]) -> bytes:
        """ECDH with a checked peer key, then the protocol's key derivation."""
        return self._derive(self._key.exchange(ec.ECDH(), _peer_key(peer)))

    def encrypt(self, key: bytes, plaintext: bytes) -> bytes:
        """AES-256-CBC, no padding."""
        return _encrypt(key, bytes(_BLOCK), plaintext)

    def decrypt(self, key: bytes, ciphertext: bytes) -> bytes:
        """AES-256-CBC, no padding."""
        return _decrypt(key, bytes(_BLOCK), ciphertext)

    def verify(self, key: bytes, message: bytes, signature: bytes) -> None:
        """HMAC-SHA-256, first 16 bytes."""
        _verify(hmac.digest(key, message, "sha256")[:16], signature)

    def _derive(self, shared_point_x: bytes) -> bytes:
        return hashlib.sha256(shared_point_x).digest()


class PinProtocolTwo(PinProtocolOne):
    """Section 6.5.7: HKDF to an HMAC key and an AES key, random IV, whole HMAC."""

    version: ClassVar[int] = 2

    def encrypt(self, key: bytes, plaintext: bytes) -> bytes:
        """AES-256-CBC with a random IV in front."""
        iv = self._entropy.token(_BLOCK)
        return iv + _encrypt(key[32:], iv, plaintext)

    def decrypt(self, key: bytes, ciphertext: bytes) -> bytes:
        """Take the IV off the front, then AES-256-CBC."""
        if len(ciphertext) < _BLOCK:
            raise CommandError(Status.PIN_AUTH_INVALID)
        return _decrypt(key[32:], ciphertext[:_BLOCK], ciphertext[_BLOCK:])

    def verify(self, key: bytes, message: bytes, signature: bytes) -> None:
        """HMAC-SHA-256 with the first half of the key (a PIN/UV auth token has only that half)."""
        _verify(hmac.digest(key[:32], message, "sha256"), signature)

    def _derive(self, shared_point_x: bytes) -> bytes:
        return _hkdf(shared_point_x, b"CTAP2 HMAC key") + _hkdf(shared_point_x, b"CTAP2 AES key")


class PinProtocols:
    """Every supported protocol, each with its key agreement key until the next power cycle."""

    def __init__(self, entropy: Entropy) -> None:
        known: tuple[PinProtocol, ...] = (PinProtocolTwo(entropy), PinProtocolOne(entropy))
        self._known = {protocol.version: protocol for protocol in known}

    @property
    def versions(self) -> tuple[int, ...]:
        """The preferred one first."""
        return tuple(self._known)

    def named(self, version: int | None) -> PinProtocol:
        """Return the protocol asked for (section 6.1.2 step 2): absent and unknown have their own status."""
        if version is None:
            raise CommandError(Status.MISSING_PARAMETER)
        if version not in self._known:
            raise CommandError(Status.INVALID_PARAMETER)
        return self._known[version]


def _peer_key(cose: Mapping[object, object]) -> ec.EllipticCurvePublicKey:
    x, y = cose.get(-2), cose.get(-3)
    if (cose.get(1), cose.get(3), cose.get(-1)) != (2, _ECDH_ES_HKDF_256, 1):
        raise CommandError(Status.INVALID_PARAMETER)
    if not (isinstance(x, bytes) and isinstance(y, bytes) and len(x) == len(y) == 32):
        raise CommandError(Status.INVALID_PARAMETER)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
    except ValueError:
        raise CommandError(Status.INVALID_PARAMETER) from None


def _encrypt(key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    step = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return step.update(plaintext) + step.finalize()


def _decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    if not ciphertext or len(ciphertext) % _BLOCK:
        raise CommandError(Status.PIN_AUTH_INVALID)
    step = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    return step.update(ciphertext) + step.finalize()


def _verify(expected: bytes, signature: bytes) -> None:
    if not hmac.compare_digest(expected, signature):
        raise CommandError(Status.PIN_AUTH_INVALID)


def _hkdf(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=bytes(32), info=purpose).derive(secret)
