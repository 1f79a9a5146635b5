"""The composition root: the only module that knows every part, and the only one that makes them.

init     a data directory: keys and certificates, pepper, configuration, store, first tenant
open     the same directory as a running `App`, without listeners
serve    listeners, sweep, until told to stop
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyvouch.errors import KeyvouchError, UnavailableError
from keyvouch.tokens import verify_access_token
from keyvouch_server.card_authorities import CardFiles
from keyvouch_server.config import FILE, ServerConfig, broken, check_store, is_loopback, load_config
from keyvouch_server.device_authority import DeviceAuthority
from keyvouch_server.ek_trust import load_settings as load_ek_settings
from keyvouch_server.key_files import make_keys, read_keys, write_new
from keyvouch_server.keyring import Keyring
from keyvouch_server.listener_certificates import FileCertificate, OwnCertificate
from keyvouch_server.ports import Clock, Entropy, Store
from keyvouch_server.relay import Relay
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.trust_anchors import load as load_anchors
from keyvouch_server.use_cases.access_pass_sign_in import AccessPassSignIns
from keyvouch_server.use_cases.access_passes import AccessPasses, CreatedPass
from keyvouch_server.use_cases.administration import Administration, FoundedTenant
from keyvouch_server.use_cases.audit_log import AuditLog
from keyvouch_server.use_cases.budgets import Budgets
from keyvouch_server.use_cases.call_proofs import CallProofs
from keyvouch_server.use_cases.decisions import Decisions
from keyvouch_server.use_cases.devices import Devices
from keyvouch_server.use_cases.directory import Directory
from keyvouch_server.use_cases.explanations import Explanations
from keyvouch_server.use_cases.groups import Groups
from keyvouch_server.use_cases.health import HealthReports
from keyvouch_server.use_cases.key_replacement import KeyReplacements
from keyvouch_server.use_cases.opening import Openings
from keyvouch_server.use_cases.oversight import Oversight
from keyvouch_server.use_cases.policies import Policies
from keyvouch_server.use_cases.receipts import Receipts
from keyvouch_server.use_cases.redemption import Redemptions
from keyvouch_server.use_cases.registration import Registrations
from keyvouch_server.use_cases.requests import OnceStore, Requests
from keyvouch_server.use_cases.same_device import SameDeviceSignIns
from keyvouch_server.use_cases.security_info import SecurityInfo
from keyvouch_server.use_cases.security_key import SecurityKeySignIns
from keyvouch_server.use_cases.session_refresh import SessionRefreshes
from keyvouch_server.use_cases.sessions import Sessions
from keyvouch_server.use_cases.sign_in import SignIns
from keyvouch_server.use_cases.tpm_preparation import TpmPreparations
from keyvouch_server.use_cases.world import Caller, ServerFacts, World

if TYPE_CHECKING:
    from keyvouch_server.rpc.listeners import Listening, Servicers

DATABASE: Final = "keyvouch.db"
SWEEP_SECONDS: Final = 1.0
"""How often requests that ran out of time are ended."""
GRACE_SECONDS: Final = 5.0

_log = logging.getLogger("keyvouch.server")


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """See `ports.Clock`."""
        return int(time.time())


class SystemEntropy:
    """The operating system's random bytes, asked for by the page: a system call for each token is a cost that shows.

    Every byte is given out once. The server never forks, so no two processes share a page.
    """

    def __init__(self) -> None:
        self._page = b""
        self._used = 0

    def token(self, size: int) -> bytes:
        """See `ports.Entropy`."""
        if self._used + size > len(self._page):
            self._page, self._used = secrets.token_bytes(max(4096, size)), 0
        self._used += size
        return self._page[self._used - size : self._used]


@dataclass(frozen=True, slots=True)
class App:
    """Everything of one server, put together."""

    config: ServerConfig
    store: Store
    world: World
    cards: CardFiles
    relay: Relay
    keyring: Keyring
    authority: DeviceAuthority
    sessions: Sessions
    sign_ins: SignIns
    decisions: Decisions
    redemptions: Redemptions
    same_device: SameDeviceSignIns
    security_keys: SecurityKeySignIns
    registrations: Registrations
    preparations: TpmPreparations
    replacements: KeyReplacements
    health: HealthReports
    passes: AccessPasses
    pass_sign_ins: AccessPassSignIns
    budgets: Budgets
    devices: Devices
    security_info: SecurityInfo
    administration: Administration
    policies: Policies
    directory: Directory
    groups: Groups
    audit_log: AuditLog
    receipts: Receipts
    requests: Requests
    call_proofs: CallProofs
    refreshes: SessionRefreshes
    oversight: Oversight
    explanations: Explanations

    async def authenticate(self, token: str) -> Caller:
        """Who holds this access token: its signature, then the session as the store knows it now."""
        claims = verify_access_token(
            token,
            keys=self.keyring.token_keys,
            issuer=self.world.facts.issuer,
            audience=None,
            now=self.world.clock.now(),
        )
        return await self.sessions.caller(claims.session_id)

    async def audit_denial(self, caller: Caller, method: str, refusal: KeyvouchError) -> None:
        """A caller was refused what it has no right to."""
        user, reason = caller.user, refusal.reason.value
        await self.store.write(
            lambda tx: self.world.audit(
                tx,
                "call.denied",
                actor=user.id,
                tenant_id=user.tenant_id,
                subject=method,
                user_id=user.id,
                outcome=reason,
            )
        )


def init(data: Path, config: ServerConfig, tenant: str, administrator: str) -> FoundedTenant:
    """Make a data directory. Either all of it comes to be, or `data` is left as it was."""
    if config.plaintext_listen and not is_loopback(config.plaintext_listen):
        raise broken("plaintext is for a loopback address only", "Use 127.0.0.1:PORT, or leave it out.")
    check_store(config.store)
    if (data / FILE).exists():
        raise broken(f"{data} holds a server already", "Choose another directory, or serve this one.")
    existed = data.exists()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        occupied = any(data.iterdir())
    except OSError as error:
        raise broken(f"{data} cannot be used: {error}", "Choose another directory.") from None
    if occupied:
        raise broken(f"{data} is not empty", "Choose an empty or new directory.")
    data.chmod(0o700)
    try:
        return asyncio.run(_init(data, config, tenant, administrator))
    except BaseException:
        for left in data.iterdir():
            left.unlink()
        if not existed:
            data.rmdir()
        raise


async def _init(data: Path, config: ServerConfig, tenant: str, administrator: str) -> FoundedTenant:
    make_keys(data, SystemClock().now())
    store = await open_store(data, config)
    try:
        founded = await assemble(data, config, store).administration.found(tenant, administrator)
        write_new(data / FILE, config.toml().encode())
    except BaseException:
        await store.close()
        if config.store:  # files go with the data directory
            await _forget(data, config.store)
        raise
    await store.close()
    return founded


async def open_store(data: Path, config: ServerConfig) -> Store:
    """The store of the server whose keys are in `data`. Raises `UnavailableError`, `KeyvouchError(CONFIGURATION)`."""
    if not config.store:
        return SqliteStore.open(data / DATABASE)
    from keyvouch_server.stores.postgres import PostgresStore  # noqa: PLC0415 - its driver comes with an extra

    return await PostgresStore.open(config.store, _identity(data))


async def _forget(data: Path, address: str) -> None:
    from keyvouch_server.stores.postgres_connection import forget  # noqa: PLC0415

    with suppress(UnavailableError):
        await forget(address, _identity(data))


def _identity(data: Path) -> str:
    authority, _ = read_keys(data, SystemClock())
    return authority.server_id.hex()


def assemble(
    data: Path, config: ServerConfig, store: Store, *, clock: Clock | None = None, entropy: Entropy | None = None
) -> App:
    """Put a server together over an open store."""
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    authority, keyring = read_keys(data, clock)
    relay = Relay()
    facts = ServerFacts(authority.server_id, config.rp_id, config.issuer, config.device_endpoint)
    instant = datetime.fromtimestamp(clock.now(), UTC)
    anchors, endorsers = load_anchors(config.trust, instant=instant, folder=data), load_ek_settings(config.tpm)
    cards = CardFiles(config.cards, instant=instant, taken=anchors.names | endorsers.anchors.names)
    once = OnceStore(store)
    world = World(once, clock, entropy, keyring, relay, facts, anchors, endorsers, cards.trust)
    sessions = Sessions(world)
    passes = AccessPasses(world, sessions)
    devices = Devices(world, sessions)
    directory = Directory(world, sessions, devices)
    openings, decisions, redemptions = Openings(world), Decisions(world), Redemptions(world, sessions)
    sign_ins = SignIns(world, openings)
    return App(
        config=config,
        store=store,
        world=world,
        cards=cards,
        relay=relay,
        keyring=keyring,
        authority=authority,
        sessions=sessions,
        sign_ins=sign_ins,
        decisions=decisions,
        redemptions=redemptions,
        same_device=SameDeviceSignIns(world, openings, decisions, redemptions),
        security_keys=SecurityKeySignIns(world, sign_ins, decisions),
        registrations=Registrations(world, devices),
        preparations=TpmPreparations(world),
        replacements=KeyReplacements(world),
        health=HealthReports(world),
        passes=passes,
        pass_sign_ins=AccessPassSignIns(world, sessions),
        budgets=Budgets(world),
        devices=devices,
        security_info=SecurityInfo(world, devices),
        administration=Administration(world, passes, directory),
        directory=directory,
        groups=Groups(world),
        policies=Policies(world),
        audit_log=AuditLog(world),
        receipts=Receipts(world),
        requests=Requests(store, clock),
        call_proofs=CallProofs(world),
        refreshes=SessionRefreshes(world, sessions),
        oversight=Oversight(world, sessions),
        explanations=Explanations(world),
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens."""

    app: App
    public_port: int
    device_port: int


