"""Registration: this device becomes a method of its user. The drawing stands in `keyvouch/v1/enrolment.proto`.

     1  the ledger: does another account stand in the way, is there a half-finished registration to resume?
     2  the provider: is it there, can it gate a key with a PIN, and is that PIN not blocked?
     3  the server: a session from the Temporary Access Pass, where there is none yet
     4  a channel key, and BeginRegistration
     5  the statement: parse it, hold it against server and channel key
     6  is what the server requires within reach of this provider, the device listener within reach of this device, and
        is there room for another device?
     7  a TPM: it shows itself, PrepareTpm, it takes what the server allows; the statement now names its attestation key
     8  the provider asks for the PIN, or for a first one where there is none
     9  it makes the key over the statement's challenge, and a TPM proves the rest
    10  which older devices go when this one comes; stage: from here on a crash repeats the same bytes
    11  CompleteRegistration
    12  verify the answer: certificate chain, server id, and that it names what was signed
    13  record, then unstage; an older enrolment that this one replaces goes, with its key

What fails before step 10 takes its key with it. What is not here: the checks (`registration_review`), whether the
evidence is good enough (the server decides), sockets, terminals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from keyvouch.errors import KeyvouchError, NotFoundError, Reason
from keyvouch.ids import CredentialId
from keyvouch.statement import Purpose, RegistrationStatement, challenge
from keyvouch_agent.agent_ports import (
    AttestationEvidence,
    Departing,
    DeviceFate,
    EnrolmentServer,
    KeyHolders,
    Registered,
    RegistrationOffer,
    Secret,
)
from keyvouch_agent.ceremonies import departures
from keyvouch_agent.ceremonies.departures import ChooseDeparting
from keyvouch_agent.ceremonies.readiness import make_ready
from keyvouch_agent.ceremonies.registration_review import (
    RegistrationWish,
    check_final_statement,
    check_free,
    check_gate,
    check_within_reach,
    enrolment_of,
    evidence_of,
    is_final,
    is_for,
    review,
    same_account,
    staged_of,
    verify_answer,
)
from keyvouch_agent.channel_keys import ChannelKey, ChannelKeys
from keyvouch_agent.ledger import Enrolment, Ledger, StagedRegistration
from keyvouch_agent.ports import (
    GateOffer,
    KeyCreation,
    Provider,
    ProviderCapabilities,
    ProviderInteraction,
    ProviderSession,
    Registration,
    TpmEvidence,
)

__all__ = ["RegistrationCeremony", "RegistrationWish"]


@dataclass(frozen=True, slots=True)
class _Made:
    """What steps 7 to 9 made."""

    statement: RegistrationStatement
    registration: Registration
    tpm: TpmEvidence | None


class RegistrationCeremony:
    """One registration.

    `holders` and `ask_access_pass` are called late; `progress` gets a sentence before each long step. Without
    `ask_access_pass` the server is spoken to in a session; without `choose_departing` nobody is asked which devices go.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        server: EnrolmentServer,
        holders: KeyHolders,
        interaction: ProviderInteraction,
        ask_access_pass: Callable[[], Awaitable[Secret]] | None,
        progress: Callable[[str], None],
        channel_keys: ChannelKeys,
        choose_departing: ChooseDeparting | None = None,
    ) -> None:
        self._ledger = ledger
        self._server = server
        self._holders = holders
        self._interaction = interaction
        self._ask_access_pass = ask_access_pass
        self._progress = progress
        self._channel_keys = channel_keys
        self._choose_departing = choose_departing
        self._has_asked = False
        self._made: CredentialId | None = None

    async def run(self, wish: RegistrationWish) -> Enrolment:
        """Register, or finish a registration of the same account that was interrupted.

        Raises `ConflictError` (ALREADY_ENROLLED, DEVICE_REGISTERED_ELSEWHERE), `DeviceError` of the provider,
        `EvidenceError` where the server is not the one expected, and whatever the server answers.
        """
        self._check_ledger(wish)
        staged = next((s for s in self._ledger.staged() if is_for(s, wish)), None)
        if staged is None:
            staged = await self._begin(wish)
        else:
            self._progress("Finishing the registration that was interrupted.")
        return await self._complete(staged, wish)

    def _check_ledger(self, wish: RegistrationWish) -> None:
        known_devices = {known.device_id for known in self._ledger.enrolments()}
        for staged in self._ledger.staged():
            if RegistrationStatement.parse(staged.statement).device_id in known_devices:
                self._ledger.unstage(staged.registration_id)  # recorded, then interrupted: step 13
        for known in self._ledger.enrolments():
            check_free(known, wish)

    async def _begin(self, wish: RegistrationWish) -> StagedRegistration:
        account, provider = await asyncio.to_thread(self._holders.new)
        try:
            await make_ready(provider, self._interaction)
            capabilities = await asyncio.to_thread(provider.capabilities)
            check_gate(capabilities)
            offer, key = await self._ask_server(wish, capabilities)
            statement = review(offer, key, wish.server_id)
            check_within_reach(offer.required, capabilities)
            if offer.device_endpoint:
                await self._server.reach_device_listener(offer.device_endpoint)
            departing = await self._make_room(offer, wish)
            made = await self._make(provider, offer, statement, key)
            departing = await self._lost_or_replaced(offer, departing)
            staged = await asyncio.to_thread(
                staged_of,
                wish,
                account=account,
                offer=offer,
                statement=made.statement,
                capabilities=capabilities,
                key=key,
                made=made.registration,
                tpm=made.tpm,
                departing=departures.kept(departing),
            )
            await asyncio.to_thread(self._ledger.stage, staged)
        except BaseException:
            await self._forget(account, self._made)
            raise
        return staged

    async def _ask_server(
        self, wish: RegistrationWish, capabilities: ProviderCapabilities
    ) -> tuple[RegistrationOffer, ChannelKey]:
        access_pass = await self._ask_access_pass() if self._ask_access_pass else None
        self._progress(f"Waiting for the server {wish.public_endpoint}.")
        token = access_pass and await self._server.sign_in_with_access_pass(
            tenant=wish.tenant, username=wish.username, access_pass=access_pass
        )
        key = await asyncio.to_thread(self._channel_keys.make)
        offer = await self._server.begin_registration(
            token,
            channel_public_key=key.spki,
            display_name=wish.display_name,
            provider=capabilities.kind.value,
            verifies=capabilities.verifies,
        )
        return offer, key

    async def _make_room(self, offer: RegistrationOffer, wish: RegistrationWish) -> tuple[Departing, ...]:
        """Step 6: what was said beforehand; more only where the server would refuse the new device in the end.

        Raises `NotFoundError(DEVICE_UNKNOWN)` or `RefusedError(DEVICE_LIMIT)`.
        """
        present = {device.device_id for device in offer.present}
        known = await asyncio.to_thread(self._ledger.enrolments)
        here = [e.device_id for e in known if same_account(e, wish) and e.device_id in present]
        departing = departures.joined(
            departures.named_beforehand(offer.present, lost=wish.lost, replaced=wish.replaced),
            [Departing(device_id, DeviceFate.REPLACED) for device_id in here],
        )
        surplus = departures.too_many(offer.present, departing, offer.devices_allowed)
        if surplus and self._choose_departing is not None:
            left = departures.staying(offer.present, departing)
            departing = departures.joined(departing, await self._choose_departing(left, surplus))
            self._has_asked = True
        departures.check_room(offer.present, departing, offer.devices_allowed)
        return departing

    async def _lost_or_replaced(
        self, offer: RegistrationOffer, departing: tuple[Departing, ...]
    ) -> tuple[Departing, ...]:
        """Step 10: the question, unless it was answered before, or nobody is there to answer it."""
        left = departures.staying(offer.present, departing)
        if not left or self._has_asked:
            return departing
        if self._choose_departing is None:
            if not departing:
                self._progress(f"You also have: {departures.named(left)}. Remove what is lost in your security info.")
            return departing
        return departures.joined(departing, await self._choose_departing(left, 0))

    async def _make(
        self, provider: Provider, offer: RegistrationOffer, statement: RegistrationStatement, key: ChannelKey
    ) -> _Made:
        """Steps 7 to 9. Providers block, so each of their steps has a thread; one session serves all."""
        session = await asyncio.to_thread(lambda: provider.open(self._interaction, rp_id=offer.rp_id))
        try:
            if offer.tpm is not None:
                statement = await self._prepare(session, offer, statement)
            self._progress("Making the key.")
            creation = KeyCreation(
                challenge=challenge(Purpose.REGISTRATION, statement.encoded),
                rp_id=offer.rp_id,
                user_id=offer.user_handle,
                user_name=offer.username,
                algorithms=offer.algorithms,
            )
            registration = await self._create(session, creation)
            tpm = await asyncio.to_thread(session.evidence, statement.encoded, key.stored)
            return _Made(statement, registration, tpm)
        except asyncio.CancelledError:
            session.cancel()
            raise
        finally:
            await asyncio.to_thread(session.close)

    async def _create(self, session: ProviderSession, creation: KeyCreation) -> Registration:
        """Step 9. A key that comes to be although nobody waits for it any more goes like every other."""
        creating = asyncio.ensure_future(asyncio.to_thread(session.create_key, creation))
        try:
            await asyncio.wait({creating})
        except asyncio.CancelledError:
            session.cancel()
            await asyncio.wait({creating})
            self._made = None if creating.exception() else creating.result().credential_id
            raise
        made = creating.result()
        self._made = made.credential_id
        return made

    async def _prepare(
        self, session: ProviderSession, offer: RegistrationOffer, statement: RegistrationStatement
    ) -> RegistrationStatement:
        """Step 7."""
        assert offer.tpm is not None
        self._progress("Asking the TPM who made it. This can take a few seconds.")
        gate = GateOffer(statement.device_id, offer.tpm.ceremony_key, offer.tpm.pin_limit)
        preparation = await asyncio.to_thread(session.prepare, gate)
        if preparation is None:
            return statement
        self._progress("Waiting for the server to verify the TPM.")
        grant = await self._server.prepare_tpm(offer.registration_token, preparation)
        final = check_final_statement(statement, grant.statement)
        await asyncio.to_thread(session.accept, grant)
        return final

    async def _complete(self, staged: StagedRegistration, wish: RegistrationWish) -> Enrolment:
        self._progress(f"Waiting for the server {staged.public_endpoint} to verify the key.")
        evidence = AttestationEvidence(
            staged.client_data_json,
            staged.attestation_object,
            staged.channel_proof,
            evidence_of(staged),
            staged.certificates,
            departures.departing_of(staged.departing),
        )
        try:
            registered = await self._hand_in(staged, evidence)
            chain = verify_answer(registered, staged, self._channel_keys.load(staged.channel_key))
        except KeyvouchError as error:
            if is_final(error):
                await self._forget(staged.account, staged.credential_id, provider=staged.provider)
                await asyncio.to_thread(self._ledger.unstage, staged.registration_id)
            raise
        enrolment = enrolment_of(staged, registered, chain)
        await asyncio.to_thread(self._ledger.record, enrolment)
        await asyncio.to_thread(self._ledger.unstage, staged.registration_id)
        self._say_what_went(registered)
        await self._take_away_replaced(enrolment, wish)
        return enrolment

    async def _hand_in(self, staged: StagedRegistration, evidence: AttestationEvidence) -> Registered:
        """Step 11. A device that is gone already cannot go once more: without it, then."""
        token = Secret(staged.registration_token)
        while True:
            try:
                return await self._server.complete_registration(token, evidence)
            except NotFoundError as error:
                gone = error.metadata.get("device_id", "")
                left = tuple(one for one in evidence.departing if one.device_id != gone)
                if error.reason is not Reason.DEVICE_UNKNOWN or left == evidence.departing:
                    raise
            self._progress(f"The device {gone} is gone already.")
            evidence = replace(evidence, departing=left)
            await asyncio.to_thread(self._ledger.stage, replace(staged, departing=departures.kept(left)))

    def _say_what_went(self, registered: Registered) -> None:
        if registered.removed_device_ids:
            names = ", ".join(registered.removed_device_ids)
            self._progress(f"Removed: {names}. Sessions ended with it: {registered.revoked_sessions}.")

    async def _take_away_replaced(self, new: Enrolment, wish: RegistrationWish) -> None:
        """The enrolments of the same account that were on this device before: records and keys.

        The server has removed those devices in the moment in which the new one came, or before (step 6).
        """
        for old in await asyncio.to_thread(self._ledger.enrolments):
            if old.device_id == new.device_id or not same_account(old, wish):
                continue
            await self._forget(old.account, old.credential_id, provider=old.provider)
            await asyncio.to_thread(self._ledger.remove, old.device_id)

    async def _forget(self, account: str, credential_id: CredentialId | None, *, provider: str = "") -> None:
        """Take away a key that leads nowhere. Where that cannot be done now, it is done before the next `enroll`."""
        try:
            await asyncio.to_thread(self._holders.forget, provider, account, credential_id)
        except KeyvouchError as error:
            if error.reason is Reason.PIN_REQUIRED:  # it will not be done: the person has to
                self._progress(str(error))
