"""The composition root: the only place where the agent's parts are put together. Nothing here decides anything.

enrol(...)           one registration, or the rest of an interrupted one
build_agent(...)     the long-lived agent with its local API, not yet running
run_agent(...)       the same, run until stopped, as the only one of its home
unregister(...)      remove one enrolment from the server, then here
check_server(...)    does the channel of an enrolment work?
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_agent.agent import Agent
from keyvouch_agent.agent_ports import Clock, EventHandler, PromptLink, Secret, StateHandler
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.backoff import Backoff
from keyvouch_agent.ceremonies.registration import RegistrationCeremony, RegistrationWish
from keyvouch_agent.device_link import DeviceLink, LinkPorts, OpenLink
from keyvouch_agent.home import DAEMON_LOCK, ENROL_LOCK, Home
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.local_api import LocalApi
from keyvouch_agent.logs import AgentLog
from keyvouch_agent.ports import Provider, ProviderInteraction, ProviderKind
from keyvouch_agent.provider_shelf import OpenProvider, ProviderShelf
from keyvouch_agent.providers.built_in import BuiltInProvider
from keyvouch_agent.rpc.channel import enrolled_channel, public_channel
from keyvouch_agent.rpc.device import DeviceClient
from keyvouch_agent.rpc.enrolment import EnrolmentClient
from keyvouch_agent.rpc.prompt_stream import PromptStream
from keyvouch_agent.system import SystemClock, SystemEntropy, installed_version
from keyvouch_agent.vaults.software import KdfParameters, SoftwareVault
from keyvouch_agent.views import Document

__all__ = [
    "AgentParts",
    "Tuning",
    "build_agent",
    "check_server",
    "enrol",
    "open_shelf",
    "provider_openers",
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
    """What tests make faster. `kdf` of None is the vault's own, safe cost."""

    kdf: KdfParameters | None = None
    clock: Clock = field(default_factory=SystemClock)
    first_delay: float = 0.2
    longest_delay: float = 30.0


def provider_openers(home: Home, tuning: Tuning | None = None) -> Mapping[str, OpenProvider]:
    """What this agent can keep keys in, by kind."""
    settings = tuning or Tuning()

    def software() -> tuple[Provider, Callable[[], None]]:
        entropy = SystemEntropy()
        vault = SoftwareVault.open(home.folder("vault-software"), entropy, kdf=settings.kdf)
        return BuiltInProvider(Authenticator(vault, settings.clock, entropy)), vault.close

    return {ProviderKind.SOFTWARE.value: software}


def open_shelf(home: Home, tuning: Tuning | None = None) -> ProviderShelf:
    """The key providers of a home. `close` it at the end."""
    return ProviderShelf(provider_openers(home, tuning))


async def enrol(
    *,
    home: Home,
    wish: RegistrationWish,
    provider: str,
    interaction: ProviderInteraction,
    ask_access_pass: Callable[[], Awaitable[Secret]],
    progress: Callable[[str], None],
    tuning: Tuning | None = None,
) -> Enrolment:
    """Register this device, or finish a registration of the same account that was interrupted.

    A running agent of the same home must have lent its providers. Raises as `RegistrationCeremony.run` does.
    """
    authority = wish.public_ca.encode() or None
    server = EnrolmentClient(
        public_channel(wish.public_endpoint, authority_pem=authority), endpoint=wish.public_endpoint
    )
    shelf = open_shelf(home, tuning)
    ceremony = RegistrationCeremony(
        ledger=Ledger(home),
        server=server,
        provider=lambda: shelf.get(provider),
        interaction=interaction,
        ask_access_pass=ask_access_pass,
        progress=progress,
    )
    try:
        with home.lock(ENROL_LOCK):
            return await ceremony.run(wish)
    finally:
        shelf.close()
        await server.close()


def build_agent(*, home: Home, log: AgentLog, tuning: Tuning | None = None) -> AgentParts:
    """Put the agent together. Whoever runs it holds the home's daemon lock; see `run_agent`."""
    settings = tuning or Tuning()
    ledger, shelf, signing = Ledger(home), open_shelf(home, settings), asyncio.Lock()

    def make_link(enrolment: Enrolment, emit: Callable[[Document], None]) -> DeviceLink:
        return DeviceLink(
            enrolment,
            LinkPorts(
                ledger=ledger,
                clock=settings.clock,
                provider_of=shelf.get,
                open_link=_stream_opener(settings),
                device_server=_device_server,
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


async def unregister(*, home: Home, enrolment: Enrolment, progress: Callable[[str], None], only_here: bool) -> int:
    """Remove an enrolment from the server, then here. Returns how many sessions ended with it.

    A device that the server has removed already is removed here without more ado. With `only_here` the server is not
    asked. Raises `UnavailableError` where it cannot be reached; then nothing was removed.
    """
    ended = 0
    if not only_here:
        progress(f"Waiting for the server {enrolment.device_endpoint}.")
        server = _device_server(enrolment)
        try:
            ended = await server.unregister()
        except KeyvouchError as error:
            if error.reason not in {Reason.DEVICE_REMOVED, Reason.DEVICE_UNKNOWN}:
                raise
        finally:
            await server.close()
    await asyncio.to_thread(Ledger(home).remove, enrolment.device_id)
    return ended


async def check_server(enrolment: Enrolment) -> str:
    """Ask the device listener for this device's name. Raises what is wrong with the channel."""
    server = _device_server(enrolment)
    try:
        return await server.display_name()
    finally:
        await server.close()


def _device_server(enrolment: Enrolment) -> DeviceClient:
    return DeviceClient(enrolled_channel(enrolment), endpoint=enrolment.device_endpoint)


def _stream_opener(settings: Tuning) -> OpenLink:
    version = installed_version()
    jitter = random.SystemRandom()

    def open_link(current: Callable[[], Enrolment], on_event: EventHandler, on_state: StateHandler) -> PromptLink:
        return PromptStream(
            open_channel=lambda: enrolled_channel(current()),
            endpoint=current().device_endpoint,
            agent_version=version,
            on_event=on_event,
            on_state=on_state,
            backoff=Backoff(jitter=jitter.random, first=settings.first_delay, longest=settings.longest_delay),
        )

    return open_link
