"""The composition root: the only place where the agent's parts are put together. Nothing here decides anything.

enrol(...)           one registration, or the rest of an interrupted one
rekey(...)           a new key for one enrolment, or the rest of an interrupted replacement
build_agent(...)     the long-lived agent with its local API, not yet running
run_agent(...)       the same, run until stopped, as the only one of its home
unregister(...)      remove one enrolment from the server, then here
check_server(...)    does the channel of an enrolment work?
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_ports import Clock, EventHandler, PromptLink, Secret, StateHandler
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.ceremonies.departures import ChooseDeparting
from keyvouch_agent.ceremonies.key_replacement import KeyReplacementCeremony
from keyvouch_agent.ceremonies.registration import RegistrationCeremony, RegistrationWish
from keyvouch_agent.channel_keys import ChannelKeys
from keyvouch_agent.device_link import DeviceLink, LinkPorts, OpenLink
from keyvouch_agent.home import DAEMON_LOCK, ENROL_LOCK, Home
from keyvouch_agent.key_holders import KeyHolderSet, ShelfHolders
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.local_api import LocalApi
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.ports import ProviderInteraction, ProviderKind
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf
from keyvouch_agent.rpc.channel import enrolled_channel, public_channel
from keyvouch_agent.rpc.device import DeviceClient
from keyvouch_agent.rpc.enrolment import EnrolmentClient
from keyvouch_agent.rpc.prompt_stream import PromptStream
from keyvouch_agent.rpc.same_device import SessionClient
from keyvouch_agent.system import SystemClock, installed_version
from keyvouch_agent.vaults.software import KdfParameters
from keyvouch_agent.views import Document
from keyvouch_client import Session
from keyvouch_client.security_keys.discovery import SecurityKeys

__all__ = [
    "AgentParts",
    "Tuning",
    "build_agent",
    "check_server",
    "enrol",
    "key_holders",
    "open_shelf",
    "rekey",
    "run_agent",
    "unregister",
]


@dataclass(frozen=True, slots=True)
class AgentParts:
    """An agent that is put together, with its local API."""

    agent: Agent
    api: LocalApi


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tests make faster, or put in the place of. `kdf` of None is the vault's own, safe cost; `open_tcti` of None
    the TPM that is configured; `security_keys` of None those that are connected.
    """

    kdf: KdfParameters | None = None
    open_tcti: Callable[[], Any] | None = None
    security_keys: SecurityKeys | None = None
    clock: Clock = field(default_factory=SystemClock)
    first_delay: float = 0.2
    longest_delay: float = 30.0


def key_holders(home: Home, tuning: Tuning | None = None, *, card: CardWish | None = None) -> KeyHolderSet:
    """What this agent can keep keys in. `card`: which card a new account goes on."""
    settings = tuning or Tuning()
    return KeyHolderSet(
        home,
        settings.clock,
        kdf=settings.kdf,
        open_tcti=settings.open_tcti,
        security_keys=settings.security_keys,
        card=card,
    )


def open_shelf(home: Home, tuning: Tuning | None = None, *, card: CardWish | None = None) -> ProviderShelf:
    """The key providers of a home. `close` it at the end."""
    return ProviderShelf(key_holders(home, tuning, card=card).makers())


async def enrol(
    *,
    home: Home,
    wish: RegistrationWish,
    provider: str,
    interaction: ProviderInteraction,
    ask_access_pass: Callable[[], Awaitable[Secret]] | None = None,
    progress: Callable[[str], None],
    session: Session | None = None,
    choose_departing: ChooseDeparting | None = None,
    card: CardWish | None = None,
    tuning: Tuning | None = None,
) -> Enrolment:
    """Register this device, or finish a registration of the same account that was interrupted: with an access pass
    that is asked for, or in a session whose connection it closes in the end.

    A running agent of the same home must have lent its providers. Raises as `RegistrationCeremony.run` does.
    """
    server = _enrolment_server(wish, session)
    holders = key_holders(home, tuning, card=card)
    shelf = ProviderShelf(holders.makers())
    ceremony = RegistrationCeremony(
        ledger=Ledger(home),
        server=server,
        holders=ShelfHolders(shelf, provider),
        interaction=interaction,
        ask_access_pass=ask_access_pass,
        progress=progress,
        channel_keys=holders.channel_keys(provider),
        choose_departing=choose_departing,
    )
    try:
        with home.lock(ENROL_LOCK):
            await asyncio.to_thread(holders.sweep_tpm, shelf)
            await asyncio.to_thread(holders.sweep_cards)
            return await ceremony.run(wish)
    finally:
        shelf.close()
        await server.close()


def _enrolment_server(wish: RegistrationWish, session: Session | None) -> EnrolmentClient:
    endpoint = wish.public_endpoint
    if session is not None:
        return EnrolmentClient(session.connection.channel, endpoint=endpoint, session=session)
    channel = public_channel(endpoint, authority_pem=wish.public_ca.encode() or None)
    return EnrolmentClient(channel, endpoint=endpoint)


