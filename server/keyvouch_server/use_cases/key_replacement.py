"""Key replacement: a new key takes the place of a registered device's, in the same TPM. See prompts.proto.

The transcript of the registration holds on: same attestation key, same PIN gate, same limit. What is done again is the
certification, over a statement of its own, with a fresh certificate of the attestation key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from keyvouch.attestation import VerifiedRegistration
from keyvouch.attestation.tpm_registration import Certification, VerifiedTpm
from keyvouch.errors import ConflictError, KeyvouchError, Reason, RefusedError, UnauthenticatedError
from keyvouch.ids import REGISTRATION, CredentialId, RegistrationId
from keyvouch.proofs import load_proof_key, spki_sha256
from keyvouch.statement import RegistrationStatement
from keyvouch_server.domain.evaluation import decide_method
from keyvouch_server.domain.health import assurance_now
from keyvouch_server.domain.model import (
    Credential,
    Device,
    DeviceTpm,
    KeyReplacement,
    Prompt,
    RegistrationState,
    SignInMethod,
    User,
)
from keyvouch_server.domain.policy import decide_assurance
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, AtMost, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.devices import removed
from keyvouch_server.use_cases.registration import LIFETIME_SECONDS, RETENTION_SECONDS, verify_credential
from keyvouch_server.use_cases.tpm_ceremony import PreparedTpm, read_transcript
from keyvouch_server.use_cases.tpm_evidence import anchors_for, verify_gated_key
from keyvouch_server.use_cases.world import (
    World,
    registration_consumed,
    registration_expired,
    settled,
    unknown_registration,
)

_BEGIN: Final = "device.key.begin"
_ACTION: Final = "device.key.replace"


@dataclass(frozen=True, slots=True)
class BegunReplacement:
    """What the agent needs to make the new credential. The certificate in `replacement` is the attestation key's."""

    replacement: KeyReplacement
    user: User


@dataclass(frozen=True, slots=True)
class ReplacementAnswer:
    """What the agent sends back: the authenticator's response, and the PIN index certified over this statement."""

    client_data: bytes
    attestation_object: bytes
    pin_index: Certification

    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        parts = (self.client_data, self.attestation_object, self.pin_index.attest, self.pin_index.signature)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