@asynccontextmanager
async def running(app: App, *, grace: float = GRACE_SECONDS) -> AsyncIterator[Running]:
    """Open both listeners and the sweep; on leaving, drain them. The store is the caller's to close."""
    from keyvouch_server.rpc.interceptors import Gatekeeper  # noqa: PLC0415 - grpc is loaded by serving only
    from keyvouch_server.rpc.listeners import listen_devices, listen_public  # noqa: PLC0415

    def gatekeeper() -> Gatekeeper:  # it keeps the handlers of one listener, so each has its own
        return Gatekeeper(
            app.authenticate,
            app.devices.connected,
            app.audit_denial,
            app.requests,
            app.call_proofs,
            app.sessions.over,
        )

    config, servicers = app.config, _servicers(app)

    def own() -> OwnCertificate:  # each listener renews its own
        return OwnCertificate(app.authority, config.hosts, app.world.clock)

    given = FileCertificate(Path(config.key), Path(config.certificate)) if config.certificate else own()
    listening: list[Listening] = []
    async with _other_nodes(app):
        sweep = asyncio.create_task(_sweep(app))
        try:
            listening.append(await listen_public(servicers, gatekeeper(), config.public_listen, given))
            root = app.authority.root_pem
            listening.append(await listen_devices(servicers, gatekeeper(), config.device_listen, own(), root=root))
            if config.plaintext_listen:
                listening.append(await listen_public(servicers, gatekeeper(), config.plaintext_listen, None))
            yield Running(app, listening[0].port, listening[1].port)
        finally:
            sweep.cancel()
            with suppress(asyncio.CancelledError):
                await sweep
            app.relay.drain()
            await asyncio.gather(*(one.stop(grace) for one in listening))


