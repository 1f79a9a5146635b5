"""Writing what a TPM unmarshals: public areas of keys that are no TPM's, of NV indices, and signatures.

What is written is parsed again before it is returned, so it is well-formed by the same rules as what a TPM sends
(`keyvouch.attestation.tpm_public`, `tpm_structures`). What is not here: templates of keys a TPM makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keyvouch.attestation.tpm_public import (
    TpmNvAttributes,
    TpmNvPublic,
    TpmNvType,
    TpmObjectAttributes,
    TpmPublic,
    TpmPublicKey,
)
from keyvouch.attestation.tpm_structures import TpmSignature
from keyvouch.attestation.tpm_wire import TpmAlgorithm, TpmHash
from keyvouch.errors import UsageError

__all__ = ["TpmPrivateKey", "external_key", "nv_public", "sign", "sized"]

TpmPrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_CURVES: Final[Mapping[str, tuple[int, int]]] = {"secp256r1": (0x0003, 32), "secp384r1": (0x0004, 48)}
"""TPM_ECC_CURVE and the bytes of a coordinate."""
_RSA_BITS: Final = 2048
_ATTRIBUTES: Final = TpmObjectAttributes.SIGN | TpmObjectAttributes.USER_WITH_AUTH
_HASH: Final = hashes.SHA256()


def sized(content: bytes) -> bytes:
    """A TPM2B: a 16-bit length and the content (Part 2 section 10.4)."""
    return len(content).to_bytes(2, "big") + content


def external_key(key: TpmPublicKey) -> TpmPublic:
    """The public area of a key from outside, as TPM2_LoadExternal takes it to verify signatures.

    Always the same attributes, no scheme and no policy, so the name follows from the key alone. Raises `UsageError`
    for other keys than P-256, P-384 and RSA of 2048 bits.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        curve, size = _CURVES[key.curve.name]
        numbers = key.public_numbers()
        detail = _algorithms(TpmAlgorithm.NULL, TpmAlgorithm.NULL, curve, TpmAlgorithm.NULL)
        unique = sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))
        return _external(TpmAlgorithm.ECC, detail + unique)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size == _RSA_BITS:
        detail = _algorithms(TpmAlgorithm.NULL, TpmAlgorithm.NULL, _RSA_BITS) + bytes(4)
        return _external(TpmAlgorithm.RSA, detail + sized(key.public_numbers().n.to_bytes(_RSA_BITS // 8, "big")))
    raise UsageError("A key for a TPM to verify with is on P-256 or P-384, or RSA of 2048 bits.")


def nv_public(
    *, handle: int, kind: TpmNvType, attributes: TpmNvAttributes, auth_policy: bytes, data_size: int
) -> TpmNvPublic:
    """The public area of an NV index, its name by SHA-256."""
    bits = int(attributes) | kind << 4
    head = handle.to_bytes(4, "big") + _algorithms(TpmHash.SHA256) + bits.to_bytes(4, "big")
    return TpmNvPublic(head + sized(auth_policy) + data_size.to_bytes(2, "big"))


def sign(key: TpmPrivateKey, message: bytes) -> TpmSignature:
    """Sign with SHA-256, by ECDSA or RSASSA. Entropy comes from the cryptographic library, as ECDSA must have it."""
    if isinstance(key, rsa.RSAPrivateKey):
        value = key.sign(message, padding.PKCS1v15(), _HASH)
        return TpmSignature(_algorithms(TpmAlgorithm.RSASSA, TpmHash.SHA256) + sized(value))
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(_HASH)))
    size = (key.curve.key_size + 7) // 8
    values = sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
    return TpmSignature(_algorithms(TpmAlgorithm.ECDSA, TpmHash.SHA256) + values)


def _external(kind: TpmAlgorithm, rest: bytes) -> TpmPublic:
    return TpmPublic(_algorithms(kind, TpmHash.SHA256) + int(_ATTRIBUTES).to_bytes(4, "big") + sized(b"") + rest)


def _algorithms(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in numbers)
