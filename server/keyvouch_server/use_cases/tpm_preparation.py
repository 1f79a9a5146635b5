"""Preparation of a registration with a TPM: identity shown, challenge made, PIN index allowed. See enrolment.proto.

After this one call there is one attestation key that can be the registration's, one PIN index that can be written,
once, and no ceremony key any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import Final

from keyvouch import cbor
from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation.activation_certificate import SECRET_SIZE, activation_proof, seal_certificate
from keyvouch.attestation.credential_activation import ENTROPY_SIZE, make_credential
from keyvouch.attestation.endorsement import EndorsementCertificate, verify_endorsement_certificate
from keyvouch.attestation.pin_gate import HANDLES, PinCounter, PinGate, first_write_message
from keyvouch.attestation.tpm_keys import check_attestation_key, check_endorsement_key
from keyvouch.attestation.tpm_marshal import TpmPrivateKey, sign
from keyvouch.attestation.tpm_public import TpmNvPublic, TpmPublic
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, RefusedError, UnauthenticatedError
from keyvouch.statement import RegistrationStatement
from keyvouch_server.domain.model import DeviceTpm, Registration, RegistrationState
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.policy import (
    Policy,
    decide_accounts,
    decide_assurance,
    decide_pin_limit,
    decide_tenant,
    reaches,
)
from keyvouch_server.ports import Above, EkTrust, EndorsedTpm, Snapshot, Transaction
from keyvouch_server.use_cases.pass_binding import decide_pass, decide_session
from keyvouch_server.use_cases.tpm_ceremony import (
    BegunTpm,
    PreparedTpm,
    TpmGrant,
    read_transcript,
    subject_public_key,
)
from keyvouch_server.use_cases.world import (
    World,
    precise,
    registration_consumed,
    registration_expired,
    settled,
    sha256,
    unknown_registration,
)

NONCE_SIZES: Final = range(16, 65)
"""Bytes of a nonceTPM: from half of a SHA-256 digest to a whole one of SHA-512."""

_UNVOUCHED: Final = Assurance(Protection.SOFTWARE, Verification.SOFTWARE_GATED, Provenance.SELF).text()
"""The most that a key can prove in a TPM nobody vouches for."""


@dataclass(frozen=True, slots=True)
class TpmRequest:
    """What a device shows of its TPM; see PrepareTpmRequest in enrolment.proto."""

    endorsement_key: bytes
    endorsement_certificates: tuple[bytes, ...]
    attestation_key: bytes
    pin_index: bytes
    session_nonce: bytes

    def digest(self) -> bytes:
        """SHA-256 over all of it: what tells a repeated request from another one."""
        return hashlib.sha256(cbor.encode(astuple(self))).digest()


@dataclass(frozen=True, slots=True)
class ShownTpm:
    """A request whose structures are what they must be. `endorsed` is None where no certificate came with it."""

    endorsement_key: TpmPublic
    endorsed: EndorsedTpm | None
    attestation_key: TpmPublic
    gate: PinGate

    @property
    def vouched_hash(self) -> bytes:
        """The identity of the TPM, empty where nobody vouches for it."""
        return b"" if self.endorsed is None else endorsement_key_hash(self.endorsement_key)


class TpmPreparations:
    """The second call of a registration with a TPM."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def prepare(self, token: str, request: TpmRequest) -> TpmGrant:
        """Fix the identity of the TPM and allow the first write of its PIN index.

        1. find the ceremony by its token; the same request again gets the same reply; its session stands (T8);
        2. check the keys, the PIN index and, where there is one, the endorsement key certificate; 3. policy on what
        such a TPM can prove; 4. the TPM may take an account more (PS17), and is the one that the session's pass is for
        (P8); 5. challenge, sealed certificate, two signatures; 6. the transcript becomes `prepared`, the ceremony key
        goes, the statement gets the attestation key's name: in one transaction.
        """
        row, policy = await self._find(token)
        try:
            begun = _still_begun(row, request.digest(), now=self._world.clock.now())
            if isinstance(begun, TpmGrant):
                return begun
            await self._world.store.read(lambda tx: decide_session(tx, self._world, row))
            shown = examine(request, row, begun, endorsers=self._world.endorsers, now=self._world.clock.now())
            decide_pin_limit(policy, begun.pin_limit)
            decide_provable(shown.endorsed, policy.registration.required_assurance)
            await self._world.store.read(lambda tx: decide_identity(tx, row, shown.endorsement_key, policy))
            await self._world.store.read(lambda tx: decide_pass(tx, row, endorsement_key_hash=shown.vouched_hash))
            prepared = self._grant(row, begun.open(self._world.keys, row.id, token), begun, request, shown)
        except Exception as failed:
            await self._audit_refusal(row, failed)
            raise
        return settled(await self._world.store.write(lambda tx: self._move(tx, row, prepared)))

    async def _find(self, token: str) -> tuple[Registration, Policy]:
        async def work(tx: Snapshot) -> tuple[Registration, Policy]:
            row = await tx.get(Registration, token_hash=sha256(token))
            if row is None:
                raise unknown_registration()
            return row, await self._world.policy_of(tx, row.tenant_id)

        return await self._world.store.read(work)

    def _grant(
        self, row: Registration, signer: TpmPrivateKey, begun: BegunTpm, request: TpmRequest, shown: ShownTpm
    ) -> PreparedTpm:
        keys, entropy, gate = self._world.keys, self._world.entropy, shown.gate
        name = shown.attestation_key.name
        secret = entropy.token(SECRET_SIZE)
        challenge = make_credential(
            endorsement_key=shown.endorsement_key, name=name, secret=secret, entropy=entropy.token(ENTROPY_SIZE)
        )
        certificate = keys.attestation_certificate(shown.attestation_key.key, shown.endorsed) if shown.endorsed else b""
        write = first_write_message(gate, nonce=request.session_nonce, counter=PinCounter(0, begun.pin_limit))
        statement = replace(RegistrationStatement.parse(row.statement), ak_name=name).encode()
        return PreparedTpm(
            ceremony_key=begun.ceremony_key,
            pin_limit=begun.pin_limit,
            request=request.digest(),
            grant=TpmGrant(
                credential_blob=challenge.credential_blob,
                encrypted_secret=challenge.encrypted_secret,
                sealed_certificate=seal_certificate(certificate, secret=secret, name=name) if certificate else b"",
                first_write=bytes(sign(signer, write)),
                pin_change=bytes(sign(signer, gate.change_message)),
                statement=statement,
            ),
            attestation_key=shown.attestation_key,
            certificate=certificate,
            handle=gate.handle,
            activation=activation_proof(statement, secret=secret),
            endorsement_key=shown.endorsement_key,
            endorsement_certificates=request.endorsement_certificates,
            tpm=shown.endorsed,
        )

    async def _move(self, tx: Transaction, row: Registration, prepared: PreparedTpm) -> TpmGrant | KeyvouchError:
        policy = await self._world.policy_of(tx, row.tenant_id)
        try:
            await decide_session(tx, self._world, row)
            await decide_identity(tx, row, prepared.endorsement_key, policy)
        except (RefusedError, UnauthenticatedError) as refusal:
            await self._audit(tx, row, refusal.reason.value)
            return refusal
        moved = await tx.update(
            Registration,
            {
                "id": row.id,
                "state": RegistrationState.PENDING,
                "expires_at": Above(self._world.clock.now()),
                "tpm": row.tpm,
            },
            {"tpm": prepared.encode(), "statement": prepared.grant.statement},
        )
        if not moved:
            return await self._granted_to_a_copy(tx, row, prepared.request)
        await self._audit(tx, row, "ok", anchor=prepared.tpm.anchor if prepared.tpm else "")
        return prepared.grant

    async def _granted_to_a_copy(self, tx: Transaction, row: Registration, request: bytes) -> TpmGrant | KeyvouchError:
        """Another request was first. If it was the same one, this one gets its reply."""
        present = await tx.get(Registration, id=row.id)
        if present is None:
            return unknown_registration()
        try:
            granted = _still_begun(present, request, now=self._world.clock.now())
        except KeyvouchError as refusal:
            await self._audit(tx, row, refusal.reason.value)
            return refusal
        return granted if isinstance(granted, TpmGrant) else registration_expired()

    async def _audit_refusal(self, row: Registration, failed: Exception) -> None:
        reason = failed.reason if isinstance(failed, KeyvouchError) else Reason.INTERNAL
        await self._world.store.write(lambda tx: self._audit(tx, row, reason.value, **precise(failed)))

    async def _audit(self, tx: Transaction, row: Registration, outcome: str, **details: str) -> None:
        await self._world.audit(
            tx,
            "registration.prepare",
            actor=row.user_id,
            tenant_id=row.tenant_id,
            subject=row.device_id,
            user_id=row.user_id,
            outcome=outcome,
            **details,
        )


