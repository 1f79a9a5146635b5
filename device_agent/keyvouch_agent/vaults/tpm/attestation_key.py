"""The attestation key of an account: what it signs, the TPM itself says.

A primary key of the endorsement hierarchy: made from its template and 32 random bytes whenever it is needed, so there
is nothing to keep but those, it survives a clear of the TPM, and clock and firmware version in what it signs are true
(TPM 2.0 Library, Part 1 sections 14.5 and 36.7). Each account has its own, so that nobody can compare devices by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2B_DATA, TPM2B_SENSITIVE_CREATE, TPMT_SIG_SCHEME

from keyvouch.attestation.pin_gate import INDEX_SIZE
from keyvouch.attestation.tpm import verify_certify, verify_nv_certify, verify_quote
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_registration import Certification
from keyvouch.attestation.tpm_structures import TpmHash
from keyvouch.cose import Algorithm
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.tpm.answers import as_asked, making_sense
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.pin_index import PinIndex
from keyvouch_agent.vaults.tpm.response_codes import REENROL
from keyvouch_agent.vaults.tpm.sessions import owner_session
from keyvouch_agent.vaults.tpm.templates import KINDS, attestation_key

__all__ = ["AttestationKeySeed", "LoadedAttestationKey", "certify", "certify_index", "load", "make", "quote"]

UNIQUE_SIZE: Final = 32

_BY_KEY: Final = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)


@dataclass(frozen=True, slots=True)
class AttestationKeySeed:
    """All it takes to make the key again in the same TPM: its kind, and the bytes that make it this account's."""

    algorithm: Algorithm
    unique: bytes


@dataclass(frozen=True, slots=True)
class LoadedAttestationKey:
    """The key in one connection, held there."""

    handle: Any
    public: TpmPublic


def make(tpm: Tpm, seed: AttestationKeySeed) -> LoadedAttestationKey:
    """Make the key. Raises `DeviceError(TPM_OWNER_AUTH)` where the endorsement hierarchy has a password."""
    template = attestation_key(KINDS[seed.algorithm], seed.unique)
    with owner_session(tpm, tpm.settings.endorsement_auth) as session:
        made = tpm.do(
            tpm.esapi.create_primary, TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT, session1=session
        )
    return LoadedAttestationKey(tpm.hold(made[0]), as_asked(made[1], template))


def load(tpm: Tpm, seed: AttestationKeySeed, name: bytes) -> LoadedAttestationKey:
    """Make the key again. Raises `DeviceError(TPM_CLEARED)` where another one comes out: it is another TPM."""
    key = make(tpm, seed)
    if key.public.name != name:
        raise DeviceError(
            Reason.TPM_CLEARED,
            "This is another TPM than the one the account was enrolled with, or its maker's secrets were changed.",
            fix=REENROL,
        )
    return key


def certify(
    tpm: Tpm, key: LoadedAttestationKey, subject: Any, area: TpmPublic, qualifying_data: bytes
) -> Certification:
    """TPM2_Certify of a loaded key of that public area, which has no authorization value. It has been verified."""
    attest, signature = tpm.do(tpm.esapi.certify, subject, key.handle, TPM2B_DATA(qualifying_data), _BY_KEY)
    with making_sense("a certification"):
        said = _certification(attest, signature)
        verify_certify(
            attestation_key=key.public,
            attest=said.attest,
            signature=said.signature,
            subject=area,
            qualifying_data=qualifying_data,
        )
    return said


def certify_index(tpm: Tpm, key: LoadedAttestationKey, index: PinIndex, qualifying_data: bytes) -> Certification:
    """TPM2_NV_Certify of a whole PIN index, by the owner's right to read it. It has been verified."""
    data = TPM2B_DATA(qualifying_data)
    with owner_session(tpm, tpm.settings.owner_auth) as session:
        attest, signature = tpm.do(
            tpm.esapi.nv_certify,
            key.handle,
            index.handle,
            data,
            _BY_KEY,
            INDEX_SIZE,
            0,
            ESYS_TR.OWNER,
            session2=session,
        )
    with making_sense("a certification"):
        said = _certification(attest, signature)
        verify_nv_certify(
            attestation_key=key.public,
            attest=said.attest,
            signature=said.signature,
            qualifying_data=qualifying_data,
            index=index.gate.written,
            size=INDEX_SIZE,
        )
    return said


def quote(
    tpm: Tpm, key: LoadedAttestationKey, pcrs: Sequence[int], qualifying_data: bytes
) -> tuple[Certification, Mapping[int, bytes]]:
    """TPM2_Quote of PCRs of the SHA-256 bank, and their values. Read again while somebody extends one meanwhile."""
    selection = f"sha256:{','.join(str(pcr) for pcr in sorted(pcrs))}"
    while True:
        before = _counter_and_values(tpm, pcrs)
        attest, signature = tpm.do(tpm.esapi.quote, key.handle, selection, TPM2B_DATA(qualifying_data), _BY_KEY)
        if _counter_and_values(tpm, pcrs)[0] == before[0]:
            break
    with making_sense("a quote"):
        said = _certification(attest, signature)
        verify_quote(
            attestation_key=key.public,
            attest=said.attest,
            signature=said.signature,
            qualifying_data=qualifying_data,
            selection={TpmHash.SHA256: pcrs},
            pcr_values={TpmHash.SHA256: before[1]},
        )
    return said, before[1]


def _counter_and_values(tpm: Tpm, pcrs: Sequence[int]) -> tuple[int, Mapping[int, bytes]]:
    """The update counter and the values. A TPM answers for at most eight PCRs at a time."""
    values: dict[int, bytes] = {}
    counter = 0
    wanted = sorted(pcrs)
    for start in range(0, len(wanted), 8):
        some = wanted[start : start + 8]
        counter, _, digests = tpm.do(tpm.esapi.pcr_read, f"sha256:{','.join(map(str, some))}")
        with making_sense("values of PCRs"):
            values |= {pcr: bytes(digest) for pcr, digest in zip(some, digests, strict=True)}
    return counter, values


def _certification(attest: Any, signature: Any) -> Certification:
    return Certification(bytes(attest.attestationData), bytes(signature.marshal()))
