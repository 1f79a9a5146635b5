"""Verification of what a TPM attests: a key it holds, PCRs, the creation of an object, contents of an NV index.

Every function takes the public area of an attestation key that the caller trusts already, by a certificate or by
credential activation, and the bytes the TPM returned. All of them do these checks first, in this order:

 1. the key has the attributes of an attestation key (`tpm_keys.check_attestation_key`): `TPM_AK_ATTRIBUTES`
 2. the attestation is long enough to be one and not still in a TPM2B: `TPM_PARSE`
 3. the signature is made by the scheme of that key, which is never one with SHA-1: `TPM_SIGNATURE_ALGORITHM`
 4. it is well-formed and verifies over the attestation: `SIGNATURE`
 5. the attestation was made inside a TPM: `TPM_MAGIC`
 6. it is of the type that was asked for: `TPM_ATTEST_TYPE`
 7. it is well-formed: `TPM_PARSE`
 8. it holds the qualifying data that was asked for, compared in constant time: `TPM_NONCE`

(TPM 2.0 Library, Part 1 section 31, Part 3 section 18.) What they return is frozen and only made here. Nothing here
reads a clock, a file or a network. Of `clock` and `firmware_version` in results: an attestation key outside the
endorsement and platform hierarchies reports them obfuscated, the counts and the version alike (Part 1 section 36.7).

What is not here: whose key the attestation key is, and single use of qualifying data.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from keyvouch.attestation.tpm_keys import check_attestation_key, check_signing_key
from keyvouch.attestation.tpm_structures import (
    TpmAlgorithm,
    TpmAttest,
    TpmAttestType,
    TpmCertified,
    TpmClock,
    TpmCreated,
    TpmCreationData,
    TpmHash,
    TpmNvCertified,
    TpmNvPublic,
    TpmPcrSelection,
    TpmPublic,
    TpmQuoted,
    TpmSignature,
    attest_type,
    check_framing,
)
from keyvouch.errors import EvidenceError, Reason, UsageError

__all__ = [
    "CertifiedKey",
    "VerifiedCreation",
    "VerifiedNvContents",
    "VerifiedQuote",
    "parse_attest",
    "verify_certify",
    "verify_creation",
    "verify_nv_certify",
    "verify_quote",
]

_PCRS = range(24)
_PCR_FIX = "Choose from 0 to 15 and 17 to 22, of the SHA-256 bank or a stronger one."
_RESETTABLE = frozenset((16, 23))
"""PCRs that any program can reset (TCG PC Client Platform TPM Profile, section 4.6.2): they prove nothing."""


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A key that the TPM of the attestation key holds. `qualified_name` covers its whole line of parents."""

    key: TpmPublic
    qualified_name: bytes
    clock: TpmClock
    firmware_version: int


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """PCR values of one bank that the TPM had when it signed. `pcr_values` maps the number of a PCR to a digest."""

    bank: TpmHash
    pcr_values: Mapping[int, bytes]
    clock: TpmClock
    firmware_version: int


@dataclass(frozen=True, slots=True)
class VerifiedCreation:
    """An object that the TPM of the attestation key made itself, and the circumstances."""

    key: TpmPublic
    creation_data: TpmCreationData
    clock: TpmClock
    firmware_version: int


@dataclass(frozen=True, slots=True)
class VerifiedNvContents:
    """`contents`, from `offset` on, of an NV index of the TPM of the attestation key."""

    index: TpmNvPublic
    offset: int
    contents: bytes
    clock: TpmClock
    firmware_version: int


def verify_certify(
    *, attestation_key: TpmPublic, attest: bytes, signature: bytes, subject: TpmPublic, qualifying_data: bytes
) -> CertifiedKey:
    """Verify TPM2_Certify: the TPM holds `subject`, which is good to sign in with.

    `attest` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE, `qualifying_data` at least one byte. Checks, after those of
    the module:

     9. the certified name is that of `subject`, which is another key than the attestation key: `TPM_NAME`
    10. the attributes of `subject` (`tpm_keys.check_signing_key`): `TPM_KEY_ATTRIBUTES`

    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails.
    """
    said = _verify(attestation_key, attest, signature, qualifying_data, TpmAttestType.CERTIFY)
    certified = said.attested
    assert isinstance(certified, TpmCertified)
    if certified.name != subject.name or subject.key == attestation_key.key:
        raise _refuse(Reason.TPM_NAME, "The certified name is not that of the key to be certified.")
    check_signing_key(subject)
    return CertifiedKey(subject, certified.qualified_name, said.clock, said.firmware_version)


