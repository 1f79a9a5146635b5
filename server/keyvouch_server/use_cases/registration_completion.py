"""The end of a registration: a verified answer becomes a device, in one transaction. The ceremony is `registration`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

from keyvouch import cbor
from keyvouch.assurance import Assurance
from keyvouch.attestation import VerifiedRegistration, assurance_of
from keyvouch.attestation.evidence import PivFacts
from keyvouch.errors import (
    ConflictError,
    KeyvouchError,
    NotFoundError,
    Reason,
    RefusedError,
    UnauthenticatedError,
)
from keyvouch.ids import CredentialId
from keyvouch_server.domain.authenticators import Model, decide_model
from keyvouch_server.domain.health import heard
from keyvouch_server.domain.model import (
    Credential,
    Device,
    DeviceFate,
    DeviceTpm,
    ProviderKind,
    Registration,
    RegistrationState,
    Session,
    Tenant,
    User,
)
from keyvouch_server.domain.policy import (
    decide_assurance,
    decide_card_pin,
    decide_device_limit,
    decide_pin_limit,
)
from keyvouch_server.domain.prerequisites import Wish, decide_registration
from keyvouch_server.ports import Above, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.cards import ProvedCard, certificate_hash, pin_policy_of
from keyvouch_server.use_cases.decoys import with_key
from keyvouch_server.use_cases.devices import DEVICE_REMOVED, Devices, RemovedDevice
from keyvouch_server.use_cases.pass_binding import access_pass_of, decide_pass, decide_session, session_ended
from keyvouch_server.use_cases.tpm_evidence import ProvedTpm, TpmAnswer
from keyvouch_server.use_cases.tpm_preparation import decide_identity, endorsement_key_hash
from keyvouch_server.use_cases.world import World, precise, registration_consumed, registration_expired


@dataclass(frozen=True, slots=True)
class Departing:
    """A device of the same user whose place the new one takes."""

    device_id: str
    fate: DeviceFate


@dataclass(frozen=True, slots=True)
class RegistrationAnswer:
    """What the agent sends back: the authenticator's response, a signature of the channel key, and beside them evidence
    of a TPM, or certificates (DER) for a key on a smartcard; and which devices go when this one comes, each once.
    """

    client_data: bytes
    attestation_object: bytes
    channel_proof: bytes
    tpm: TpmAnswer | None = None
    card: tuple[bytes, ...] | None = None
    departing: tuple[Departing, ...] = ()

    def digest(self) -> bytes:
        """SHA-256 over the parts that do not change when the same answer is sent again."""
        credential = hashlib.sha256(self.client_data).digest() + self.attestation_object
        beside = b"" if self.tpm is None else self.tpm.encode()
        if self.card is not None:
            beside += b"card" + cbor.encode(list(self.card))
        if self.departing:
            beside += b"departing" + cbor.encode([[one.device_id, one.fate.value] for one in self.departing])
        return hashlib.sha256(credential + beside).digest()


@dataclass(frozen=True, slots=True)
class RegisteredDevice:
    """A device with the certificate chain of its channel (DER, the device's first).

    `replaced_device_id` is the older device of the same user and TPM that went in the same transaction, if there was
    one; `departed` are those that went because the person said so, and `revoked_sessions` what ended with them.
    """

    device: Device
    credential: Credential
    certificate_chain: tuple[bytes, ...]
    user: User
    tenant: Tenant
    tpm: DeviceTpm | None = None
    replaced_device_id: str = ""
    departed: tuple[str, ...] = ()
    revoked_sessions: int = 0
    replaced: tuple[RemovedDevice, ...] = ()
    """All that went, to be announced; empty in a repeated reply, which finds it announced already."""


async def repeated(
    tx: Snapshot, row: Registration, answer: RegistrationAnswer, root: tuple[bytes, ...]
) -> RegisteredDevice | KeyvouchError:
    """The reply to the answer that completed this registration, once more; any other answer is too late."""
    registered = await _registered(tx, row)
    if row.answer_hash != answer.digest() or registered is None:
        return registration_consumed()
    departed = tuple(one.device_id for one in answer.departing)
    ended = sum([await tx.count(Session, {"device_id": one, "revoke_reason": DEVICE_REMOVED}) for one in departed])
    chain = (registered.device.certificate, *root)
    return replace(registered, certificate_chain=chain, departed=departed, revoked_sessions=ended)


async def _registered(tx: Snapshot, row: Registration) -> RegisteredDevice | None:
    device = await tx.get(Device, id=row.device_id)
    credentials = await tx.find(Credential, {"device_id": row.device_id})
    user = await tx.get(User, id=row.user_id)
    tenant = await tx.get(Tenant, id=row.tenant_id)
    if device is None or not credentials or user is None or tenant is None:
        return None
    tpm = await tx.get(DeviceTpm, device_id=row.device_id)
    return RegisteredDevice(device, credentials[0], (), user, tenant, tpm, row.replaced_device_id)


@dataclass(frozen=True, slots=True)
class Completion:
    """Steps 4 and 5 of `Registrations.complete`, as one transaction."""

    world: World
    devices: Devices
    row: Registration
    answer: RegistrationAnswer
    evidence: VerifiedRegistration
    tpm: ProvedTpm | None
    card: ProvedCard | None
    chain: tuple[bytes, ...]

    async def run(self, tx: Transaction) -> RegisteredDevice | KeyvouchError:
        """Register the device, or return why not, with the audit record of either."""
        row = self.row
        copy = await self._completed_by_a_copy(tx)
        if copy is not None:
            return await self._refused(tx, copy) if isinstance(copy, KeyvouchError) else copy
        user = await tx.get(User, id=row.user_id)
        tenant = await tx.get(Tenant, id=row.tenant_id)
        if user is None or tenant is None:
            return registration_consumed()
        older = await self._older_devices(tx)
        departing = await self._departing(tx)
        if isinstance(departing, KeyvouchError):
            return await self._refused(tx, departing)
        going = {device.id: (device, DeviceFate.REPLACED) for device in older} | departing
        refusal = await self._refusal(tx, user, going.keys()) or await self._session_stands(tx)
        refusal = refusal or await self._pass_is_for_another(tx)
        if refusal is not None:
            return await self._refused(tx, refusal)
        moved = await tx.update(
            Registration,
            {"id": row.id, "state": RegistrationState.PENDING, "expires_at": Above(self.world.clock.now())},
            {
                "state": RegistrationState.COMPLETE,
                "answer_hash": self.answer.digest(),
                "replaced_device_id": older[0].id if older else "",
            },
        )
        if not moved:
            return await self._completed_by_a_copy(tx) or await self._too_late(tx)
        gone = [
            await self.devices.remove_in(tx, device, actor=row.user_id, fate=fate) for device, fate in going.values()
        ]
        done = await self._insert(tx, moved[0], user, tenant)
        await self._spend_one_time_pass(tx)
        await self._audit(tx, "ok")
        ended = sum(one.sessions for one in gone if one.device_id in departing)
        return replace(done, departed=tuple(departing), revoked_sessions=ended, replaced=tuple(gone))

    async def _refused(self, tx: Transaction, refusal: KeyvouchError) -> KeyvouchError:
        await self._audit(tx, refusal.reason.value, **precise(refusal))
        return refusal

    async def _departing(self, tx: Transaction) -> dict[str, tuple[Device, DeviceFate]] | KeyvouchError:
        """PS19, T10: the devices that the person says are lost or replaced: all of them this user's, or none goes."""
        found: dict[str, tuple[Device, DeviceFate]] = {}
        for one in self.answer.departing:
            device = await tx.get(Device, id=one.device_id)
            if device is None or device.user_id != self.row.user_id:
                return _not_yours(one.device_id)
            found[one.device_id] = (device, one.fate)
        return found

    async def _completed_by_a_copy(self, tx: Transaction) -> RegisteredDevice | KeyvouchError | None:
        """Copies of one answer may be verified at the same time; those that come second get the first one's reply."""
        row = await tx.get(Registration, id=self.row.id)
        if row is None or row.state is not RegistrationState.COMPLETE:
            return None
        return await repeated(tx, row, self.answer, self.chain[1:])

    async def _too_late(self, tx: Transaction) -> KeyvouchError:
        await self._audit(tx, Reason.REGISTRATION_EXPIRED.value)
        return registration_expired()

    @property
    def _assurance(self) -> str:
        proved = self.tpm or self.card
        return proved.assurance if proved else assurance_of(self.evidence).text()

    @property
    def _is_card(self) -> bool:
        return self.card is not None or self.row.provider is ProviderKind.SMARTCARD

    @property
    def _model(self) -> Model:
        evidence = self.evidence
        said = Assurance.parse(self._assurance)
        return Model(evidence.aaguid, evidence.attestation.format, said.provenance, said.protection)

    async def _older_devices(self, tx: Transaction) -> list[Device]:
        """The user's devices in this very TPM: a new registration takes their place."""
        if self.tpm is None:
            return []
        key_hash = endorsement_key_hash(self.tpm.prepared.endorsement_key)
        known = await tx.find(DeviceTpm, {"endorsement_key_hash": key_hash, "user_id": self.row.user_id})
        found = [await tx.get(Device, id=tpm.device_id) for tpm in known]
        return [device for device in found if device is not None]

    async def _refusal(self, tx: Transaction, user: User, going: Collection[str]) -> KeyvouchError | None:
        policy = await self.world.policy_of(tx, self.row.tenant_id)
        devices = await tx.find(Device, {"user_id": self.row.user_id}, order="id")
        staying = [f"{d.display_name} ({d.id})" for d in devices if d.id not in going]
        wish = Wish(self.row.provider, len(staying), self.world.facts.device_endpoint)
        try:
            decide_registration(policy, await self.world.subject_of(tx, user), wish)
            decide_device_limit(policy, staying)
            decide_model(policy.registration.authenticators, self._model)
            decide_assurance(self._assurance, policy.registration.required_assurance)
            decide_card_pin(policy, pin_policy_of(self.answer.attestation_object, is_card=self._is_card))
            if self.tpm is not None:
                decide_pin_limit(policy, self.tpm.prepared.pin_limit)
                await decide_identity(tx, self.row, self.tpm.prepared.endorsement_key, policy)
        except RefusedError as refusal:
            return refusal
        return None

    async def _insert(self, tx: Transaction, row: Registration, user: User, tenant: Tenant) -> RegisteredDevice:
        device, credential = self._device(), self._credential(user)
        tpm = self._device_tpm(self.tpm) if self.tpm else None
        try:
            for record in (device, credential, *([tpm] if tpm else [])):
                await tx.insert(record)
            if device.provider is ProviderKind.FIDO2:
                lengths = with_key(tenant.key_lengths, len(credential.id))
                await tx.update(Tenant, {"id": tenant.id}, {"key_lengths": lengths})
        except Duplicate:
            raise ConflictError(
                Reason.CREDENTIAL_EXISTS,
                "This key is registered already.",
                fix="Remove the old device first, or let the agent make a new key.",
            ) from None
        return RegisteredDevice(device, credential, self.chain, user, tenant, tpm, row.replaced_device_id)

    def _device(self) -> Device:
        row = self.row
        return Device(
            id=row.device_id,
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            display_name=row.display_name,
            provider=row.provider,
            channel_key=row.channel_key,
            certificate=self.chain[0],
            registered_at=self.world.clock.now(),
        )

    def _credential(self, user: User) -> Credential:
        e = self.evidence
        return Credential(
            id=CredentialId(bytes(e.credential_id)),
            tenant_id=self.row.tenant_id,
            user_id=self.row.user_id,
            device_id=self.row.device_id,
            user_handle=user.user_handle,
            public_key=bytes(e.public_key),
            sign_count=e.sign_count,
            backup_eligible=e.backup_eligible,
            aaguid=e.aaguid,
            attestation_object=self.answer.attestation_object,
            client_data=self.answer.client_data,
            assurance=self._assurance,
            created_at=self.world.clock.now(),
            card_authority=self.card.verified.authority.name if self.card else "",
            card_certificates=self.card.stored if self.card else b"",
        )

    def _device_tpm(self, proved: ProvedTpm) -> DeviceTpm:
        """Clock and firmware of the registration are what later reports are held against."""
        prepared, said = proved.prepared, proved.verified
        record = DeviceTpm(
            device_id=self.row.device_id,
            tenant_id=self.row.tenant_id,
            user_id=self.row.user_id,
            endorsement_key_hash=endorsement_key_hash(prepared.endorsement_key),
            transcript=self.row.tpm,
            proved_assurance=proved.assurance,
            anchor=prepared.tpm.anchor if prepared.tpm else "",
            manufacturer=prepared.tpm.manufacturer if prepared.tpm else "",
            model=prepared.tpm.model if prepared.tpm else "",
            pin_limit=prepared.pin_limit if said else 0,  # a PIN gate that nobody has seen has no limit
            channel_key_in_tpm=proved.channel_key_in_tpm,
        )
        return record if said is None else heard(record, said.clock, said.firmware_version)

    async def _session_stands(self, tx: Transaction) -> KeyvouchError | None:
        try:
            await decide_session(tx, self.world, self.row)
        except (RefusedError, UnauthenticatedError) as refusal:
            return refusal
        return None

    async def _pass_is_for_another(self, tx: Transaction) -> KeyvouchError | None:
        """A TPM that nobody vouches for has proved nothing of the new key."""
        proved = self.tpm.prepared.endorsement_key if self.tpm is not None and self.tpm.verified is not None else None
        key_hash = endorsement_key_hash(proved) if proved is not None else b""
        try:
            await decide_pass(tx, self.row, endorsement_key_hash=key_hash, model=self._model)
        except RefusedError as refusal:
            return refusal
        return None

    async def _spend_one_time_pass(self, tx: Transaction) -> None:
        """P8: one registration per one-time pass. Its session ends with this one; a second one is undone."""
        found = await access_pass_of(tx, self.row)
        if found is None or not found.one_time:
            return
        reason = "one_time_pass_used"
        spent = {"revoked_at": self.world.clock.now(), "revoke_reason": reason}
        if not await tx.update(Session, {"id": self.row.session_id, "revoked_at": 0}, spent):
            raise session_ended()
        await self.world.audit(
            tx,
            "session.revoke",
            actor=self.row.user_id,
            tenant_id=self.row.tenant_id,
            subject=self.row.session_id,
            user_id=self.row.user_id,
            reason=reason,
        )

    async def _audit(self, tx: Transaction, outcome: str, **details: str) -> None:
        await self.world.audit(
            tx,
            "registration.complete",
            actor=self.row.user_id,
            tenant_id=self.row.tenant_id,
            subject=self.row.device_id,
            user_id=self.row.user_id,
            outcome=outcome,
            assurance=self._assurance,
            format=self.evidence.attestation.format,
            **self._card_details(),
            **details,
        )

    def _card_details(self) -> dict[str, str]:
        """For the audit log: which card, as its attestation says, and by which certificate the key is the user's."""
        details, facts = {}, self.evidence.attestation.facts
        if isinstance(facts, PivFacts):
            details = {
                "slot": facts.slot,
                "firmware": facts.firmware,
                "serial": "" if facts.serial is None else str(facts.serial),
                "pin_policy": facts.pin_policy,
                "touch_policy": facts.touch_policy,
            }
        if self.card is not None:
            leaf = self.card.verified.path[0]
            details |= {
                "card_authority": self.card.verified.authority.name,
                "certificate": certificate_hash(leaf).hex(),
            }
        return details


def _not_yours(device_id: str) -> NotFoundError:
    return NotFoundError(
        Reason.DEVICE_UNKNOWN,
        f"You have no device {device_id} that could go, so nothing was registered and nothing removed.",
        fix="Look at your devices with `keyvouch security-info`, and complete the registration without it.",
        metadata={"device_id": device_id},
    )