def _still_begun(row: Registration, request: bytes, *, now: int) -> BegunTpm | TpmGrant:
    """The transcript that waits for a TPM, or the reply that this very request has had."""
    if not row.tpm:
        raise RefusedError(
            Reason.TPM_NOT_PREPARED,
            "This registration was not begun for a device with a TPM.",
            fix="Begin a registration that says what the TPM can do.",
        )
    found = read_transcript(row.tpm)
    if isinstance(found, PreparedTpm) and found.request == request:
        return found.grant
    if row.state is RegistrationState.COMPLETE:
        raise registration_consumed()
    if row.expires_at <= now:
        raise registration_expired()
    if isinstance(found, PreparedTpm):
        raise RefusedError(
            Reason.TPM_IDENTITY,
            "This registration has been shown another TPM, key or session already.",
            fix="Begin a new registration; one of them is for one TPM.",
        )
    return found


def examine(request: TpmRequest, row: Registration, begun: BegunTpm, *, endorsers: EkTrust, now: int) -> ShownTpm:
    """Verify what a device shows. `now` is in seconds.

    Checks, in this order: the length of the session's nonce (`FIELD_INVALID`); the attestation key's structure and
    attributes (`TPM_AK_ATTRIBUTES`), those of the endorsement key (`TPM_EK_ATTRIBUTES`); the PIN index is the one of
    this registration, not written, in the owner's range (`TPM_NV_INDEX`); the certificates, if there are any
    (`endorsement.verify_endorsement_certificate`). One that is there and wrong is never left out of account.
    """
    if len(request.session_nonce) not in NONCE_SIZES:
        raise invalid_field("session_nonce", f"{NONCE_SIZES.start} to {NONCE_SIZES.stop - 1} bytes")
    attestation_key, endorsement_key = TpmPublic(request.attestation_key), TpmPublic(request.endorsement_key)
    check_attestation_key(attestation_key)
    check_endorsement_key(endorsement_key)
    gate = _gate(request.pin_index, row, begun)
    endorsed = _endorsed(request.endorsement_certificates, endorsement_key, endorsers, now)
    return ShownTpm(endorsement_key, endorsed, attestation_key, gate)


