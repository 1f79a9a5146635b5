"""Key replacement: a new key takes the place of an enrolled one, in the same TPM and behind the same PIN.

The calls are drawn in `keyvouch/v1/prompts.proto`.

     1  the ledger: a replacement that was recorded needs only its rest, one that was sent or about to be goes on at 8
     2  the provider: can it replace keys, and is its PIN not blocked?
     3  BeginKeyReplacement, over the device channel
     4  the statement: parse it, hold it against the enrolment and its channel key
     5  the TPM takes the fresh certificate of its attestation key
     6  the provider asks for the PIN and makes the key over the statement's challenge; the TPM proves how the PIN is
     7  stage: from here on a crash repeats the same bytes
     8  CompleteKeyReplacement
     9  verify that the answer names the key that was made
    10  record, destroy every key but that one, unstage

Whatever fails before step 8 takes the new key with it, and the old one goes on. A verdict of the server at step 8 may
also come because it had completed the replacement long ago: so what counts is which key it has.
What is not here: whether the evidence is good enough (the server decides), sockets, terminals.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable
from contextlib import suppress

from keyvouch.errors import DeviceError, EvidenceError, KeyvouchError, Reason
from keyvouch.statement import Purpose, RegistrationStatement, challenge, check_registration
from keyvouch_agent.agent_ports import ReplacementOffer, ReplacementServer
from keyvouch_agent.ceremonies.registration_review import is_final
from keyvouch_agent.channel_keys import ChannelKeys
from keyvouch_agent.ledger import Enrolment, Ledger, StagedReplacement
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import KeyCreation, Provider, ProviderInteraction, Registration, ReplacementSteps

__all__ = ["KeyReplacementCeremony"]


class KeyReplacementCeremony:
    """One replacement. `provider` is called late; `progress` gets a sentence before each long step."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        server: ReplacementServer,
        provider: Callable[[], Provider],
        interaction: ProviderInteraction,
        progress: Callable[[str], None],
        channel_keys: ChannelKeys,
    ) -> None:
        self._ledger = ledger
        self._server = server
        self._provider = provider
        self._interaction = interaction
        self._progress = progress
        self._channel_keys = channel_keys

    async def run(self, enrolment: Enrolment) -> Enrolment:
        """Replace the key, or finish a replacement that was interrupted. Returns the enrolment with the new key.

        Raises `DeviceError` of the provider, UNSUPPORTED where it replaces no keys, `EvidenceError` where the answer
        is not about this device, and whatever the server answers.
        """
        staged = await asyncio.to_thread(self._ledger.replacement, enrolment.device_id)
        provider = await asyncio.to_thread(self._provider)
        steps = provider.replacement()
        if steps is None:
            raise _not_replaceable(enrolment)
        if staged is None:
            staged = await self._make(enrolment, provider, steps)
        else:
            self._progress("Finishing the replacement that was interrupted.")
        return await self._complete(enrolment, staged, steps)

    async def _make(self, enrolment: Enrolment, provider: Provider, steps: ReplacementSteps) -> StagedReplacement:
        """Steps 2 to 7."""
        check_pin_usable(await asyncio.to_thread(provider.capabilities))
        self._progress(f"Waiting for the server {enrolment.device_endpoint}.")
        offer = await self._server.begin_key_replacement()
        self._review(enrolment, offer)
        await asyncio.to_thread(steps.accept, offer.statement, offer.certificate)
        made = await asyncio.to_thread(self._create, offer, provider)
        try:
            return await asyncio.to_thread(self._stage, enrolment, offer, made, steps)
        except BaseException:
            with suppress(KeyvouchError):
                await asyncio.to_thread(steps.forget, made.credential_id)
            raise

    def _review(self, enrolment: Enrolment, offer: ReplacementOffer) -> None:
        """Step 4. Raises `EvidenceError` with STATEMENT_MISMATCH, WRONG_SERVER, CHANNEL_KEY."""
        statement = RegistrationStatement.parse(offer.statement)
        spki = self._channel_keys.load(enrolment.channel_key).spki
        check_registration(statement, server_id=enrolment.server_id, channel_key=hashlib.sha256(spki).digest())
        named = (statement.registration_id, statement.tenant_id, statement.user_id, statement.device_id, offer.rp_id)
        e = enrolment
        if named != (offer.registration_id, e.tenant_id, e.user_id, e.device_id, e.rp_id):
            raise _mismatch()

    def _stage(
        self, enrolment: Enrolment, offer: ReplacementOffer, made: Registration, steps: ReplacementSteps
    ) -> StagedReplacement:
        """Step 7, and what the TPM proves of the PIN. Blocks."""
        said = steps.certify_pin(offer.statement)
        staged = StagedReplacement(
            device_id=enrolment.device_id,
            registration_id=offer.registration_id,
            credential_id=made.credential_id,
            client_data_json=made.client_data,
            attestation_object=made.attestation_object,
            attest=said.attest,
            signature=said.signature,
        )
        self._ledger.keep_replacement(staged)
        return staged

    def _create(self, offer: ReplacementOffer, provider: Provider) -> Registration:
        """Step 6. Blocks; the PIN comes from the interaction."""
        creation = KeyCreation(
            challenge=challenge(Purpose.REGISTRATION, offer.statement),
            rp_id=offer.rp_id,
            user_id=offer.user_handle,
            user_name=offer.username,
            algorithms=offer.algorithms,
        )
        with provider.open(self._interaction, rp_id=offer.rp_id) as session:
            return session.create_key(creation)

    async def _complete(self, enrolment: Enrolment, staged: StagedReplacement, steps: ReplacementSteps) -> Enrolment:
        """Steps 8 to 10. A replacement that is recorded already has only the rest of step 10 before it."""
        if enrolment.credential_id != staged.credential_id:
            self._progress(f"Waiting for the server {enrolment.device_endpoint} to verify the key.")
            await self._send(enrolment, staged, steps)
            enrolment = dataclasses.replace(enrolment, credential_id=staged.credential_id)
            await asyncio.to_thread(self._ledger.record, enrolment)
        await asyncio.to_thread(steps.keep_only, staged.credential_id)
        await asyncio.to_thread(self._ledger.forget_replacement, enrolment.device_id)
        return enrolment

    async def _send(self, enrolment: Enrolment, staged: StagedReplacement, steps: ReplacementSteps) -> None:
        try:
            answered = await self._server.complete_key_replacement(staged.evidence)
        except KeyvouchError as error:
            if not is_final(error):
                raise
            registered = await self._server.registered_key()
            if registered != staged.credential_id:
                await asyncio.to_thread(steps.forget, staged.credential_id)
                await asyncio.to_thread(self._ledger.forget_replacement, enrolment.device_id)
                raise
            return
        if answered != staged.credential_id:
            raise _mismatch()


def _not_replaceable(enrolment: Enrolment) -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        f"A key of the kind {enrolment.provider} cannot be replaced by another one.",
        fix="For a new key get an access pass and run `keyvouch-agent enroll --replace`.",
        metadata={"provider": enrolment.provider},
    )


def _mismatch() -> EvidenceError:
    return EvidenceError(
        Reason.STATEMENT_MISMATCH,
        "The server's answer is about another device, user or key than this replacement.",
        fix="The old key goes on. Tell your administrator.",
    )
