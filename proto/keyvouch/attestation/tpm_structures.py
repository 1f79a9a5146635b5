"""The structures of TPM evidence: what a TPM attests (TPMS_ATTEST), creation data and signatures.

Each is a `bytes` subclass: what is hashed and verified is what was received, never a re-encoding. Making one from
bytes parses it strictly and raises `MalformedError`; an instance that exists is well-formed. Public areas are in
`keyvouch.attestation.tpm_public` and can be had from here too.

What is not here: expectations. Whether a signature, a nonce or a name is the right one is judged in
`keyvouch.attestation.tpm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Self, TypeAlias

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keyvouch.attestation.tpm_public import (
    TpmNvAttributes,
    TpmNvPublic,
    TpmNvType,
    TpmObjectAttributes,
    TpmPublic,
    TpmPublicKey,
    TpmScheme,
    TpmSymmetric,
)
from keyvouch.attestation.tpm_wire import TpmAlgorithm, TpmHash, TpmReader, malformed, unwrap_tpm2b
from keyvouch.errors import MalformedError, Reason

__all__ = [
    "TpmAlgorithm",
    "TpmAttest",
    "TpmAttestType",
    "TpmAttested",
    "TpmCertified",
    "TpmClock",
    "TpmCreated",
    "TpmCreationData",
    "TpmHash",
    "TpmNvAttributes",
    "TpmNvCertified",
    "TpmNvPublic",
    "TpmNvType",
    "TpmObjectAttributes",
    "TpmPcrSelection",
    "TpmPublic",
    "TpmPublicKey",
    "TpmQuoted",
    "TpmScheme",
    "TpmSignature",
    "TpmSymmetric",
    "attest_type",
    "check_framing",
    "unwrap_tpm2b",
]

_MAGIC = b"\xffTCG"  # TPM_GENERATED_VALUE (Part 2 section 6.2)
_HEADER = 6  # magic and type
_MAX_SELECTIONS = 16  # HASH_COUNT, far above what any TPM has
_BITMAP = 3  # sizeofSelect for the 24 PCRs of the PC Client profile (Part 2 section 10.6.2)


@unique
class TpmAttestType(IntEnum):
    """The tags of the attestations understood here (Part 2 section 6.9)."""

    NV = 0x8014
    CERTIFY = 0x8017
    QUOTE = 0x8018
    CREATION = 0x801A


@dataclass(frozen=True, slots=True)
class TpmClock:
    """TPMS_CLOCK_INFO (Part 2 section 10.11.1): milliseconds of operation, resets and restarts since the last clear.

    `safe` is False after a shutdown without notice, when `clock` may have been seen before. Keys outside the
    endorsement and platform hierarchies report obfuscated counts (Part 1 section 36.7).
    """

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class TpmPcrSelection:
    """TPMS_PCR_SELECTION: PCRs of one bank (Part 2 section 10.6.2)."""

    bank: TpmHash
    pcrs: frozenset[int]


@dataclass(frozen=True, slots=True)
class TpmCertified:
    """TPMS_CERTIFY_INFO: an object that is loaded in the TPM (Part 2 section 10.12.3)."""

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True)
class TpmQuoted:
    """TPMS_QUOTE_INFO: PCRs and the digest of their values (Part 2 section 10.12.4)."""

    selections: tuple[TpmPcrSelection, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class TpmCreated:
    """TPMS_CREATION_INFO: an object that this TPM made (Part 2 section 10.12.7)."""

    object_name: bytes
    creation_hash: bytes


@dataclass(frozen=True, slots=True)
class TpmNvCertified:
    """TPMS_NV_CERTIFY_INFO: what an NV index holds (Part 2 section 10.12.8)."""

    index_name: bytes
    offset: int
    contents: bytes


TpmAttested: TypeAlias = TpmCertified | TpmQuoted | TpmCreated | TpmNvCertified


def check_framing(data: bytes) -> None:
    """Check that `data` can be a TPMS_ATTEST at all: long enough, and not still in a TPM2B_ATTEST.

    Raises `MalformedError` with `TPM_PARSE`. It says what is wrong where a bad signature would tell nobody anything.
    """
    reader = TpmReader(data, "TPMS_ATTEST")
    length = reader.u16()
    reader.take(4)
    if length == len(data) - 2:
        raise reader.malformed("It is still in a TPM2B_ATTEST.")


def attest_type(data: bytes) -> TpmAttestType:
    """Look at the first members of a TPMS_ATTEST only: was it made inside a TPM, and what does it say?

    Raises `MalformedError`: `TPM_PARSE` (see `check_framing`), `TPM_MAGIC` if a TPM did not make it by itself,
    `TPM_ATTEST_TYPE` for a type not understood here.
    """
    check_framing(data)
    if data[:4] != _MAGIC:
        raise malformed(Reason.TPM_MAGIC, "The attestation does not begin with the mark of what a TPM made itself.")
    number = int.from_bytes(data[4:_HEADER], "big")
    if number not in set(TpmAttestType):
        raise malformed(Reason.TPM_ATTEST_TYPE, f"An attestation of the type {number:#06x} is not expected.")
    return TpmAttestType(number)


class TpmAttest(bytes):
    """TPMS_ATTEST (Part 2 section 10.12.12). `firmware_version` is the maker's, `extra_data` the qualifying data."""

    type: TpmAttestType
    qualified_signer: bytes
    extra_data: bytes
    clock: TpmClock
    firmware_version: int
    attested: TpmAttested

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`, without the length of a TPM2B_ATTEST. Raises `MalformedError`: see `attest_type`."""
        if isinstance(data, cls):
            return data
        self = super().__new__(cls, data)
        self.type = attest_type(data)
        reader = TpmReader(data, "TPMS_ATTEST")
        reader.take(_HEADER)
        self.qualified_signer, self.extra_data = reader.sized(), reader.sized()
        self.clock = TpmClock(reader.u64(), reader.u32(), reader.u32(), reader.yes_no())
        self.firmware_version = reader.u64()
        self.attested = _read_attested(reader, self.type)
        reader.end()
        return self

    def __repr__(self) -> str:
        return f"TpmAttest({self.hex()})"


class TpmCreationData(bytes):
    """TPMS_CREATION_DATA: the circumstances in which an object was made (Part 2 section 15.1).

    `locality` is a TPMA_LOCALITY, `parent_name_algorithm` the identifier of a hash, or TPM_ALG_NULL below a hierarchy.
    """

    selections: tuple[TpmPcrSelection, ...]
    pcr_digest: bytes
    locality: int
    parent_name_algorithm: int
    parent_name: bytes
    parent_qualified_name: bytes
    outside_info: bytes

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`, without the length of a TPM2B_CREATION_DATA. Raises `MalformedError` with `TPM_PARSE`."""
        if isinstance(data, cls):
            return data
        self = super().__new__(cls, data)
        reader = TpmReader(data, "TPMS_CREATION_DATA")
        self.selections, self.pcr_digest = _read_selections(reader), reader.sized()
        self.locality, self.parent_name_algorithm = reader.u8(), reader.u16()
        self.parent_name, self.parent_qualified_name = reader.sized(), reader.sized()
        self.outside_info = reader.sized()
        reader.end()
        return self

    def __repr__(self) -> str:
        return f"TpmCreationData({self.hex()})"


class TpmSignature(bytes):
    """TPMT_SIGNATURE of RSASSA, RSAPSS or ECDSA (Part 2 section 11.3.4).

    `value` is what `cryptography` verifies: the RSA signature, or the DER of r and s.
    """

    algorithm: TpmAlgorithm
    hash: TpmHash
    value: bytes

    def __new__(cls, data: bytes) -> Self:
        """Parse `data`. Raises `MalformedError`: `TPM_SIGNATURE_ALGORITHM` for other algorithms, else `SIGNATURE`."""
        if isinstance(data, cls):
            return data
        self = super().__new__(cls, data)
        reader = TpmReader(data, "TPMT_SIGNATURE", Reason.SIGNATURE)
        self.algorithm, self.hash = _read_signature_scheme(reader)
        if self.algorithm is TpmAlgorithm.ECDSA:
            r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
            self.value = encode_dss_signature(r, s)
        else:
            self.value = reader.sized()
        reader.end()
        return self

    def __repr__(self) -> str:
        return f"TpmSignature({self.hex()})"


# Members


def _read_attested(reader: TpmReader, kind: TpmAttestType) -> TpmAttested:
    if kind is TpmAttestType.CERTIFY:
        return TpmCertified(reader.sized(), reader.sized())
    if kind is TpmAttestType.QUOTE:
        return TpmQuoted(_read_selections(reader), reader.sized())
    if kind is TpmAttestType.CREATION:
        return TpmCreated(reader.sized(), reader.sized())
    return TpmNvCertified(reader.sized(), reader.u16(), reader.sized())


def _read_selections(reader: TpmReader) -> tuple[TpmPcrSelection, ...]:
    """Read a TPML_PCR_SELECTION (Part 2 section 10.9.7)."""
    count = reader.u32()
    if count > _MAX_SELECTIONS:
        raise reader.malformed("It selects PCRs of too many banks.")
    return tuple(_read_selection(reader) for _ in range(count))


def _read_selection(reader: TpmReader) -> TpmPcrSelection:
    bank, size = reader.hash(), reader.u8()
    if size != _BITMAP:
        raise reader.malformed(f"A selection of PCRs has {_BITMAP} bytes.")
    bits = int.from_bytes(reader.take(size), "little")
    return TpmPcrSelection(bank, frozenset(pcr for pcr in range(8 * size) if bits >> pcr & 1))


def _read_signature_scheme(reader: TpmReader) -> tuple[TpmAlgorithm, TpmHash]:
    number = reader.u16()
    if number not in (TpmAlgorithm.RSASSA, TpmAlgorithm.RSAPSS, TpmAlgorithm.ECDSA):
        raise _bad_algorithm(number)
    hash_number = reader.u16()
    if hash_number not in set(TpmHash):
        raise _bad_algorithm(hash_number)
    return TpmAlgorithm(number), TpmHash(hash_number)


def _bad_algorithm(number: int) -> MalformedError:
    return malformed(Reason.TPM_SIGNATURE_ALGORITHM, f"The signature algorithm {number:#06x} is not supported.")
