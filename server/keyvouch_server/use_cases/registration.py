"""Registration: a device with its credential becomes a method of its user. The drawing is in enrolment.proto."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from keyvouch.attestation import AttestationRequirement, TrustStore, VerifiedRegistration, verify_registration
from keyvouch.attestation.tpm_marshal import TpmPrivateKey
from keyvouch.cose import Algorithm
from keyvouch.errors import ConflictError, KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import DEVICE, REGISTRATION, DeviceId, RegistrationId
from keyvouch.proofs import load_proof_key, spki_sha256, verify_proof
from keyvouch.statement import Purpose, RegistrationStatement, challenge
from keyvouch_server.domain.model import ProviderKind, Registration, RegistrationState, Tenant, User
from keyvouch_server.domain.names import check_text, invalid_field
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.prerequisites import Wish, decide_registration
from keyvouch_server.ports import Above, AtMost, Snapshot, Transaction
from keyvouch_server.use_cases.budgets import throttled
from keyvouch_server.use_cases.cards import ProvedCard, verify_card
from keyvouch_server.use_cases.devices import Devices, DeviceView
from keyvouch_server.use_cases.pass_binding import decide_session_pass
from keyvouch_server.use_cases.registration_completion import (
    Completion,
    RegisteredDevice,
    RegistrationAnswer,
    repeated,
)
from keyvouch_server.use_cases.tpm_ceremony import BegunTpm, draw_ceremony_key, seal_ceremony_key
from keyvouch_server.use_cases.tpm_evidence import ProvedTpm, anchors_for, expected_tpm, verify_tpm_answer
from keyvouch_server.use_cases.world import (
    Caller,
    World,
    precise,
    registration_consumed,
    settled,
    sha256,
    unknown_registration,
)

LIFETIME_SECONDS: Final = 600
"""How long a registration may take (T13)."""

OPEN_AT_ONCE: Final = 100
"""Registrations that one user may have begun and not finished: each is a row, also when nobody ever does."""

RETENTION_SECONDS: Final = 86400
"""How long a registration that ran out of time is kept, so that a late answer learns why it is refused."""

ALGORITHMS: Final = (Algorithm.ES256, Algorithm.ES384, Algorithm.EDDSA, Algorithm.RS256)
"""COSE algorithms a credential may have, best first."""


@dataclass(frozen=True, slots=True)
class RegistrationRequest:
    """What a device asks for. `channel_key` is DER SubjectPublicKeyInfo; `tpm_verifies` are the COSE algorithms its TPM
    verifies signatures by, None for a device without one.
    """

    channel_key: bytes
    display_name: str
    provider: ProviderKind
    tpm_verifies: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class BegunRegistration:
    """What the agent needs to make a credential. `token` is the credential of the second call; `present` is what the
    user has registered already, of which as many have to depart as policy has no room for.
    """

    registration: Registration
    token: str = field(repr=False)
    user: User
    policy: Policy
    tpm: BegunTpm | None = None
    present: tuple[DeviceView, ...] = ()


class Registrations:
    """The registration ceremony."""

    def __init__(self, world: World, devices: Devices) -> None:
        self._world = world
        self._devices = devices
        self._drawing = asyncio.Semaphore(1)

    async def begin(self, caller: Caller, request: RegistrationRequest) -> BegunRegistration:
        """Open a registration for the caller's user.

        1. check the request; 2. policy: the method is on and for this user, and so is the pass that opened the session
        (T2), and there are not too many that nobody finished; 3. device id, nonce, statement, and for a TPM a ceremony
        key; 4. row `pending`, audit. Whether there is room for a device is judged at the end: which devices go when
        this one comes is said only then (PS19).
        """
        check_text(request.display_name, "display_name", longest=64)
        thumbprint = spki_sha256(load_proof_key(request.channel_key, reason=Reason.CHANNEL_KEY))
        verifies = request.tpm_verifies
        ceremony_key = None if verifies is None else await self._draw(caller.user, verifies)
        token = self._world.secret("kve")

        async def work(tx: Transaction) -> BegunRegistration | KeyvouchError:
            await self._world.must_stand(tx, caller)
            policy = await self._world.policy_of(tx, caller.user.tenant_id)
            present = tuple(await self._devices.of_user_in(tx, caller.user.id))
            refusal = await self._may_register(tx, caller, policy, self._wish(request.provider, len(present)))
            refusal = refusal or await self._too_many_open(tx, caller.user)
            if refusal is not None:
                await self._audit_begin(tx, caller, "", refusal.reason.value)
                return refusal
            row, tpm = self._row(caller, request, thumbprint, token), None
            if ceremony_key is not None:
                tries, keys = policy.registration.pin_tries, self._world.keys
                tpm = seal_ceremony_key(ceremony_key, tries, keys=keys, registration_id=row.id, token=token)
                row = replace(row, tpm=tpm.encode())
            await tx.insert(row)
            await self._audit_begin(tx, caller, row.id, "ok")
            return BegunRegistration(row, token, caller.user, policy, tpm, present)

        return settled(await self._world.store.write(work))

    async def _draw(self, user: User, verifies: tuple[int, ...]) -> TpmPrivateKey:
        """One at a time, and none for a registration that would be one too many: an RSA key keeps a core busy for a
        while, and whoever has a session may ask for many.
        """
        async with self._drawing:
            settled(await self._world.store.read(lambda tx: self._too_many_open(tx, user)))
            return await asyncio.to_thread(draw_ceremony_key, verifies)

    def _wish(self, provider: ProviderKind, devices: int) -> Wish:
        return Wish(provider, devices, self._world.facts.device_endpoint)

    async def _may_register(self, tx: Transaction, caller: Caller, policy: Policy, wish: Wish) -> KeyvouchError | None:
        try:
            decide_registration(policy, await self._world.subject_of(tx, caller.user), wish)
            await decide_session_pass(tx, self._world, caller.session, caller.user, policy)
        except KeyvouchError as refusal:
            return refusal
        return None

    async def _too_many_open(self, tx: Snapshot, user: User) -> KeyvouchError | None:
        now = self._world.clock.now()
        unfinished = {"user_id": user.id, "state": RegistrationState.PENDING, "expires_at": Above(now)}
        if await tx.count(Registration, unfinished) < OPEN_AT_ONCE:
            return None
        (first,) = await tx.find(Registration, unfinished, order="expires_at", limit=1)
        return throttled("too many registrations were begun and not finished", first.expires_at - now)

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

    def _row(self, caller: Caller, request: RegistrationRequest, thumbprint: bytes, token: str) -> Registration:
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
            channel_key=request.channel_key,
            display_name=request.display_name,
            provider=request.provider,
            state=RegistrationState.PENDING,
            created_at=now,
            expires_at=expires,
        )

    async def complete(self, token: str, answer: RegistrationAnswer) -> RegisteredDevice:
        """Verify the answer and register the device.

        1. find the ceremony by its token; 2. the same answer again gets the same reply; 3. verify the
        attestation and the channel key's proof over this statement, a TPM's evidence against its transcript, and
        certificates of an organisation for this user;
        4. policy on what was proved (PS8, H8, PS17); 5. `pending -> complete`, device, credential, TPM, audit in one
        transaction, in which the devices go that depart (PS19), and an older one of the same user in the same TPM;
        6. device certificate.
        """
        row = await self._world.store.read(lambda tx: tx.get(Registration, token_hash=sha256(token)))
        if row is None:
            raise unknown_registration()
        if row.state is RegistrationState.COMPLETE:
            return await self._repeat(row, answer)
        try:
            evidence, tpm = self._verify(row, answer)
            card = await self._verify_card(row, answer, evidence)
        except Exception as failed:  # whatever it is: the device stays absent, and there is a trace of it (TPM9)
            await self._audit_refusal(row, answer, failed)
            raise
        chain = self._world.keys.device_certificate(row.device_id, row.tenant_id, row.channel_key)
        work = Completion(self._world, self._devices, row, answer, evidence, tpm, card, chain)
        try:
            written = await self._world.write_and_tell(work.run, self._announce)
        except (ConflictError, UnauthenticatedError) as undone:  # and its audit record with it
            await self._audit_refusal(row, answer, undone)
            raise
        return settled(written)

    def _announce(self, done: RegisteredDevice | KeyvouchError) -> None:
        for gone in done.replaced if isinstance(done, RegisteredDevice) else ():
            self._devices.announce(gone)

    async def forget_abandoned(self) -> None:
        """Drop registrations that nobody finished in time, a day after they ran out. Their audit records stay."""
        old = {"state": RegistrationState.PENDING, "expires_at": AtMost(self._world.clock.now() - RETENTION_SECONDS)}
        await self._world.store.write(lambda tx: tx.delete(Registration, old))

    def _verify(self, row: Registration, answer: RegistrationAnswer) -> tuple[VerifiedRegistration, ProvedTpm | None]:
        prepared = expected_tpm(row, shown=answer.tpm is not None)
        anchors = anchors_for(self._world, prepared)
        evidence = verify_credential(self._world, answer.client_data, answer.attestation_object, row.statement, anchors)
        key = load_proof_key(row.channel_key, reason=Reason.CHANNEL_KEY)
        verify_proof(key, Purpose.CHANNEL, row.statement, signature=answer.channel_proof)
        if prepared is None:
            return evidence, None
        return evidence, verify_tpm_answer(evidence, answer.tpm, prepared=prepared, row=row)

    async def _verify_card(
        self, row: Registration, answer: RegistrationAnswer, evidence: VerifiedRegistration
    ) -> ProvedCard | None:
        if answer.card is None:
            return None
        if row.tpm:
            raise invalid_field("card", "nothing in a registration with a TPM, whose keys are made in it")
        if row.provider is ProviderKind.FIDO2:  # judging it takes a time that a client could measure (P12)
            raise invalid_field("card", "nothing in a registration of a security key")
        user = await self._world.store.read(lambda tx: tx.get(User, id=row.user_id))
        tenant = await self._world.store.read(lambda tx: tx.get(Tenant, id=row.tenant_id))
        if user is None or tenant is None:
            raise registration_consumed()
        return verify_card(self._world, evidence, answer.card, user=user, tenant=tenant)

    async def _audit_refusal(self, row: Registration, answer: RegistrationAnswer, failed: Exception) -> None:
        """With the SHA-256 of the certificate that was shown, whoever's it is: of a card that was found or taken."""
        reason = failed.reason if isinstance(failed, KeyvouchError) else Reason.INTERNAL
        shown = {"certificate": hashlib.sha256(answer.card[0]).hexdigest()} if answer.card else {}
        await self._world.store.write(
            lambda tx: self._world.audit(
                tx,
                "registration.complete",
                actor=row.user_id,
                tenant_id=row.tenant_id,
                subject=row.device_id,
                user_id=row.user_id,
                outcome=reason.value,
                **precise(failed),
                **shown,
            )
        )

    async def _repeat(self, row: Registration, answer: RegistrationAnswer) -> RegisteredDevice:
        root = self._world.keys.device_certificate(row.device_id, row.tenant_id, row.channel_key)[1:]
        try:
            return settled(await self._world.store.read(lambda tx: repeated(tx, row, answer, root)))
        except ConflictError as another:
            await self._audit_refusal(row, answer, another)
            raise


def verify_credential(
    world: World, client_data: bytes, attestation_object: bytes, statement: bytes, anchors: TrustStore
) -> VerifiedRegistration:
    """Verify that a new credential of an agent was made for `statement`, under `anchors`, with the user verified."""
    return verify_registration(
        client_data=client_data,
        attestation_object=attestation_object,
        challenge=challenge(Purpose.REGISTRATION, statement),
        rp_id=world.facts.rp_id,
        origins=frozenset({world.facts.agent_origin}),
        require_user_verification=True,
        algorithms=ALGORITHMS,
        attestation=AttestationRequirement.OPTIONAL,
        anchors=anchors,
        instant=datetime.fromtimestamp(world.clock.now(), UTC),
    )
