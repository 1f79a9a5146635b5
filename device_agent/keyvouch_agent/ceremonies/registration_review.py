"""What a device holds against what, before and after it registers: the server's words, its own records, its own reach.

Every function is pure: it looks and raises, or makes one record of another. The order is `registration`'s.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, replace

from keyvouch.errors import (
    ConflictError,
    DeviceError,
    EvidenceError,
    KeyvouchError,
    MalformedError,
    Reason,
    RefusedError,
    ThrottledError,
)
from keyvouch.ids import ServerId, TenantId, UserId
from keyvouch.statement import Purpose, RegistrationStatement, check_registration
from keyvouch_agent.agent_ports import Registered, RegistrationOffer, RequiredAssurance
from keyvouch_agent.channel_identity import VerifiedChain, verify_chain
from keyvouch_agent.channel_keys import ChannelKey, prove
from keyvouch_agent.ledger import LONGEST_KEY_NAME, Enrolment, StagedRegistration
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import (
    Gate,
    KeyProtection,
    ProviderCapabilities,
    ProviderKind,
    Registration,
    TpmCertification,
    TpmEvidence,
)

__all__ = [
    "RegistrationWish",
    "check_final_statement",
    "check_free",
    "check_gate",
    "check_within_reach",
    "enrolment_of",
    "evidence_of",
    "is_final",
    "is_for",
    "review",
    "same_account",
    "staged_of",
    "verify_answer",
]


@dataclass(frozen=True, slots=True)
class RegistrationWish:
    """What the person asked for. `public_ca` is PEM, empty for the system's anchors.

    `server_id`, where it is known beforehand, pins the server's identity key; else it is learned over the public
    channel, which the given anchors authenticate, and pinned from then on. `replace`: an enrolment of the same account
    that this device has already may go when the new one stands. `lost` and `replaced` name devices, by id or name,
    that are to go then.
    """

    public_endpoint: str
    public_ca: str
    tenant: str
    username: str
    display_name: str
    server_id: ServerId | None = None
    replace: bool = False
    lost: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def is_for(staged: StagedRegistration, wish: RegistrationWish) -> bool:
    """Whether an interrupted registration is the one that is wished for."""
    return (staged.public_endpoint, staged.tenant_name.casefold(), staged.username.casefold()) == (
        wish.public_endpoint,
        wish.tenant.casefold(),
        wish.username.casefold(),
    )


def same_account(known: Enrolment, wish: RegistrationWish) -> bool:
    """Whether an enrolment is of the user that is wished for."""
    return (known.tenant_name.casefold(), known.username.casefold()) == (
        wish.tenant.casefold(),
        wish.username.casefold(),
    )


def check_free(known: Enrolment, wish: RegistrationWish) -> None:
    """Check that an enrolment does not stand in the way.

    Raises `ConflictError` with ALREADY_ENROLLED or DEVICE_REGISTERED_ELSEWHERE.
    """
    if same_account(known, wish):
        if wish.replace:
            return
        raise ConflictError(
            Reason.ALREADY_ENROLLED,
            f"{known.username} of {known.tenant_name} is enrolled on this device already.",
            fix="For a new key run `keyvouch-agent rekey`. If key or PIN are lost: an access pass, and --replace.",
            metadata={"device_id": known.device_id},
        )
    if known.tenant_name.casefold() != wish.tenant.casefold():
        raise ConflictError(
            Reason.DEVICE_REGISTERED_ELSEWHERE,
            f"This device is registered in the tenant {known.tenant_name}; it can be in one tenant only.",
            fix="Run `keyvouch-agent unregister` first, or give another directory with --home.",
            metadata={"tenant": known.tenant_name, "device_id": known.device_id},
        )


def check_gate(capabilities: ProviderCapabilities) -> None:
    """PS8: no key without a PIN. Raises `DeviceError` with PIN_NOT_SET or PIN_BLOCKED."""
    if capabilities.uv_by is Gate.NONE:
        raise DeviceError(
            Reason.PIN_NOT_SET,
            "A device without a PIN cannot enrol: the PIN is what keeps a thief from using the key.",
            fix="Set one with `keyvouch-agent pin`, or let `keyvouch-agent enroll` ask for it.",
        )
    if capabilities.pin_is_set:
        check_pin_usable(capabilities)


def review(offer: RegistrationOffer, key: ChannelKey, server_id: ServerId | None) -> RegistrationStatement:
    """Hold an offer against what is known: its own id, the server, the channel key. Returns its statement.

    Raises `EvidenceError` with STATEMENT_MISMATCH, WRONG_SERVER, CHANNEL_KEY.
    """
    statement = RegistrationStatement.parse(offer.statement)
    if statement.registration_id != offer.registration_id:
        raise _mismatch("another registration")
    check_registration(
        statement,
        server_id=statement.server_id if server_id is None else server_id,
        channel_key=hashlib.sha256(key.spki).digest(),
    )
    return statement


def check_final_statement(first: RegistrationStatement, final: bytes) -> RegistrationStatement:
    """Check that the statement with the attestation key's name differs from the first one in nothing else.

    Raises `EvidenceError(STATEMENT_MISMATCH)`. That the name is this TPM's is checked where the key is.
    """
    statement = RegistrationStatement.parse(final)
    if not statement.ak_name or replace(statement, ak_name=b"", encoded=first.encoded) != first:
        raise _mismatch("something else")
    return statement


def check_within_reach(required: RequiredAssurance, capabilities: ProviderCapabilities) -> None:
    """Refuse early what this provider can never prove, before anybody types a PIN for it."""
    software = capabilities.key_protection is KeyProtection.SOFTWARE
    hardware_wanted = required.protection == "hardware" or required.verification == "hardware_gated"
    if software and (hardware_wanted or required.provenance == "attested"):
        raise RefusedError(
            Reason.ASSURANCE_TOO_LOW,
            f"The tenant requires a key in attested hardware; {capabilities.name} cannot prove that.",
            fix="Enrol with a hardware key provider (--provider), or ask your administrator about the policy.",
            metadata={"provider": capabilities.kind.value, "required_protection": required.protection},
        )


def staged_of(
    wish: RegistrationWish,
    *,
    account: str,
    offer: RegistrationOffer,
    statement: RegistrationStatement,
    capabilities: ProviderCapabilities,
    key: ChannelKey,
    made: Registration,
    tpm: TpmEvidence | None,
    departing: tuple[bytes, ...] = (),
) -> StagedRegistration:
    """The record that a crash is resumed from. Signs with the channel key, so it may block."""
    return StagedRegistration(
        public_endpoint=wish.public_endpoint,
        public_ca=wish.public_ca,
        tenant_name=wish.tenant,
        username=wish.username,
        registration_id=offer.registration_id,
        registration_token=offer.registration_token.reveal(),
        statement=statement.encoded,
        rp_id=offer.rp_id,
        credential_id=made.credential_id,
        provider=capabilities.kind.value,
        channel_key=key.stored,
        client_data_json=made.client_data,
        attestation_object=made.attestation_object,
        channel_proof=prove(key, Purpose.CHANNEL, statement.encoded),
        account=account,
        emulated=capabilities.key_protection is KeyProtection.EMULATED_HARDWARE,
        tpm_evidence=_members(tpm) if tpm else (),
        certificates=made.certificates,
        departing=departing,
        **_name(capabilities),
    )


def evidence_of(staged: StagedRegistration) -> TpmEvidence | None:
    """The TPM's evidence out of a staged record."""
    if not staged.tpm_evidence:
        return None
    activation, attest, signature, *channel = staged.tpm_evidence
    key = channel[0] if channel else b""
    certification = TpmCertification(channel[1], channel[2]) if channel else None
    return TpmEvidence(activation, TpmCertification(attest, signature), key, certification)