@asynccontextmanager
async def _other_nodes(app: App) -> AsyncIterator[None]:
    """While the block lasts, streams hear what other servers do to a store that there may be others for."""
    if not app.config.store:
        yield
        return
    from keyvouch_server.node_events import following  # noqa: PLC0415 - the store's driver comes with an extra

    async with following(app.config.store, app.world, app.decisions, app.relay, app.store):
        yield


def _servicers(app: App) -> Servicers:
    from keyvouch_server.rpc.administration import AdministrationServicer  # noqa: PLC0415
    from keyvouch_server.rpc.cursors import Cursors  # noqa: PLC0415
    from keyvouch_server.rpc.directory import DirectoryServicer  # noqa: PLC0415
    from keyvouch_server.rpc.enrolment import EnrolmentServicer  # noqa: PLC0415
    from keyvouch_server.rpc.listeners import Servicers  # noqa: PLC0415
    from keyvouch_server.rpc.oversight import OversightServicer  # noqa: PLC0415
    from keyvouch_server.rpc.policies import PolicyServicer  # noqa: PLC0415
    from keyvouch_server.rpc.prompts import PromptServicer  # noqa: PLC0415
    from keyvouch_server.rpc.same_device import SameDeviceServicer  # noqa: PLC0415
    from keyvouch_server.rpc.security_info import SecurityInfoServicer  # noqa: PLC0415
    from keyvouch_server.rpc.sessions import SessionServicer  # noqa: PLC0415
    from keyvouch_server.rpc.sign_in import SignInServicer  # noqa: PLC0415

    cursors = Cursors(app.keyring)
    return Servicers(
        sign_in=SignInServicer(
            app.world, app.sign_ins, app.security_keys, app.redemptions, app.pass_sign_ins, app.relay
        ),
        sessions=SessionServicer(app.sessions, app.refreshes, app.keyring, app.world.facts, cursors),
        enrolment=EnrolmentServicer(app.registrations, app.preparations, app.world.facts, app.relay),
        security_info=SecurityInfoServicer(app.security_info, app.devices, app.sessions, app.receipts, app.relay),
        administration=AdministrationServicer(
            app.administration, app.directory, app.passes, app.devices, app.health, app.policies, app.relay, cursors
        ),
        directory=DirectoryServicer(app.directory, app.groups, cursors),
        policies=PolicyServicer(app.policies, cursors),
        oversight=OversightServicer(app.oversight, app.explanations, app.receipts, app.audit_log, cursors),
        prompts=PromptServicer(app.world, app.decisions, app.devices, app.health, app.replacements, app.relay),
        same_device=SameDeviceServicer(app.same_device, app.refreshes),
    )


