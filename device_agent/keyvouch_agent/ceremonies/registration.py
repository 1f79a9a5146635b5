"""Registration: this device becomes a method of its user. The drawing stands in `keyvouch/v1/enrolment.proto`.

     1  the ledger: does another account stand in the way, is there a half-finished registration to resume?
     2  the provider: can it gate a key with a PIN, and is that PIN not blocked?
     3  the server: a session from the Temporary Access Pass
     4  a channel key, and BeginRegistration
     5  the statement: parse it, hold it against server and channel key
     6  is what the server requires within reach of this provider?
     7  the provider asks for the PIN, or for a first one where there is none
     8  it makes the key over the statement's challenge
     9  stage: from here on a crash repeats the same bytes
    10  CompleteRegistration
    11  verify the answer: certificate chain, server id, and that it names what was signed
    12  record, then unstage

What is not here: whether the evidence is good enough (the server decides), sockets, terminals.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
from keyvouch.statement import Purpose, RegistrationStatement, challenge, check_registration
from keyvouch_agent.agent_ports import (
    AttestationEvidence,
    EnrolmentServer,
    Registered,
    RegistrationOffer,
    RequiredAssurance,
    Secret,
)
from keyvouch_agent.channel_identity import ChannelKey, VerifiedChain, make_channel_key, verify_chain
from keyvouch_agent.ledger import Enrolment, Ledger, StagedRegistration
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import (
    Gate,
    KeyCreation,
    KeyProtection,
    Provider,
    ProviderCapabilities,
    ProviderInteraction,
    Registration,
)

__all__ = ["RegistrationCeremony", "RegistrationWish"]


@dataclass(frozen=True, slots=True)
class RegistrationWish:
    """What the person asked for. `public_ca` is PEM, empty for the system's anchors.

    `server_id`, where it is known beforehand, pins the server's identity key; else it is learned over the public
    channel, which the given anchors authenticate, and pinned from then on.
    """

    public_endpoint: str
    public_ca: str
    tenant: str
    username: str
    display_name: str
    server_id: ServerId | None = None


class RegistrationCeremony:
    """One registration.

    `provider` and `ask_access_pass` are called late; `progress` gets a sentence before each long step.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        server: EnrolmentServer,
        provider: Callable[[], Provider],
        interaction: ProviderInteraction,
        ask_access_pass: Callable[[], Awaitable[Secret]],
        progress: Callable[[str], None],
        make_key: Callable[[], ChannelKey] = make_channel_key,
    ) -> None:
        self._ledger = ledger
        self._server = server
        self._provider = provider
        self._interaction = interaction
        self._ask_access_pass = ask_access_pass
        self._progress = progress
        self._make_key = make_key

    async def run(self, wish: RegistrationWish) -> Enrolment:
        """Register, or finish a registration of the same account that was interrupted.

        Raises `ConflictError` (ALREADY_ENROLLED, DEVICE_REGISTERED_ELSEWHERE), `DeviceError` of the provider,
        `EvidenceError` where the server is not the one expected, and whatever the server answers.
        """
        self._check_ledger(wish)
        staged = next((s for s in self._ledger.staged() if _is_for(s, wish)), None)
        if staged is None:
            staged = await self._begin(wish)
        else:
            self._progress("Finishing the registration that was interrupted.")
        return await self._complete(staged)

    async def _begin(self, wish: RegistrationWish) -> StagedRegistration:
        provider = await asyncio.to_thread(self._provider)
        capabilities = await asyncio.to_thread(provider.capabilities)
        _check_gate(capabilities)
        access_pass = await self._ask_access_pass()
        self._progress(f"Waiting for the server {wish.public_endpoint}.")
        token = await self._server.sign_in_with_access_pass(
            tenant=wish.tenant, username=wish.username, access_pass=access_pass
        )
        channel_key = self._make_key()
        offer = await self._server.begin_registration(
            token,
            channel_public_key=channel_key.spki,
            display_name=wish.display_name,
            provider=capabilities.kind.value,
        )
        statement = _review(offer, channel_key, wish.server_id)
        _check_within_reach(offer.required, capabilities)
        made = await asyncio.to_thread(self._make_credential, provider, offer)
        staged = _staged(wish, offer=offer, statement=statement, capabilities=capabilities, key=channel_key, made=made)
        await asyncio.to_thread(self._ledger.stage, staged)
        return staged

    def _check_ledger(self, wish: RegistrationWish) -> None:
        known_devices = {known.device_id for known in self._ledger.enrolments()}
        for staged in self._ledger.staged():
            if RegistrationStatement.parse(staged.statement).device_id in known_devices:
                self._ledger.unstage(staged.registration_id)  # recorded, then interrupted: step 12
        for known in self._ledger.enrolments():
            if _same_account(known, wish):
                raise ConflictError(
                    Reason.ALREADY_ENROLLED,
                    f"{known.username} of {known.tenant_name} is enrolled on this device already.",
                    fix="To make a new key, run `keyvouch-agent unregister` first.",
                    metadata={"device_id": known.device_id},
                )
            if known.tenant_name.casefold() != wish.tenant.casefold():
                raise ConflictError(
                    Reason.DEVICE_REGISTERED_ELSEWHERE,
                    f"This device is registered in the tenant {known.tenant_name}; it can be in one tenant only.",
                    fix="Run `keyvouch-agent unregister` first, or give another directory with --home.",
                    metadata={"tenant": known.tenant_name, "device_id": known.device_id},
                )

    def _make_credential(self, provider: Provider, offer: RegistrationOffer) -> Registration:
        """Steps 7 and 8, on a thread of their own: providers block."""
        with provider.open(self._interaction, rp_id=offer.rp_id) as session:
            self._progress("Making the key.")
            return session.create_key(
                KeyCreation(
                    challenge=challenge(Purpose.REGISTRATION, offer.statement),
                    rp_id=offer.rp_id,
                    user_id=offer.user_handle,
                    user_name=offer.username,
                    algorithms=offer.algorithms,
                )
            )

    async def _complete(self, staged: StagedRegistration) -> Enrolment:
        self._progress(f"Waiting for the server {staged.public_endpoint} to verify the key.")
        evidence = AttestationEvidence(staged.client_data_json, staged.attestation_object, staged.channel_proof)
        try:
            registered = await self._server.complete_registration(Secret(staged.registration_token), evidence)
            chain = _verify_answer(registered, staged)
        except KeyvouchError as error:
            if _is_final(error):
                await asyncio.to_thread(self._ledger.unstage, staged.registration_id)
            raise
        enrolment = _enrolment(staged, registered, chain)
        await asyncio.to_thread(self._ledger.record, enrolment)
        await asyncio.to_thread(self._ledger.unstage, staged.registration_id)
        return enrolment


