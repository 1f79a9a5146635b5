"""A forge of TPM evidence: structures as a TPM marshals them, properly signed by throw-away keys.

Everything is good unless a test bends one thing. The writing is kept apart from the reading it tests: it uses numbers
of the TPM 2.0 Library, Part 2, and nothing of `keyvouch` but the type of the result.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keyvouch.attestation.tpm_structures import TpmPublic

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

NONCE = bytes(range(32))
SHA1, SHA256, SHA384, SHA512 = 0x0004, 0x000B, 0x000C, 0x000D
RSASSA, RSAPSS, ECDSA = 0x0014, 0x0016, 0x0018
NV, CERTIFY, QUOTE, CREATION = 0x8014, 0x8017, 0x8018, 0x801A
NULL = b"\x00\x10"

AK_ATTRIBUTES = 0x00050072
LOGIN_ATTRIBUTES = 0x00040072
EK_ATTRIBUTES = 0x000300B2

_HASHES: dict[int, hashes.HashAlgorithm] = {
    SHA1: hashes.SHA1(),
    SHA256: hashes.SHA256(),
    SHA384: hashes.SHA384(),
    SHA512: hashes.SHA512(),
}
_CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}


def tpm2b(data: bytes) -> bytes:
    """A TPM2B: the length and the data."""
    return struct.pack(">H", len(data)) + data


def scheme(algorithm: int, digest: int = SHA256) -> bytes:
    """A scheme with a hash."""
    return struct.pack(">HH", algorithm, digest)


def aes_cfb(bits: int = 128) -> bytes:
    """A TPMT_SYM_DEF_OBJECT."""
    return struct.pack(">HHH", 0x0006, bits, 0x0043)


@cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """A throw-away RSA-2048 key, the same for the same number."""
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(number: int = 0, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """A throw-away key on a curve, the same for the same number."""
    return ec.generate_private_key(curve())


def ecc_public(
    x: bytes,
    y: bytes,
    *,
    curve: int = 3,
    attributes: int = LOGIN_ATTRIBUTES,
    name_algorithm: int = SHA256,
    policy: bytes = b"",
    symmetric: bytes = NULL,
    scheme: bytes = NULL,
    kdf: bytes = NULL,
) -> bytes:
    """A TPMT_PUBLIC of an ECC key."""
    head = struct.pack(">HHI", 0x0023, name_algorithm, attributes) + tpm2b(policy)
    return head + symmetric + scheme + struct.pack(">H", curve) + kdf + tpm2b(x) + tpm2b(y)


def rsa_public(
    modulus: bytes,
    *,
    bits: int = 2048,
    exponent: int = 0,
    attributes: int = LOGIN_ATTRIBUTES,
    name_algorithm: int = SHA256,
    policy: bytes = b"",
    symmetric: bytes = NULL,
    scheme: bytes = NULL,
) -> bytes:
    """A TPMT_PUBLIC of an RSA key."""
    head = struct.pack(">HHI", 0x0001, name_algorithm, attributes) + tpm2b(policy)
    return head + symmetric + scheme + struct.pack(">HI", bits, exponent) + tpm2b(modulus)


def public_area(key: PrivateKey, **changes: object) -> bytes:
    """The TPMT_PUBLIC of a key; `changes` are arguments of `ecc_public` or `rsa_public`."""
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n
        return rsa_public(modulus.to_bytes(key.key_size // 8, "big"), **changes)  # type: ignore[arg-type]
    numbers, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
    members: dict[str, object] = {"curve": _CURVES[key.curve.name]} | changes
    return ecc_public(numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big"), **members)  # type: ignore[arg-type]


def attestation_key(
    key: PrivateKey, algorithm: int | None = None, digest: int = SHA256, **changes: object
) -> TpmPublic:
    """The public area of an attestation key."""
    chosen = algorithm or (RSASSA if isinstance(key, rsa.RSAPrivateKey) else ECDSA)
    members: dict[str, object] = {"attributes": AK_ATTRIBUTES, "scheme": scheme(chosen, digest)} | changes
    return TpmPublic(public_area(key, **members))


def nv_public(
    *,
    index: int = 0x01800001,
    name_algorithm: int = SHA256,
    attributes: int = 0x20040004,
    policy: bytes = b"",
    size: int = 8,
) -> bytes:
    """A TPMS_NV_PUBLIC: an ordinary, written index, written by its authorization value, read by it too."""
    return struct.pack(">IHI", index, name_algorithm, attributes) + tpm2b(policy) + struct.pack(">H", size)


def clock_info(clock: int = 12345, resets: int = 2, restarts: int = 1, safe: int = 1) -> bytes:
    """A TPMS_CLOCK_INFO."""
    return struct.pack(">QIIB", clock, resets, restarts, safe)


def attest(
    kind: int,
    body: bytes,
    *,
    nonce: bytes = NONCE,
    magic: bytes = b"\xffTCG",
    signer: bytes = b"\x00\x0b" + b"\x22" * 32,
    clock: bytes = clock_info(),
    firmware: int = 0x0102030405060708,
) -> bytes:
    """A TPMS_ATTEST."""
    return magic + struct.pack(">H", kind) + tpm2b(signer) + tpm2b(nonce) + clock + struct.pack(">Q", firmware) + body


QUALIFIED_NAME = b"\x00\x0b" + b"\x11" * 32


def certify_info(name: bytes, qualified_name: bytes = QUALIFIED_NAME) -> bytes:
    """A TPMS_CERTIFY_INFO, or a TPMS_CREATION_INFO where the second is a hash."""
    return tpm2b(name) + tpm2b(qualified_name)


def selection(pcrs: Iterable[int], bank: int = SHA256, size: int = 3) -> bytes:
    """A TPMS_PCR_SELECTION."""
    return struct.pack(">HB", bank, size) + sum(1 << pcr for pcr in pcrs).to_bytes(size, "little")


def quote_info(selections: list[bytes], digest: bytes) -> bytes:
    """A TPMS_QUOTE_INFO."""
    return struct.pack(">I", len(selections)) + b"".join(selections) + tpm2b(digest)


def pcr_digest(values: dict[int, bytes], digest: str = "sha256") -> bytes:
    """The digest of PCR values as a TPM makes it."""
    return hashlib.new(digest, b"".join(values[pcr] for pcr in sorted(values))).digest()


def nv_certify_info(name: bytes, contents: bytes, offset: int = 0) -> bytes:
    """A TPMS_NV_CERTIFY_INFO."""
    return tpm2b(name) + struct.pack(">H", offset) + tpm2b(contents)


def creation_data(outside: bytes = b"outside", *, locality: int = 1, selections: tuple[bytes, ...] = ()) -> bytes:
    """A TPMS_CREATION_DATA."""
    head = struct.pack(">I", len(selections)) + b"".join(selections) + tpm2b(b"\x33" * 32)
    parent = tpm2b(b"\x00\x0b" + b"\x44" * 32) + tpm2b(b"\x00\x0b" + b"\x55" * 32)
    return head + struct.pack(">BH", locality, SHA256) + parent + tpm2b(outside)


def sign(key: PrivateKey, message: bytes, algorithm: int | None = None, digest: int = SHA256) -> bytes:
    """A TPMT_SIGNATURE over `message`."""
    chosen = _HASHES[digest]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(chosen)))
        size = (key.key_size + 7) // 8
        return scheme(algorithm or ECDSA, digest) + tpm2b(r.to_bytes(size, "big")) + tpm2b(s.to_bytes(size, "big"))
    pad = padding.PSS(padding.MGF1(chosen), padding.PSS.MAX_LENGTH) if algorithm == RSAPSS else padding.PKCS1v15()
    return scheme(algorithm or RSASSA, digest) + tpm2b(key.sign(message, pad, chosen))