def _members(tpm: TpmEvidence) -> tuple[bytes, ...]:
    members = (tpm.activation, tpm.pin_index.attest, tpm.pin_index.signature)
    certification = tpm.channel_key_certification
    if certification is None:
        return members
    return (*members, tpm.channel_key, certification.attest, certification.signature)


def verify_answer(registered: Registered, staged: StagedRegistration, key: ChannelKey) -> VerifiedChain:
    """Verify that the answer is about what was signed, and that the server is who the statement says."""
    statement = RegistrationStatement.parse(staged.statement)
    named = (registered.device_id, registered.tenant_id, registered.user_id, registered.credential_id)
    signed = (statement.device_id, statement.tenant_id, statement.user_id, staged.credential_id)
    if named != signed:
        raise _mismatch("another device, user or key")
    return verify_chain(registered.certificate_chain, server_id=statement.server_id, channel_key=key.spki)


def is_final(error: KeyvouchError) -> bool:
    """A verdict, as opposed to a failure on the way: repeating the same bytes would bring it again."""
    if isinstance(error, ThrottledError):
        return False
    return isinstance(error, RefusedError | EvidenceError | MalformedError)


def enrolment_of(staged: StagedRegistration, registered: Registered, chain: VerifiedChain) -> Enrolment:
    """The record of an account that is registered."""
    statement = RegistrationStatement.parse(staged.statement)
    return Enrolment(
        public_endpoint=staged.public_endpoint,
        public_ca=staged.public_ca,
        device_endpoint=registered.device_endpoint,
        server_id=statement.server_id,
        tenant_id=TenantId(statement.tenant_id),
        tenant_name=registered.tenant_name,
        user_id=UserId(statement.user_id),
        username=staged.username,
        device_id=statement.device_id,
        display_name=registered.display_name,
        credential_id=staged.credential_id,
        rp_id=staged.rp_id,
        provider=staged.provider,
        channel_key=staged.channel_key,
        certificate_chain=chain.certificates,
        account=staged.account,
        emulated=staged.emulated,
        key_name=staged.key_name,
        key_model=staged.key_model,
    )


def _name(capabilities: ProviderCapabilities) -> dict[str, str]:
    """What people know a security key or a card by. Others are there once and need no name."""
    if capabilities.kind is ProviderKind.SMARTCARD:
        return {"key_name": capabilities.name[:LONGEST_KEY_NAME]}
    if capabilities.kind is not ProviderKind.FIDO2:
        return {}
    model = str(uuid.UUID(bytes=capabilities.aaguid)) if any(capabilities.aaguid) else ""
    return {"key_name": capabilities.name[:LONGEST_KEY_NAME], "key_model": model}


def _mismatch(what: str) -> EvidenceError:
    return EvidenceError(
        Reason.STATEMENT_MISMATCH,
        f"The server's answer is about {what} than this registration.",
        fix="This device was not enrolled. Tell your administrator.",
    )