def verify_quote(
    *,
    attestation_key: TpmPublic,
    attest: bytes,
    signature: bytes,
    qualifying_data: bytes,
    selection: Mapping[TpmHash, Collection[int]],
    pcr_values: Mapping[TpmHash, Mapping[int, bytes]],
) -> VerifiedQuote:
    """Verify TPM2_Quote: the PCRs of `selection` had `pcr_values`.

    `selection` is what was asked for: one bank, not SHA-1, and PCRs from 0 to 23 but for 16 and 23, which anybody can
    reset. `pcr_values` are as the device reports them. Checks, after those of the module:

     9. the quoted selection is the one that was asked for, one bank, nothing more and nothing less: `TPM_PCR_SELECTION`
    10. there is a value for each of these PCRs and for no other of the bank, of the length of its digests, and the
        hash of all of them in ascending order, by the hash of the signing scheme, is the quoted one: `TPM_PCR_DIGEST`

    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails, `UsageError` for a
    selection that makes no sense.
    """
    asked = _asked(selection)
    said = _verify(attestation_key, attest, signature, qualifying_data, TpmAttestType.QUOTE)
    quoted = said.attested
    assert isinstance(quoted, TpmQuoted)
    if quoted.selections != (asked,):
        raise _refuse(Reason.TPM_PCR_SELECTION, "The quote covers other PCRs than were asked for.")
    values = dict(pcr_values.get(asked.bank, {}))
    _check_digest(_scheme(attestation_key)[1], asked, values, quoted.digest)
    return VerifiedQuote(asked.bank, MappingProxyType(values), said.clock, said.firmware_version)


def verify_creation(
    *,
    attestation_key: TpmPublic,
    attest: bytes,
    signature: bytes,
    subject: TpmPublic,
    creation_data: bytes,
    qualifying_data: bytes,
    outside_info: bytes | None,
) -> VerifiedCreation:
    """Verify TPM2_CertifyCreation: the TPM made `subject` itself, under the circumstances of `creation_data`.

    `creation_data` is a TPMS_CREATION_DATA; `outside_info` what its creator should have passed in, None if anything
    will do. The attributes of `subject`, which may be the attestation key itself, are for the caller to check. Checks,
    after those of the module:

     9. the name is that of `subject`, and no SHA-1 digest: `TPM_NAME`
    10. the hash of the creation data, by the name algorithm of `subject`, is the certified one: `TPM_CREATION`
    11. the creation data is well-formed: `TPM_PARSE`
    12. it holds `outside_info`: `TPM_CREATION`

    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails.
    """
    said = _verify(attestation_key, attest, signature, qualifying_data, TpmAttestType.CREATION)
    created = said.attested
    assert isinstance(created, TpmCreated)
    _check_name_algorithm(subject.name_algorithm)
    if created.object_name != subject.name:
        raise _refuse(Reason.TPM_NAME, "The name is not that of the created object.")
    if created.creation_hash != subject.name_algorithm.digest(creation_data):
        raise _refuse(Reason.TPM_CREATION, "The creation data is not what the TPM certified.")
    parsed = TpmCreationData(creation_data)
    if outside_info is not None and parsed.outside_info != outside_info:
        raise _refuse(Reason.TPM_CREATION, "The object was made for another purpose.")
    return VerifiedCreation(subject, parsed, said.clock, said.firmware_version)


def verify_nv_certify(
    *,
    attestation_key: TpmPublic,
    attest: bytes,
    signature: bytes,
    qualifying_data: bytes,
    index: TpmNvPublic,
    offset: int = 0,
    size: int,
) -> VerifiedNvContents:
    """Verify TPM2_NV_Certify: `index` holds these contents, `size` bytes from `offset` on.

    Checks, after those of the module:

     9. the name is that of `index`, and no SHA-1 digest, so its attributes and policy are the expected ones: `TPM_NAME`
    10. the contents are of the expected place and length: `TPM_NV_INDEX`

    Raises `MalformedError` or `EvidenceError` with the reason of the first check that fails, `UsageError` for a size
    below one: nothing would be certified.
    """
    if size < 1:
        raise UsageError("At least one byte of an NV index is asked for.", fix="Ask for as many as it has.")
    said = _verify(attestation_key, attest, signature, qualifying_data, TpmAttestType.NV)
    certified = said.attested
    assert isinstance(certified, TpmNvCertified)
    _check_name_algorithm(index.name_algorithm)
    if certified.index_name != index.name:
        raise _refuse(Reason.TPM_NAME, "The name is not that of the NV index.")
    if certified.offset != offset or len(certified.contents) != size:
        raise _refuse(Reason.TPM_NV_INDEX, "The TPM certified another part of the NV index.")
    return VerifiedNvContents(index, offset, certified.contents, said.clock, said.firmware_version)