class KeyReplacements:
    """The key replacement ceremony."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def begin(self, device: Device) -> BegunReplacement:
        """Open a replacement for the device; one that it left open before is forgotten.

        1. the device has a TPM that somebody vouches for; 2. certificate, statement; 3. policy: the method is on;
        4. row `pending`, audit.
        """
        try:
            prepared = await self._transcript(device)
        except RefusedError as refusal:
            await self._audit_refusal(device, refusal, action=_BEGIN)
            raise
        assert prepared.tpm is not None
        certificate = self._world.keys.attestation_certificate(prepared.attestation_key.key, prepared.tpm)
        row = self._row(device, prepared, certificate)

        async def work(tx: Transaction) -> BegunReplacement | KeyvouchError:
            user = await tx.get(User, id=device.user_id)
            if user is None or await tx.get(Device, id=device.id) is None:
                return removed()
            try:
                policy = await self._world.policy_of(tx, device.tenant_id)
                subject = await self._world.subject_of(tx, user)
                decide_method(policy, SignInMethod.APPROVAL, subject, Verdicts())
            except RefusedError as refusal:
                await self._audit(tx, device, refusal.reason.value, action=_BEGIN)
                return refusal
            await tx.delete(KeyReplacement, {"device_id": device.id, "state": RegistrationState.PENDING})
            await tx.insert(row)
            await self._audit(tx, device, "ok", action=_BEGIN)
            return BegunReplacement(row, user)

        return settled(await self._world.store.write(work))

    async def _transcript(self, device: Device) -> PreparedTpm:
        tpm = await self._world.store.read(lambda tx: tx.get(DeviceTpm, device_id=device.id))
        found = read_transcript(tpm.transcript) if tpm is not None else None
        if isinstance(found, PreparedTpm) and found.tpm is not None:
            return found
        raise RefusedError(
            Reason.TPM_NOT_PREPARED,
            "This device was not registered with a TPM that somebody vouches for, so its key cannot be replaced.",
            fix="Register the device again.",
        )

    def _row(self, device: Device, prepared: PreparedTpm, certificate: bytes) -> KeyReplacement:
        world, now = self._world, self._world.clock.now()
        replacement_id = RegistrationId(world.new_id(REGISTRATION))
        statement = RegistrationStatement(
            server_id=world.facts.server_id,
            tenant_id=device.tenant_id,
            user_id=device.user_id,
            device_id=device.id,
            registration_id=replacement_id,
            nonce=world.entropy.token(32),
            expires_at=now + LIFETIME_SECONDS,
            channel_key=spki_sha256(load_proof_key(device.channel_key, reason=Reason.CHANNEL_KEY)),
            ak_name=prepared.attestation_key.name,
        )
        return KeyReplacement(
            id=replacement_id,
            tenant_id=device.tenant_id,
            device_id=device.id,
            statement=statement.encode(),
            certificate=certificate,
            state=RegistrationState.PENDING,
            created_at=now,
            expires_at=now + LIFETIME_SECONDS,
        )

    async def complete(self, device: Device, replacement_id: str, answer: ReplacementAnswer) -> Credential:
        """Verify the answer and put the new credential in the place of the old one.

        1. find the ceremony: it must be this device's; 2. the same answer again gets the same reply; 3. verify against
        the transcript of the registration; 4. policy on what was proved; 5. `pending -> complete`, the old credential
        goes, the new one comes, audit: in one transaction. What was offered to the old one can be approved no more.
        """
        row = await self._world.store.read(lambda tx: tx.get(KeyReplacement, id=replacement_id, device_id=device.id))
        if row is None:
            raise unknown_registration()
        if row.state is RegistrationState.COMPLETE:
            return await self._repeat(device, row, answer)
        try:
            evidence, proved = await self._verify(device, row, answer)
        except Exception as failed:  # whatever it is: the old key stays, and there is a trace of it (TPM9)
            await self._audit_refusal(device, failed)
            raise
        work = _Replacement(self._world, device, row, answer, evidence, proved)
        try:
            written = await self._world.store.write(work.run)
        except (ConflictError, UnauthenticatedError) as undone:  # and its audit record with it
            await self._audit_refusal(device, undone)
            raise
        return settled(written)

    async def forget_abandoned(self) -> None:
        """Drop replacements a day after they ran out, finished or not. Their audit records stay."""
        old = {"expires_at": AtMost(self._world.clock.now() - RETENTION_SECONDS)}
        await self._world.store.write(lambda tx: tx.delete(KeyReplacement, old))

    async def _repeat(self, device: Device, row: KeyReplacement, answer: ReplacementAnswer) -> Credential:
        try:
            return settled(await self._world.store.read(lambda tx: _repeated(tx, row, answer)))
        except ConflictError as another:
            await self._audit_refusal(device, another)
            raise

    async def _verify(
        self, device: Device, row: KeyReplacement, answer: ReplacementAnswer
    ) -> tuple[VerifiedRegistration, VerifiedTpm]:
        prepared = await self._transcript(device)
        anchors = anchors_for(self._world, prepared)
        evidence = verify_credential(self._world, answer.client_data, answer.attestation_object, row.statement, anchors)
        proved = verify_gated_key(
            evidence,
            prepared,
            device_id=device.id,
            certificate=row.certificate,
            statement=row.statement,
            pin_index=answer.pin_index,
        )
        return evidence, proved

    async def _audit_refusal(self, device: Device, failed: Exception, *, action: str = _ACTION) -> None:
        reason = failed.reason if isinstance(failed, KeyvouchError) else Reason.INTERNAL
        await self._world.store.write(lambda tx: self._audit(tx, device, reason.value, action=action))

    async def _audit(self, tx: Transaction, device: Device, outcome: str, *, action: str = _ACTION) -> None:
        await _audit(self._world, tx, device, outcome, action)


async def _repeated(tx: Snapshot, row: KeyReplacement, answer: ReplacementAnswer) -> Credential | KeyvouchError:
    """The reply to the answer that completed this replacement, once more; any other answer is too late."""
    credentials = await tx.find(Credential, {"device_id": row.device_id})
    if row.answer_hash != answer.digest() or not credentials:
        return registration_consumed()
    return credentials[0]


@dataclass(frozen=True, slots=True)
class _Replacement:
    """Steps 4 and 5 of `complete`, as one transaction."""

    world: World
    device: Device
    row: KeyReplacement
    answer: ReplacementAnswer
    evidence: VerifiedRegistration
    proved: VerifiedTpm

    async def run(self, tx: Transaction) -> Credential | KeyvouchError:
        copy = await self._completed_by_a_copy(tx)
        if copy is not None:
            return await self._refused(tx, copy) if isinstance(copy, KeyvouchError) else copy
        tpm = await tx.get(DeviceTpm, device_id=self.device.id)
        if tpm is None:
            return await self._refused(tx, removed())
        refusal = await self._refusal(tx)
        if refusal is not None:
            return await self._refused(tx, refusal)
        moved = await tx.update(
            KeyReplacement,
            {"id": self.row.id, "state": RegistrationState.PENDING, "expires_at": Above(self.world.clock.now())},
            {"state": RegistrationState.COMPLETE, "answer_hash": self.answer.digest()},
        )
        if not moved:
            return await self._completed_by_a_copy(tx) or await self._refused(tx, registration_expired())
        return await self._exchange(tx, tpm)

    async def _refused(self, tx: Transaction, refusal: KeyvouchError) -> KeyvouchError:
        await _audit(self.world, tx, self.device, refusal.reason.value)
        return refusal

    async def _completed_by_a_copy(self, tx: Transaction) -> Credential | KeyvouchError | None:
        row = await tx.get(KeyReplacement, id=self.row.id)
        if row is None or row.state is not RegistrationState.COMPLETE:
            return None
        return await _repeated(tx, row, self.answer)

    async def _refusal(self, tx: Transaction) -> KeyvouchError | None:
        policy = await self.world.policy_of(tx, self.device.tenant_id)
        user = await tx.get(User, id=self.device.user_id)
        if user is None:
            return removed()
        try:
            decide_method(policy, SignInMethod.APPROVAL, await self.world.subject_of(tx, user), Verdicts())
            decide_assurance(self.proved.assurance.text(), policy.registration.required_assurance)
        except RefusedError as refusal:
            return refusal
        return None

    async def _exchange(self, tx: Transaction, tpm: DeviceTpm) -> Credential | KeyvouchError:
        """A device whose health is `failed` does not get well by a new key."""
        proved = self.proved.assurance.text()
        (tpm,) = await tx.update(DeviceTpm, {"device_id": self.device.id}, {"proved_assurance": proved})
        (old,) = await tx.delete(Credential, {"device_id": self.device.id})
        await tx.delete(Prompt, {"device_id": self.device.id, "credential_id": old.id})
        credential = self._credential(old, assurance_now(tpm))
        try:
            await tx.insert(credential)
        except Duplicate:
            raise ConflictError(
                Reason.CREDENTIAL_EXISTS, "This key is registered already.", fix="Let the agent make a new key."
            ) from None
        await _audit(self.world, tx, self.device, "ok")
        return credential

    def _credential(self, old: Credential, assurance: str) -> Credential:
        e = self.evidence
        return replace(
            old,
            id=CredentialId(bytes(e.credential_id)),
            public_key=bytes(e.public_key),
            sign_count=e.sign_count,
            backup_eligible=e.backup_eligible,
            aaguid=e.aaguid,
            attestation_object=self.answer.attestation_object,
            client_data=self.answer.client_data,
            assurance=assurance,
            created_at=self.world.clock.now(),
        )


async def _audit(world: World, tx: Transaction, device: Device, outcome: str, action: str = _ACTION) -> None:
    await world.audit(
        tx,
        action,
        actor=device.id,
        tenant_id=device.tenant_id,
        subject=device.id,
        user_id=device.user_id,
        outcome=outcome,
    )
