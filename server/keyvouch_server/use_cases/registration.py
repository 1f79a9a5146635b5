"""Registration: a device with its credential becomes a method of its user. The drawing is in enrolment.proto."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from keyvouch.attestation import (
    AttestationRequirement,
    VerifiedRegistration,
    assurance_of,
    verify_registration,
)
from keyvouch.cose import Algorithm
from keyvouch.errors import ConflictError, KeyvouchError, Reason, RefusedError, UnauthenticatedError
from keyvouch.ids import DEVICE, REGISTRATION, CredentialId, DeviceId, RegistrationId
from keyvouch.proofs import load_proof_key, spki_sha256, verify_proof
from keyvouch.statement import Purpose, RegistrationStatement, challenge
from keyvouch_server.domain.model import (
    AccessPass,
    Credential,
    Device,
    ProviderKind,
    Registration,
    RegistrationState,
    Session,
    Tenant,
    User,
)
from keyvouch_server.domain.names import check_text
from keyvouch_server.domain.policy import Policy, decide_approval_enabled, decide_assurance, decide_device_limit
from keyvouch_server.ports import Above, AtMost, Duplicate, Snapshot, Transaction
from keyvouch_server.use_cases.world import Caller, World, settled, sha256

LIFETIME_SECONDS: Final = 600
"""How long a registration may take (T13)."""

RETENTION_SECONDS: Final = 86400
"""How long a registration that ran out of time is kept, so that a late answer learns why it is refused."""

ALGORITHMS: Final = (Algorithm.ES256, Algorithm.ES384, Algorithm.EDDSA, Algorithm.RS256)
"""COSE algorithms a credential may have, best first."""


@dataclass(frozen=True, slots=True)
class BegunRegistration:
    """What the agent needs to make a credential. `token` is the credential of the second call."""

    registration: Registration
    token: str = field(repr=False)
    user: User
    policy: Policy


@dataclass(frozen=True, slots=True)
class RegistrationAnswer:
    """What the agent sends back: the authenticator's response and a signature of the channel key."""

    client_data: bytes
    attestation_object: bytes
    channel_proof: bytes

    def digest(self) -> bytes:
        """SHA-256 over the parts that do not change when the same answer is sent again."""
        return hashlib.sha256(hashlib.sha256(self.client_data).digest() + self.attestation_object).digest()


@dataclass(frozen=True, slots=True)
class RegisteredDevice:
    """A device with the certificate chain of its channel (DER, the device's first)."""

    device: Device
    credential: Credential
    certificate_chain: tuple[bytes, ...]
    user: User
    tenant: Tenant