def _is_for(staged: StagedRegistration, wish: RegistrationWish) -> bool:
    return (staged.public_endpoint, staged.tenant_name.casefold(), staged.username.casefold()) == (
        wish.public_endpoint,
        wish.tenant.casefold(),
        wish.username.casefold(),
    )


def _same_account(known: Enrolment, wish: RegistrationWish) -> bool:
    return (known.tenant_name.casefold(), known.username.casefold()) == (
        wish.tenant.casefold(),
        wish.username.casefold(),
    )


def _check_gate(capabilities: ProviderCapabilities) -> None:
    if capabilities.uv_by is Gate.NONE:
        raise _no_pin()
    if capabilities.pin_is_set:
        check_pin_usable(capabilities)


def _no_pin() -> DeviceError:
    return DeviceError(
        Reason.PIN_NOT_SET,
        "A device without a PIN cannot enrol: the PIN is what keeps a thief from using the key.",
        fix="Set one with `keyvouch-agent pin`, or let `keyvouch-agent enroll` ask for it.",
    )


def _review(offer: RegistrationOffer, key: ChannelKey, server_id: ServerId | None) -> RegistrationStatement:
    statement = RegistrationStatement.parse(offer.statement)
    if statement.registration_id != offer.registration_id:
        raise _mismatch("another registration")
    check_registration(
        statement,
        server_id=statement.server_id if server_id is None else server_id,
        channel_key=hashlib.sha256(key.spki).digest(),
    )
    return statement


def _check_within_reach(required: RequiredAssurance, capabilities: ProviderCapabilities) -> None:
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


def _staged(
    wish: RegistrationWish,
    *,
    offer: RegistrationOffer,
    statement: RegistrationStatement,
    capabilities: ProviderCapabilities,
    key: ChannelKey,
    made: Registration,
) -> StagedRegistration:
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
        channel_key=key.pkcs8,
        client_data_json=made.client_data,
        attestation_object=made.attestation_object,
        channel_proof=key.sign(Purpose.CHANNEL, statement.encoded),
    )


def _verify_answer(registered: Registered, staged: StagedRegistration) -> VerifiedChain:
    """Verify that the answer is about what was signed, and that the server is who the statement says."""
    statement = RegistrationStatement.parse(staged.statement)
    named = (registered.device_id, registered.tenant_id, registered.user_id, registered.credential_id)
    signed = (statement.device_id, statement.tenant_id, statement.user_id, staged.credential_id)
    if named != signed:
        raise _mismatch("another device, user or key")
    return verify_chain(
        registered.certificate_chain,
        server_id=statement.server_id,
        channel_key=ChannelKey(staged.channel_key).spki,
    )


def _mismatch(what: str) -> EvidenceError:
    return EvidenceError(
        Reason.STATEMENT_MISMATCH,
        f"The server's answer is about {what} than this registration.",
        fix="This device was not enrolled. Tell your administrator.",
    )


def _is_final(error: KeyvouchError) -> bool:
    """A verdict, as opposed to a failure on the way: repeating the same bytes would bring it again."""
    if isinstance(error, ThrottledError):
        return False
    return isinstance(error, RefusedError | EvidenceError | MalformedError)


def _enrolment(staged: StagedRegistration, registered: Registered, chain: VerifiedChain) -> Enrolment:
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
    )
