"""Public areas of a TPM: of keys (TPMT_PUBLIC) and of NV indices (TPMS_NV_PUBLIC), and the names they have.

A value is the bytes it was received as; one that exists is well-formed. The name of an object is the hash of these
bytes, so it stands for every attribute, policy and key in them (TPM 2.0 Library, Part 1 section 16).

What is not here: which attributes a key for some purpose must have (`keyvouch.attestation.tpm_keys`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag, unique
from typing import Self, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keyvouch.attestation.tpm_wire import TpmAlgorithm, TpmHash, TpmReader, malformed
from keyvouch.errors import MalformedError, Reason
from keyvouch.roca import check_modulus

__all__ = [
    "TpmNvAttributes",
    "TpmNvPublic",
    "TpmNvType",
    "TpmObjectAttributes",
    "TpmPublic",
    "TpmPublicKey",
    "TpmScheme",
    "TpmSymmetric",
]

TpmPublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_RSA_BITS = range(2048, 4097)
_RSA_EXPONENT = 65537


class TpmObjectAttributes(IntFlag):
    """TPMA_OBJECT (Part 2 section 8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


class TpmNvAttributes(IntFlag):
    """TPMA_NV without the type of the index (Part 2 section 13.4)."""

    PP_WRITE = 1 << 0
    OWNER_WRITE = 1 << 1
    AUTH_WRITE = 1 << 2
    POLICY_WRITE = 1 << 3
    POLICY_DELETE = 1 << 10
    WRITE_LOCKED = 1 << 11
    WRITE_ALL = 1 << 12
    WRITE_DEFINE = 1 << 13
    WRITE_ST_CLEAR = 1 << 14
    GLOBAL_LOCK = 1 << 15
    PP_READ = 1 << 16
    OWNER_READ = 1 << 17
    AUTH_READ = 1 << 18
    POLICY_READ = 1 << 19
    NO_DA = 1 << 25
    ORDERLY = 1 << 26
    CLEAR_ST_CLEAR = 1 << 27
    READ_LOCKED = 1 << 28
    WRITTEN = 1 << 29
    PLATFORM_CREATE = 1 << 30
    READ_ST_CLEAR = 1 << 31


@unique
class TpmNvType(IntEnum):
    """TPM_NT, what an NV index holds (Part 2 section 13.2)."""

    ORDINARY = 0
    COUNTER = 1
    BITS = 2
    EXTEND = 4
    PIN_FAIL = 8
    PIN_PASS = 9


@dataclass(frozen=True, slots=True)
class TpmSymmetric:
    """TPMT_SYM_DEF_OBJECT: how a storage key protects what is below it (Part 2 section 11.1.7)."""

    algorithm: TpmAlgorithm
    key_bits: int
    mode: TpmAlgorithm


@dataclass(frozen=True, slots=True)
class TpmScheme:
    """A signing, decryption or key derivation scheme (Part 2 sections 11.2.1 to 11.2.3). `hash` is None for RSAES."""

    algorithm: TpmAlgorithm
    hash: TpmHash | None


class TpmPublic(bytes):
    """TPMT_PUBLIC of an RSA or ECC key (Part 2 section 12.2.4).

    `auth_policy` is a digest of `name_algorithm` or empty. `symmetric`, `scheme` and `kdf` are None where the TPM
    says TPM_ALG_NULL. `key` is checked: an RSA modulus has 2048 to 4096 bits, a point lies on its curve.
    """

    type: TpmAlgorithm
    name_algorithm: TpmHash
    attributes: TpmObjectAttributes
    auth_policy: bytes
    symmetric: TpmSymmetric | None
    scheme: TpmScheme | None
    kdf: TpmScheme | None
    key: TpmPublicKey
    name: bytes

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`, a TPMT_PUBLIC without the length of a TPM2B_PUBLIC.

        Raises `MalformedError`: `TPM_PUBLIC_KEY` for what is no RSA or ECC key or cannot be a good one, `TPM_PARSE`
        for all else; `EvidenceError` with `WEAK_KEY_ROCA`.
        """
        if isinstance(data, cls):
            return data
        self = super().__new__(cls, data)
        reader = TpmReader(data, "TPMT_PUBLIC")
        self.type = _read_type(reader)
        self.name_algorithm = reader.hash()
        self.attributes = _read_attributes(reader)
        self.auth_policy = reader.digest(self.name_algorithm)
        self.symmetric = _read_symmetric(reader)
        self._read_key(reader)
        self.name = _name(self.name_algorithm, data)
        return self

    def _read_key(self, reader: TpmReader) -> None:
        """Read what differs between RSA and ECC: scheme, size or curve, and the key."""
        if self.type is TpmAlgorithm.RSA:
            self.scheme, self.kdf = _read_scheme(reader, _RSA_SCHEMES), None
            bits, exponent, modulus = reader.u16(), reader.u32(), reader.sized()
            reader.end()
            self.key = _rsa_key(bits, exponent, modulus)
            return
        self.scheme = _read_scheme(reader, _ECC_SCHEMES)
        curve = reader.u16()
        self.kdf = _read_scheme(reader, _KDF_SCHEMES)
        x, y = reader.sized(), reader.sized()
        reader.end()
        self.key = _ecc_key(curve, x, y)

    def __repr__(self) -> str:
        return f"TpmPublic({self.hex()})"


class TpmNvPublic(bytes):
    """TPMS_NV_PUBLIC (Part 2 section 13.5). `handle` is the number of the index, `data_size` its size in bytes."""

    handle: int
    name_algorithm: TpmHash
    type: TpmNvType
    attributes: TpmNvAttributes
    auth_policy: bytes
    data_size: int
    name: bytes

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`, without the length of a TPM2B_NV_PUBLIC. Raises `MalformedError` with `TPM_PARSE`."""
        if isinstance(data, cls):
            return data
        self = super().__new__(cls, data)
        reader = TpmReader(data, "TPMS_NV_PUBLIC")
        self.handle = reader.u32()
        if self.handle >> 24 != _NV_HANDLES:
            raise reader.malformed("The handle is not one of an NV index.")
        self.name_algorithm = reader.hash()
        self.type, self.attributes = _read_nv_attributes(reader)
        self.auth_policy = reader.digest(self.name_algorithm)
        self.data_size = reader.u16()
        reader.end()
        self.name = _name(self.name_algorithm, data)
        return self

    def __repr__(self) -> str:
        return f"TpmNvPublic({self.hex()})"


def _name(algorithm: TpmHash, public_area: bytes) -> bytes:
    """The name of an entity: the algorithm and the digest of its public area (Part 1 section 16)."""
    return algorithm.to_bytes(2, "big") + algorithm.digest(public_area)


# Members

_NV_HANDLES = 0x01  # TPM_HT_NV_INDEX (Part 2 section 7.2)
_NV_TYPE = 0xF0
_CIPHERS = (TpmAlgorithm.TDES, TpmAlgorithm.AES, TpmAlgorithm.SM4, TpmAlgorithm.CAMELLIA)
_MODES = (TpmAlgorithm.CTR, TpmAlgorithm.OFB, TpmAlgorithm.CBC, TpmAlgorithm.CFB, TpmAlgorithm.ECB)
_RSA_SCHEMES = (TpmAlgorithm.RSASSA, TpmAlgorithm.RSAES, TpmAlgorithm.RSAPSS, TpmAlgorithm.OAEP)
_ECC_SCHEMES = (
    TpmAlgorithm.ECDSA,
    TpmAlgorithm.ECDH,
    TpmAlgorithm.ECDAA,
    TpmAlgorithm.SM2,
    TpmAlgorithm.ECSCHNORR,
    TpmAlgorithm.ECMQV,
)
_KDF_SCHEMES = (
    TpmAlgorithm.MGF1,
    TpmAlgorithm.KDF1_SP800_56A,
    TpmAlgorithm.KDF2,
    TpmAlgorithm.KDF1_SP800_108,
)


def _read_type(reader: TpmReader) -> TpmAlgorithm:
    number = reader.u16()
    if number not in (TpmAlgorithm.RSA, TpmAlgorithm.ECC):
        raise _bad_key(f"An object of the type {number:#06x} has no public key.")
    return TpmAlgorithm(number)


def _read_attributes(reader: TpmReader) -> TpmObjectAttributes:
    value = reader.u32()
    if value & ~_OBJECT_BITS:
        raise reader.malformed("A reserved attribute is set.")
    return TpmObjectAttributes(value)


def _read_nv_attributes(reader: TpmReader) -> tuple[TpmNvType, TpmNvAttributes]:
    value = reader.u32()
    kind = (value & _NV_TYPE) >> 4
    if value & ~(_NV_BITS | _NV_TYPE) or kind not in set(TpmNvType):
        raise reader.malformed("A reserved attribute is set.")
    return TpmNvType(kind), TpmNvAttributes(value & _NV_BITS)


_OBJECT_BITS = sum(TpmObjectAttributes)
_NV_BITS = sum(TpmNvAttributes)


def _read_algorithm(reader: TpmReader, known: tuple[TpmAlgorithm, ...]) -> TpmAlgorithm:
    number = reader.u16()
    if number not in known:
        raise reader.malformed(f"The algorithm {number:#06x} is not one of this member.")
    return TpmAlgorithm(number)


def _read_symmetric(reader: TpmReader) -> TpmSymmetric | None:
    algorithm = _read_algorithm(reader, (TpmAlgorithm.NULL, *_CIPHERS))
    if algorithm is TpmAlgorithm.NULL:
        return None
    return TpmSymmetric(algorithm, reader.u16(), _read_algorithm(reader, _MODES))


def _read_scheme(reader: TpmReader, known: tuple[TpmAlgorithm, ...]) -> TpmScheme | None:
    algorithm = _read_algorithm(reader, (TpmAlgorithm.NULL, *known))
    if algorithm is TpmAlgorithm.NULL:
        return None
    if algorithm is TpmAlgorithm.RSAES:
        return TpmScheme(algorithm, None)
    scheme = TpmScheme(algorithm, reader.hash())
    if algorithm is TpmAlgorithm.ECDAA:
        reader.u16()  # the commit counter, which verifies nothing
    return scheme


# Keys

_CURVES: Mapping[int, ec.EllipticCurve] = {  # TPM_ECC_CURVE (Part 2 section 6.4)
    0x0003: ec.SECP256R1(),
    0x0004: ec.SECP384R1(),
    0x0005: ec.SECP521R1(),
}


def _rsa_key(bits: int, exponent: int, modulus: bytes) -> rsa.RSAPublicKey:
    number = int.from_bytes(modulus, "big")
    if exponent not in (0, _RSA_EXPONENT):  # 0 stands for the default (Part 2 section 12.2.3.5)
        raise _bad_key(f"The RSA exponent is not {_RSA_EXPONENT}.")
    if bits not in _RSA_BITS or len(modulus) * 8 != bits or number.bit_length() != bits or number % 2 == 0:
        raise _bad_key("The RSA modulus is not an odd number of 2048 to 4096 bits, or not of the length it says.")
    check_modulus(number)
    return rsa.RSAPublicNumbers(_RSA_EXPONENT, number).public_key()


def _ecc_key(number: int, x: bytes, y: bytes) -> ec.EllipticCurvePublicKey:
    """Older TPMs leave out leading zeros of coordinates (Part 1 annex C.8)."""
    curve = _CURVES.get(number)
    if curve is None:
        raise _bad_key(f"The curve {number:#06x} is not supported.")
    size = (curve.key_size + 7) // 8
    if not (0 < len(x) <= size and 0 < len(y) <= size):
        raise _bad_key("A coordinate does not have the length of the curve.")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(
            curve, b"\x04" + x.rjust(size, b"\0") + y.rjust(size, b"\0")
        )
    except ValueError:
        raise _bad_key("The point does not lie on its curve.") from None


def _bad_key(message: str) -> MalformedError:
    return malformed(Reason.TPM_PUBLIC_KEY, f"The TPM key cannot be used. {message}")