def _gate(pin_index: bytes, row: Registration, begun: BegunTpm) -> PinGate:
    index = TpmNvPublic(pin_index)
    gate = PinGate(begun.ceremony_key, row.device_id, index.handle)
    if index.handle not in HANDLES or index != gate.unwritten:
        raise EvidenceError(
            Reason.TPM_NV_INDEX,
            "The PIN index is not made as this registration needs it.",
            fix="Define it with the ceremony key and the device id of this registration.",
        )
    return gate


_NOT_BELIEVED: Final = (
    "If this TPM's maker should be believed, the server's administrator adds it: [tpm] in keyvouch.toml. Without the "
    'maker\'s word the key counts as one in software: endorsement_certificate = "none" under [tpm] in agent.toml.'
)


def _endorsed(
    certificates: Sequence[bytes], endorsement_key: TpmPublic, endorsers: EkTrust, now: int
) -> EndorsedTpm | None:
    if not certificates:
        return None
    own, *issuers = certificates
    try:
        verified = verify_endorsement_certificate(
            EndorsementCertificate.parse(own),
            endorsement_key=endorsement_key,
            intermediates=[*issuers, *endorsers.intermediates],
            anchors=endorsers.anchors,
            instant=datetime.fromtimestamp(now, UTC),
            unregistered_manufacturers=endorsers.manufacturers,
        )
    except EvidenceError as refused:
        refused.fix = _NOT_BELIEVED
        raise
    return EndorsedTpm(verified.manufacturer, verified.model, verified.version, verified.anchor.name)


def decide_provable(endorsed: EndorsedTpm | None, required: str) -> None:
    """KI1: refuse before a PIN is typed what could not be registered afterwards.

    Raises `RefusedError` with TPM_EK_CERTIFICATE_MISSING or ASSURANCE_TOO_LOW.
    """
    if endorsed is not None:
        provable = Assurance(Protection.TPM, Verification.HARDWARE_GATED, Provenance.ATTESTED, endorsed.anchor)
        decide_assurance(provable.text(), required)
    elif not reaches(_UNVOUCHED, required):
        raise RefusedError(
            Reason.TPM_EK_CERTIFICATE_MISSING,
            f"Policy requires a key of assurance {required}, and nothing vouches for the endorsement key of this TPM.",
            fix="Give the agent the certificate of the TPM's maker, or ask an administrator.",
            metadata={"required": required, "found": _UNVOUCHED},
        )


async def decide_identity(tx: Snapshot, row: Registration, endorsement_key: TpmPublic, policy: Policy) -> None:
    """PS17: one tenant for one TPM, and there as many accounts as policy permits.

    Raises `RefusedError` with DEVICE_REGISTERED_ELSEWHERE or DEVICE_ACCOUNTS.
    """
    registered = await tx.find(DeviceTpm, {"endorsement_key_hash": endorsement_key_hash(endorsement_key)})
    decide_tenant(row.tenant_id, [known.tenant_id for known in registered])
    decide_accounts(policy, {known.user_id for known in registered if known.user_id != row.user_id})


def endorsement_key_hash(endorsement_key: TpmPublic) -> bytes:
    """The identity of a TPM: SHA-256 of its endorsement key as SubjectPublicKeyInfo in DER, 32 bytes."""
    return hashlib.sha256(subject_public_key(endorsement_key)).digest()
