"""Reading what a TPM marshals (TPM 2.0 Library, Part 1 section 12, Part 2 section 4): big-endian, no padding.

A reader walks through one byte string, refuses short and left-over input, and raises `TPM_PARSE` for both. The
algorithm identifiers that occur in structures are here too, because nearly every structure is shaped by one.

What is not here: the structures themselves (`keyvouch.attestation.tpm_structures`), and writing.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, unique

from keyvouch.errors import MalformedError, Reason

__all__ = ["TpmAlgorithm", "TpmHash", "TpmReader", "malformed", "unwrap_tpm2b"]


@unique
class TpmAlgorithm(IntEnum):
    """Algorithm identifiers other than hashes (Part 2 section 6.3, TCG Algorithm Registry)."""

    RSA = 0x0001
    TDES = 0x0003
    AES = 0x0006
    MGF1 = 0x0007
    KEYEDHASH = 0x0008
    NULL = 0x0010
    SM4 = 0x0013
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECDAA = 0x001A
    SM2 = 0x001B
    ECSCHNORR = 0x001C
    ECMQV = 0x001D
    KDF1_SP800_56A = 0x0020
    KDF2 = 0x0021
    KDF1_SP800_108 = 0x0022
    ECC = 0x0023
    SYMCIPHER = 0x0025
    CAMELLIA = 0x0026
    CTR = 0x0040
    OFB = 0x0041
    CBC = 0x0042
    CFB = 0x0043
    ECB = 0x0044


@unique
class TpmHash(IntEnum):
    """The hash algorithms understood here, by their TPM identifier."""

    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D

    @property
    def hash_name(self) -> str:
        """What `hashlib` calls it."""
        return self.name.lower()

    @property
    def digest_size(self) -> int:
        """Length of a digest in bytes."""
        return _DIGEST_SIZES[self]

    def digest(self, data: bytes) -> bytes:
        """Return the digest of `data`."""
        return hashlib.new(self.hash_name, data).digest()


_DIGEST_SIZES = {TpmHash.SHA1: 20, TpmHash.SHA256: 32, TpmHash.SHA384: 48, TpmHash.SHA512: 64}


class TpmReader:
    """Reads the members of the structure `name`, one after the other. Every method may raise `reason`."""

    __slots__ = ("_at", "_data", "_name", "_reason")

    def __init__(self, data: bytes, name: str, reason: Reason = Reason.TPM_PARSE) -> None:
        self._data = data
        self._name = name
        self._reason = reason
        self._at = 0

    def take(self, size: int) -> bytes:
        """Read `size` bytes."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise self.malformed("It ends early.")
        return self._data[start : self._at]

    def u8(self) -> int:
        """Read an unsigned number of 8 bits."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Read an unsigned number of 16 bits."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Read an unsigned number of 32 bits."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Read an unsigned number of 64 bits."""
        return int.from_bytes(self.take(8), "big")

    def sized(self) -> bytes:
        """Read the content of a TPM2B: a 16-bit length and that many bytes (Part 2 section 10.4)."""
        return self.take(self.u16())

    def yes_no(self) -> bool:
        """Read a TPMI_YES_NO, which is 0 or 1 (Part 2 section 9.2)."""
        value = self.u8()
        if value > 1:
            raise self.malformed("A truth value is neither 0 nor 1.")
        return value == 1

    def hash(self) -> TpmHash:
        """Read the identifier of a hash algorithm."""
        number = self.u16()
        try:
            return TpmHash(number)
        except ValueError:
            raise self.malformed(f"The hash algorithm {number:#06x} is not supported.") from None

    def digest(self, algorithm: TpmHash) -> bytes:
        """Read a TPM2B that holds a digest of this algorithm or nothing."""
        digest = self.sized()
        if len(digest) not in (0, algorithm.digest_size):
            raise self.malformed("A digest does not have the length of its hash algorithm.")
        return digest

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise self.malformed(f"{len(self._data) - self._at} bytes follow it.")

    def malformed(self, why: str) -> MalformedError:
        """Return the error for this structure."""
        return malformed(self._reason, f"The TPM structure {self._name} is wrong. {why}")


def unwrap_tpm2b(data: bytes) -> bytes:
    """Return the content of a TPM2B that `data` consists of. Raises `MalformedError` with `TPM_PARSE`."""
    reader = TpmReader(data, "TPM2B")
    content = reader.sized()
    reader.end()
    return content


def malformed(reason: Reason, message: str) -> MalformedError:
    """Return the error for bytes that no TPM marshals."""
    return MalformedError(reason, message, fix="Send the structure as the TPM returned it, without its TPM2B length.")