async def _sweep(app: App) -> None:
    """End what ran out of time and read what was replaced, for as long as the server runs. A store that is away is
    tried again.
    """
    while True:
        try:
            await app.sign_ins.expire()
            await app.registrations.forget_abandoned()
            await app.replacements.forget_abandoned()
            await app.budgets.forget_passed()
            await app.requests.forget_old()
            await app.call_proofs.forget_passed()
            await app.audit_log.sign_in_time()
            if app.cards.may_change:
                await asyncio.to_thread(app.cards.refresh)
        except KeyvouchError as error:
            _log.warning("sweep: %s", error.reason)
        await asyncio.sleep(SWEEP_SECONDS)


async def serve(data: Path, *, ready: Callable[[Running], None], stop: asyncio.Event) -> None:
    """Serve a data directory until `stop` is set."""
    config = load_config(data)
    app = assemble(data, config, await open_store(data, config))
    try:
        async with running(app) as listening:
            ready(listening)
            await stop.wait()
        with suppress(UnavailableError):  # what could not be signed now will be after the next start
            await app.audit_log.sign_checkpoints()
    finally:
        await app.store.close()


async def recover(data: Path, tenant: str, administrator: str, *, default_policy: bool = False) -> CreatedPass:
    """A one-time access pass for an administrator who is locked out.

    A server whose store is a file must not be running.
    """
    config = load_config(data)
    app = assemble(data, config, await open_store(data, config))
    try:
        return await app.administration.recover(tenant, administrator, default_policy=default_policy)
    finally:
        await app.store.close()


__all__ = ["App", "KeyvouchError", "Running", "assemble", "init", "recover", "running", "serve"]