class Registrations:
    """The registration ceremony."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def begin(
        self, caller: Caller, *, channel_key: bytes, display_name: str, provider: ProviderKind
    ) -> BegunRegistration:
        """Open a registration for the caller's user.

        1. check the request; 2. policy: the method is on and there is room for a device; 3. device id, nonce,
        statement; 4. row `pending`, audit.
        """
        check_text(display_name, "display_name", longest=64)
        thumbprint = spki_sha256(load_proof_key(channel_key, reason=Reason.CHANNEL_KEY))
        token = self._world.secret("kve")

        async def work(tx: Transaction) -> BegunRegistration | KeyvouchError:
            await self._world.must_stand(tx, caller)
            policy = await self._world.policy_of(tx, caller.user.tenant_id)
            refusal = await self._may_register(tx, caller.user, policy)
            if refusal is not None:
                await self._audit_begin(tx, caller, "", refusal.reason.value)
                return refusal
            row = self._row(caller, channel_key, thumbprint, display_name, provider, token)
            await tx.insert(row)
            await self._audit_begin(tx, caller, row.id, "ok")
            return BegunRegistration(row, token, caller.user, policy)

        return settled(await self._world.store.write(work))

    async def _may_register(self, tx: Transaction, user: User, policy: Policy) -> KeyvouchError | None:
        devices = await tx.find(Device, {"user_id": user.id}, order="id")
        try:
            decide_approval_enabled(policy)
            decide_device_limit(policy, [f"{d.display_name} ({d.id})" for d in devices])
        except KeyvouchError as refusal:
            return refusal
        return None

    async def _audit_begin(self, tx: Transaction, caller: Caller, subject: str, outcome: str) -> None:
        await self._world.audit(
            tx,
            "registration.begin",
            actor=caller.user.id,
            tenant_id=caller.user.tenant_id,
            subject=subject,
            user_id=caller.user.id,
            outcome=outcome,
        )

    def _row(
        self,
        caller: Caller,
        channel_key: bytes,
        thumbprint: bytes,
        display_name: str,
        provider: ProviderKind,
        token: str,
    ) -> Registration:
        world, now = self._world, self._world.clock.now()
        expires = min(now + LIFETIME_SECONDS, caller.session.expires_at)
        registration_id = RegistrationId(world.new_id(REGISTRATION))
        device_id = DeviceId(world.new_id(DEVICE))
        statement = RegistrationStatement(
            server_id=world.facts.server_id,
            tenant_id=caller.user.tenant_id,
            user_id=caller.user.id,
            device_id=device_id,
            registration_id=registration_id,
            nonce=world.entropy.token(32),
            expires_at=expires,
            channel_key=thumbprint,
        )
        return Registration(
            id=registration_id,
            tenant_id=caller.user.tenant_id,
            user_id=caller.user.id,
            session_id=caller.session.id,
            device_id=device_id,
            token_hash=sha256(token),
            statement=statement.encode(),
            channel_key=channel_key,
            display_name=display_name,
            provider=provider,
            state=RegistrationState.PENDING,
            created_at=now,
            expires_at=expires,
        )

    async def complete(self, token: str, answer: RegistrationAnswer) -> RegisteredDevice:
        """Verify the answer and register the device.

        1. find the ceremony by its token; 2. the same answer again gets the same reply; 3. verify the
        attestation and the channel key's proof over this statement; 4. policy on what was proved (PS8, H8);
        5. `pending -> complete`, device, credential, audit in one transaction; 6. device certificate.
        """
        row = await self._world.store.read(lambda tx: tx.get(Registration, token_hash=sha256(token)))
        if row is None:
            raise UnauthenticatedError(
                Reason.REGISTRATION_UNKNOWN, "There is no such registration.", fix="Begin the registration again."
            )
        if row.state is RegistrationState.COMPLETE:
            return await self._repeat(row, answer)
        try:
            evidence = self._verify(row, answer)
        except KeyvouchError as refusal:
            await self._audit_refusal(row, refusal)
            raise
        chain = self._world.keys.device_certificate(row.device_id, row.tenant_id, row.channel_key)
        work = _Completion(self._world, row, answer, evidence, chain)
        try:
            done = await self._world.store.write(work.run)
        except (ConflictError, UnauthenticatedError) as undone:  # and its audit record with it
            await self._audit_refusal(row, undone)
            raise
        return settled(done)

    async def forget_abandoned(self) -> None:
        """Drop registrations that nobody finished in time, a day after they ran out. Their audit records stay."""
        old = {"state": RegistrationState.PENDING, "expires_at": AtMost(self._world.clock.now() - RETENTION_SECONDS)}
        await self._world.store.write(lambda tx: tx.delete(Registration, old))

    def _verify(self, row: Registration, answer: RegistrationAnswer) -> VerifiedRegistration:
        facts = self._world.facts
        evidence = verify_registration(
            client_data=answer.client_data,
            attestation_object=answer.attestation_object,
            challenge=challenge(Purpose.REGISTRATION, row.statement),
            rp_id=facts.rp_id,
            origins=frozenset({facts.agent_origin}),
            require_user_verification=True,
            algorithms=ALGORITHMS,
            attestation=AttestationRequirement.OPTIONAL,
            anchors=self._world.anchors,
            instant=datetime.fromtimestamp(self._world.clock.now(), UTC),
        )
        key = load_proof_key(row.channel_key, reason=Reason.CHANNEL_KEY)
        verify_proof(key, Purpose.CHANNEL, row.statement, signature=answer.channel_proof)
        return evidence

    async def _audit_refusal(self, row: Registration, refusal: KeyvouchError) -> None:
        await self._world.store.write(
            lambda tx: self._world.audit(
                tx,
                "registration.complete",
                actor=row.user_id,
                tenant_id=row.tenant_id,
                subject=row.device_id,
                user_id=row.user_id,
                outcome=refusal.reason.value,
            )
        )

    async def _repeat(self, row: Registration, answer: RegistrationAnswer) -> RegisteredDevice:
        root = self._world.keys.device_certificate(row.device_id, row.tenant_id, row.channel_key)[1:]
        return settled(await self._world.store.read(lambda tx: _repeated(tx, row, answer, root)))


async def _repeated(
    tx: Snapshot, row: Registration, answer: RegistrationAnswer, root: tuple[bytes, ...]
) -> RegisteredDevice | KeyvouchError:
    """The reply to the answer that completed this registration, once more; any other answer is too late."""
    registered = await _registered(tx, row)
    if row.answer_hash != answer.digest() or registered is None:
        return _consumed()
    return replace(registered, certificate_chain=(registered.device.certificate, *root))


async def _registered(tx: Snapshot, row: Registration) -> RegisteredDevice | None:
    device = await tx.get(Device, id=row.device_id)
    credentials = await tx.find(Credential, {"device_id": row.device_id})
    user = await tx.get(User, id=row.user_id)
    tenant = await tx.get(Tenant, id=row.tenant_id)
    if device is None or not credentials or user is None or tenant is None:
        return None
    return RegisteredDevice(device, credentials[0], (), user, tenant)


@dataclass(frozen=True, slots=True)
class _Completion:
    """Steps 4 and 5 of `complete`, as one transaction."""

    world: World
    row: Registration
    answer: RegistrationAnswer
    evidence: VerifiedRegistration
    chain: tuple[bytes, ...]

    async def run(self, tx: Transaction) -> RegisteredDevice | KeyvouchError:
        row = self.row
        copy = await self._completed_by_a_copy(tx)
        if copy is not None:
            return copy
        user = await tx.get(User, id=row.user_id)
        tenant = await tx.get(Tenant, id=row.tenant_id)
        if user is None or tenant is None:
            return _consumed()
        assurance = assurance_of(self.evidence).text()
        refusal = await self._refusal(tx, assurance) or await self._session_stands(tx)
        if refusal is not None:
            await self._audit(tx, refusal.reason.value, assurance)
            return refusal
        moved = await tx.update(
            Registration,
            {"id": row.id, "state": RegistrationState.PENDING, "expires_at": Above(self.world.clock.now())},
            {"state": RegistrationState.COMPLETE, "answer_hash": self.answer.digest()},
        )
        if not moved:
            return await self._completed_by_a_copy(tx) or _expired()
        device, credential = self._records(user, assurance)
        try:
            await tx.insert(device)
            await tx.insert(credential)
        except Duplicate:
            raise ConflictError(
                Reason.CREDENTIAL_EXISTS,
                "This key is registered already.",
                fix="Remove the old device first, or let the agent make a new key.",
            ) from None
        await self._spend_one_time_pass(tx)
        await self._audit(tx, "ok", assurance)
        return RegisteredDevice(device, credential, self.chain, user, tenant)

    async def _completed_by_a_copy(self, tx: Transaction) -> RegisteredDevice | KeyvouchError | None:
        """Copies of one answer may be verified at the same time; those that come second get the first one's reply."""
        row = await tx.get(Registration, id=self.row.id)
        if row is None or row.state is not RegistrationState.COMPLETE:
            return None
        return await _repeated(tx, row, self.answer, self.chain[1:])

    async def _refusal(self, tx: Transaction, assurance: str) -> KeyvouchError | None:
        policy = await self.world.policy_of(tx, self.row.tenant_id)
        devices = await tx.find(Device, {"user_id": self.row.user_id}, order="id")
        try:
            decide_approval_enabled(policy)
            decide_device_limit(policy, [f"{d.display_name} ({d.id})" for d in devices])
            decide_assurance(assurance, policy.registration.required_assurance)
        except RefusedError as refusal:
            return refusal
        return None

    def _records(self, user: User, assurance: str) -> tuple[Device, Credential]:
        row, now, e = self.row, self.world.clock.now(), self.evidence
        device = Device(
            id=row.device_id,
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            display_name=row.display_name,
            provider=row.provider,
            channel_key=row.channel_key,
            certificate=self.chain[0],
            registered_at=now,
        )
        credential = Credential(
            id=CredentialId(bytes(e.credential_id)),
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            device_id=row.device_id,
            user_handle=user.user_handle,
            public_key=bytes(e.public_key),
            sign_count=e.sign_count,
            backup_eligible=e.backup_eligible,
            aaguid=e.aaguid,
            attestation_object=self.answer.attestation_object,
            client_data=self.answer.client_data,
            assurance=assurance,
            created_at=now,
        )
        return device, credential

    async def _session_stands(self, tx: Transaction) -> KeyvouchError | None:
        session = await tx.get(Session, id=self.row.session_id)
        return _session_ended() if session is None or session.revoked_at else None

    async def _spend_one_time_pass(self, tx: Transaction) -> None:
        """P8: one registration per one-time pass. Its session ends with this one; a second one is undone."""
        session = await tx.get(Session, id=self.row.session_id)
        found = await tx.get(AccessPass, id=session.access_pass_id) if session is not None else None
        if found is None or not found.one_time:
            return
        spent = {"revoked_at": self.world.clock.now(), "revoke_reason": "one_time_pass_used"}
        if not await tx.update(Session, {"id": self.row.session_id, "revoked_at": 0}, spent):
            raise _session_ended()

    async def _audit(self, tx: Transaction, outcome: str, assurance: str) -> None:
        await self.world.audit(
            tx,
            "registration.complete",
            actor=self.row.user_id,
            tenant_id=self.row.tenant_id,
            subject=self.row.device_id,
            user_id=self.row.user_id,
            outcome=outcome,
            assurance=assurance,
            format=self.evidence.attestation.format,
        )


def _session_ended() -> UnauthenticatedError:
    return UnauthenticatedError(
        Reason.SESSION_REVOKED, "The session that began this registration was ended.", fix="Sign in again."
    )


def _consumed() -> ConflictError:
    return ConflictError(
        Reason.REGISTRATION_CONSUMED,
        "This registration is complete already, with another answer.",
        fix="Begin a new registration.",
    )


def _expired() -> RefusedError:
    return RefusedError(
        Reason.REGISTRATION_EXPIRED,
        "The registration took too long.",
        fix="Begin it again; the access pass or session must still be valid.",
    )