def parse_attest(attest: bytes, expected: TpmAttestType) -> TpmAttest:
    """Parse an attestation of one type: checks 5 to 7. Proves nothing without a signature."""
    if attest_type(attest) is not expected:
        raise _refuse(Reason.TPM_ATTEST_TYPE, f"The TPM attested something else than {expected.name}.")
    return TpmAttest(attest)


# What all of them check


def _verify(
    attestation_key: TpmPublic, attest: bytes, signature: bytes, qualifying_data: bytes, expected: TpmAttestType
) -> TpmAttest:
    if not qualifying_data:
        raise UsageError("An attestation is asked for with qualifying data.", fix="Draw 32 random bytes.")
    check_attestation_key(attestation_key)
    check_framing(attest)
    _verify_signature(attestation_key, TpmSignature(signature), attest)
    said = parse_attest(attest, expected)
    if not hmac.compare_digest(said.extra_data, qualifying_data):
        raise _refuse(Reason.TPM_NONCE, "The attestation is not the answer to this request.")
    return said


def _scheme(attestation_key: TpmPublic) -> tuple[TpmAlgorithm, TpmHash]:
    """The signing scheme, which an attestation key has once it is checked."""
    scheme = attestation_key.scheme
    assert scheme is not None
    assert scheme.hash is not None
    return scheme.algorithm, scheme.hash


def _verify_signature(key: TpmPublic, signature: TpmSignature, message: bytes) -> None:
    """Verify with the library; RSAPSS with any length of salt, which the TPM chooses (Part 1 annex B.7)."""
    if (signature.algorithm, signature.hash) != _scheme(key):
        raise _refuse(Reason.TPM_SIGNATURE_ALGORITHM, "The signature is not made by the scheme of the key.")
    algorithm, public = _HASHES[signature.hash], key.key
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature.value, message, ec.ECDSA(algorithm))
        elif signature.algorithm is TpmAlgorithm.RSAPSS:
            scheme = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            public.verify(signature.value, message, scheme, algorithm)
        else:
            public.verify(signature.value, message, padding.PKCS1v15(), algorithm)
    except InvalidSignature:
        raise _refuse(Reason.SIGNATURE, "The signature was not made by this key over this attestation.") from None


_HASHES: Mapping[TpmHash, hashes.HashAlgorithm] = {
    TpmHash.SHA256: hashes.SHA256(),
    TpmHash.SHA384: hashes.SHA384(),
    TpmHash.SHA512: hashes.SHA512(),
}


# Quotes


def _asked(selection: Mapping[TpmHash, Collection[int]]) -> TpmPcrSelection:
    if len(selection) != 1:
        raise UsageError("A quote is asked for with PCRs of one bank.", fix="Name one bank.")
    ((bank, pcrs),) = selection.items()
    chosen = frozenset(pcrs)
    if bank is TpmHash.SHA1 or not chosen or chosen & _RESETTABLE or not chosen <= set(_PCRS):
        raise UsageError("A quote is asked for with PCRs that mean something, and not of the SHA-1 bank.", fix=_PCR_FIX)
    return TpmPcrSelection(bank, chosen)


def _check_name_algorithm(algorithm: TpmHash) -> None:
    if algorithm is TpmHash.SHA1:
        raise _refuse(Reason.TPM_NAME, "The name is a SHA-1 digest, which two entities may share.")


def _check_digest(algorithm: TpmHash, asked: TpmPcrSelection, values: Mapping[int, bytes], digest: bytes) -> None:
    if values.keys() != asked.pcrs or any(len(value) != asked.bank.digest_size for value in values.values()):
        raise _refuse(Reason.TPM_PCR_DIGEST, "The reported PCR values are not those of the selection.")
    if algorithm.digest(b"".join(values[pcr] for pcr in sorted(asked.pcrs))) != digest:
        raise _refuse(Reason.TPM_PCR_DIGEST, "The reported PCR values are not those that the TPM quoted.")


def _refuse(reason: Reason, message: str) -> EvidenceError:
    return EvidenceError(reason, message, fix="Ask the TPM again, with the data of this ceremony.")
