"""Signatures of a token's key, in the form that WebAuthn wants, each verified before it leaves.

A token is given digests for ECDSA and answers with r and s, one after the other (PKCS#11 section 6.3.1); WebAuthn has
the DER of both. For RSA it hashes itself, or is given the DigestInfo of RFC 8017 section 9.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, Final

import pkcs11
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import KeyType, Mechanism, MechanismFlag

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, EvidenceError, KeyvouchError, Reason

__all__ = ["HASHES", "KEY_TYPES", "RSA_BITS", "checked", "sign", "supported"]

HASHES: Final = {Algorithm.ES256: "sha256", Algorithm.ES384: "sha384", Algorithm.RS256: "sha256"}
KEY_TYPES: Final = {Algorithm.ES256: KeyType.EC, Algorithm.ES384: KeyType.EC, Algorithm.RS256: KeyType.RSA}
_CURVE_BITS: Final = {Algorithm.ES256: 256, Algorithm.ES384: 384}
RSA_BITS: Final = 2048

_GENERATE: Final = {KeyType.EC: Mechanism.EC_KEY_PAIR_GEN, KeyType.RSA: Mechanism.RSA_PKCS_KEY_PAIR_GEN}
_SHA256_INFO: Final = bytes.fromhex("3031300d060960864801650304020105000420")
"""DigestInfo of SHA-256, but for the digest."""


def supported(slot: pkcs11.Slot, mechanisms: Collection[Mechanism | int], *, making: bool) -> tuple[Algorithm, ...]:
    """The algorithms of a token, the preferred one first: those it signs with, and makes keys for if it is `making`."""
    return tuple(a for a in KEY_TYPES if _signs(slot, mechanisms, a) and (not making or _makes(slot, mechanisms, a)))


def sign(
    key: Any, algorithm: Algorithm, message: bytes, mechanisms: Collection[Mechanism | int], pin: str | None
) -> bytes:
    """One signature by a private key. `pin` is for keys that want it each time (CKA_ALWAYS_AUTHENTICATE)."""
    if KEY_TYPES[algorithm] is KeyType.EC:
        digest = hashlib.new(HASHES[algorithm], message).digest()
        return _to_der(key.sign(digest, mechanism=Mechanism.ECDSA, pin=pin))
    if Mechanism.SHA256_RSA_PKCS in mechanisms:
        return bytes(key.sign(message, mechanism=Mechanism.SHA256_RSA_PKCS, pin=pin))
    info = _SHA256_INFO + hashlib.sha256(message).digest()
    return bytes(key.sign(info, mechanism=Mechanism.RSA_PKCS, pin=pin))


def checked(signature: bytes, message: bytes, public_key: bytes) -> bytes:
    """The signature, if it is one. Raises `DeviceError(DEVICE_KEY_LOST)`: another key stands in this one's place."""
    try:
        CoseKey(public_key).verify_signature(signature=signature, message=message)
    except EvidenceError as error:
        raise DeviceError(
            Reason.DEVICE_KEY_LOST,
            "The card's signature does not fit the key that was registered: another key is in its place now.",
            fix="Put the right card in. If the key was replaced: run `keyvouch-agent enroll --replace`.",
        ) from error
    except KeyvouchError as error:
        raise _senseless() from error
    return signature


def _signs(slot: pkcs11.Slot, mechanisms: Collection[Mechanism | int], algorithm: Algorithm) -> bool:
    if KEY_TYPES[algorithm] is KeyType.RSA:
        return Mechanism.SHA256_RSA_PKCS in mechanisms or Mechanism.RSA_PKCS in mechanisms
    return Mechanism.ECDSA in mechanisms and _in_range(slot, Mechanism.ECDSA, _CURVE_BITS[algorithm])


def _makes(slot: pkcs11.Slot, mechanisms: Collection[Mechanism | int], algorithm: Algorithm) -> bool:
    mechanism = _GENERATE[KEY_TYPES[algorithm]]
    if mechanism not in mechanisms:
        return False
    made = slot.get_mechanism_info(mechanism).flags & MechanismFlag.GENERATE_KEY_PAIR
    return bool(made) and _in_range(slot, mechanism, _CURVE_BITS.get(algorithm, RSA_BITS))


def _in_range(slot: pkcs11.Slot, mechanism: Mechanism, bits: int) -> bool:
    told = slot.get_mechanism_info(mechanism)
    return (told.min_key_length or 0) <= bits <= (told.max_key_length or bits)


def _to_der(raw: Any) -> bytes:
    signature = bytes(raw)
    half = len(signature) // 2
    if not half or len(signature) % 2:
        raise _senseless()
    return encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))


def _senseless() -> DeviceError:
    return DeviceError(
        Reason.DEVICE_FAILED,
        "The card answered with something that is no signature.",
        fix="Take it out, put it back in and try again.",
    )