async def rekey(
    *,
    home: Home,
    enrolment: Enrolment,
    interaction: ProviderInteraction,
    progress: Callable[[str], None],
    tuning: Tuning | None = None,
) -> Enrolment:
    """Replace the key of an enrolment, or finish a replacement that was interrupted.

    A running agent of the same home must have lent its providers. Raises as `KeyReplacementCeremony.run` does.
    """
    holders = key_holders(home, tuning)
    shelf, keys = ProviderShelf(holders.makers()), holders.channel_keys()
    server = _device_server(enrolment, keys)
    ceremony = KeyReplacementCeremony(
        ledger=Ledger(home),
        server=server,
        provider=lambda: shelf.get(ProviderKey(enrolment.provider, enrolment.account)),
        interaction=interaction,
        progress=progress,
        channel_keys=keys,
    )
    try:
        with home.lock(ENROL_LOCK):
            return await ceremony.run(enrolment)
    finally:
        shelf.close()
        await server.close()


def build_agent(*, home: Home, log: AgentLog, tuning: Tuning | None = None) -> AgentParts:
    """Put the agent together. Whoever runs it holds the home's daemon lock; see `run_agent`."""
    settings = tuning or Tuning()
    holders = key_holders(home, settings)
    ledger, shelf, signing, keys = Ledger(home), ProviderShelf(holders.makers()), asyncio.Lock(), holders.channel_keys()

    def make_link(enrolment: Enrolment, emit: Callable[[Document], None]) -> DeviceLink:
        return DeviceLink(
            enrolment,
            LinkPorts(
                ledger=ledger,
                clock=settings.clock,
                provider_of=shelf.get,
                channel_keys=keys,
                open_link=_stream_opener(settings, keys),
                device_server=lambda record: _device_server(record, keys),
                session_server=lambda record: SessionClient(enrolled_channel(record, keys)),
                log=log,
                emit=emit,
                signing=signing,
            ),
        )

    agent = Agent(ledger=ledger, make_link=make_link, shelf=shelf, signing=signing, log=log)
    return AgentParts(agent, LocalApi(agent, home=home, log=log))


@asynccontextmanager
async def run_agent(*, home: Home, log: AgentLog, tuning: Tuning | None = None) -> AsyncIterator[Agent]:
    """Run the agent of a home in the background of the block; at its end it is stopped.

    Raises `ConflictError(AGENT_RUNNING)` for a second one, LEDGER_CORRUPT and VAULT_PERMISSIONS before it starts.
    Inside the block, `await agent.stopped()` waits for a stop that was asked for over the local API.
    """
    with home.lock(DAEMON_LOCK):
        Ledger(home).enrolments()
        parts = build_agent(home=home, log=log, tuning=tuning)
        await parts.api.start()
        running = asyncio.create_task(parts.agent.run())
        try:
            await parts.agent.reload()
            yield parts.agent
        finally:
            parts.agent.stop()
            await parts.api.close()
            await running


async def unregister(
    *,
    home: Home,
    enrolment: Enrolment,
    progress: Callable[[str], None],
    only_here: bool,
    tuning: Tuning | None = None,
) -> int:
    """Remove an enrolment from the server, then its key and its record here. Returns how many sessions ended with it.

    A device that the server has removed already is removed here without more ado. With `only_here` the server is not
    asked. Raises `UnavailableError` where it cannot be reached; then nothing was removed. A running agent of the same
    home must have lent its providers.
    """
    holders = key_holders(home, tuning)
    ended = 0
    if not only_here:
        progress(f"Waiting for the server {enrolment.device_endpoint}.")
        server = _device_server(enrolment, holders.channel_keys())
        try:
            ended = await server.unregister()
        except KeyvouchError as error:
            if error.reason not in {Reason.DEVICE_REMOVED, Reason.DEVICE_UNKNOWN}:
                raise
        finally:
            await server.close()
    await asyncio.to_thread(_forget_key, holders, enrolment, progress)
    await asyncio.to_thread(Ledger(home).remove, enrolment.device_id)
    return ended


def _forget_key(holders: KeyHolderSet, enrolment: Enrolment, progress: Callable[[str], None]) -> None:
    """Destroy the key. It opens nothing any more, so that its holder is away is no reason to keep the record."""
    shelf = ProviderShelf(holders.makers())
    try:
        ShelfHolders(shelf, enrolment.provider).forget("", enrolment.account, enrolment.credential_id)
    except KeyvouchError as error:
        again = "`keyvouch-agent tpm forget` tries again." if enrolment.provider == ProviderKind.TPM else error.fix
        progress(f"The key could not be destroyed now: {error.message} {again}")
    finally:
        shelf.close()


async def check_server(home: Home, enrolment: Enrolment) -> str:
    """Ask the device listener for this device's name. Raises what is wrong with the channel."""
    server = _device_server(enrolment, key_holders(home).channel_keys())
    try:
        return await server.display_name()
    finally:
        await server.close()


def _device_server(enrolment: Enrolment, keys: ChannelKeys) -> DeviceClient:
    return DeviceClient(enrolled_channel(enrolment, keys))


def _stream_opener(settings: Tuning, keys: ChannelKeys) -> OpenLink:
    version = installed_version()
    jitter = random.SystemRandom()

    def open_link(current: Callable[[], Enrolment], on_event: EventHandler, on_state: StateHandler) -> PromptLink:
        return PromptStream(
            open_channel=lambda: enrolled_channel(current(), keys),
            endpoint=current().device_endpoint,
            agent_version=version,
            on_event=on_event,
            on_state=on_state,
            backoff=Backoff(jitter=jitter.random, first=settings.first_delay, longest=settings.longest_delay),
        )

    return open_link
