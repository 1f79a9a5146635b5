"""A real server inside the test's own event loop: both listeners, TLS, a store, and a clock that tests move.

    async with live_server(template, folder) as live:
        ada = await live.person("ada")
        session = await live.signed_in(ada)

Devices are the scripted ones of `keyvouch_bench`. Not here: a server in its own process (`keyvouch_bench`).
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from keyvouch.errors import KeyvouchError, NotFoundError, Reason
from keyvouch.ids import SignInId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, proof_statement, redeem_statement
from keyvouch.v1 import administration_pb2 as admin_pb
from keyvouch.v1 import common_pb2, enrolment_pb2_grpc, prompts_pb2_grpc, sessions_pb2, sign_in_pb2
from keyvouch_bench.device import BenchDevice, PromptStream
from keyvouch_bench.server_process import free_ports
from keyvouch_client import Connection
from keyvouch_client.call_proofs import ProofKey, ProvingChannel
from keyvouch_client.errors import answer
from keyvouch_server import bootstrap
from keyvouch_server.bootstrap import App, SystemClock
from keyvouch_server.card_authorities import CardSettings
from keyvouch_server.config import ServerConfig
from keyvouch_server.domain.model import Role
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.ek_trust import TpmSettings
from keyvouch_server.key_files import read_keys
from keyvouch_server.ports import Store
from keyvouch_server.stores.memory import MemoryStore
from keyvouch_server.stores.postgres import PostgresStore
from keyvouch_server.stores.sqlite import SqliteStore
from keyvouch_server.trust_anchors import TrustSettings
from support import postgres_server

Metadata = tuple[tuple[str, str], ...]

TENANT = "example"
ADMINISTRATOR = "admin"
LIMIT = 20.0
"""Seconds a call may take before the test fails."""


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.instant = int(time.time())

    def now(self) -> int:
        """See `keyvouch_server.ports.Clock`."""
        return self.instant

    def advance(self, seconds: int) -> None:
        """Move ahead, or back."""
        self.instant += seconds


def configuration(device_port: int, public_port: int = 0) -> ServerConfig:
    """A configuration for the loopback; the device port has to be known beforehand, for devices are told it."""
    return ServerConfig(
        public_listen=f"127.0.0.1:{public_port}",
        device_listen=f"127.0.0.1:{device_port}",
        hosts=("localhost", "127.0.0.1"),
        device_endpoint=f"127.0.0.1:{device_port}",
        rp_id="localhost",
        issuer="https://localhost",
    )


def make_template(folder: Path) -> Path:
    """A data directory whose keys are copied by every server of a test process."""
    bootstrap.init(folder, configuration(1), TENANT, ADMINISTRATOR)
    return folder


def bearer(token: str) -> Metadata:
    """Metadata that carries an access token."""
    return (("authorization", f"Bearer {token}"),)


@dataclass(slots=True)
class Person:
    """A user with an enrolled scripted device whose prompt stream is open."""

    tenant: str
    username: str
    device: BenchDevice
    stream: PromptStream


@dataclass(slots=True)
class OpenSignIn:
    """A sign-in that was begun, in the hands of its client."""

    live: LiveServer
    begun: sign_in_pb2.BeginSignInResponse
    proof_key: ec.EllipticCurvePrivateKey

    @property
    def number(self) -> str:
        """What the client shows."""
        return self.begun.number

    @property
    def wrong_number(self) -> str:
        """Another number with as many digits."""
        return str((int(self.number) + 1) % 10 ** len(self.number)).zfill(len(self.number))

    @property
    def metadata(self) -> Metadata:
        """Metadata that carries the sign-in token."""
        return (("authorization", f"SignIn {self.begun.sign_in_token}"),)

    def proof(self, key: ec.EllipticCurvePrivateKey | None = None, purpose: Purpose = Purpose.REDEEM) -> bytes:
        """The proof of the client's key that redeeming asks for."""
        begun = self.begun
        statement = redeem_statement(
            self.live.app.world.facts.server_id, SignInId(begun.sign_in_id), begun.sign_in_token
        )
        return sign_proof(key or self.proof_key, purpose, statement)

    async def redeem(self, proof: bytes | None = None) -> SignedIn:
        """Turn the approval into a session."""
        request = sign_in_pb2.RedeemSignInRequest(sign_in_id=self.begun.sign_in_id, proof=proof or self.proof())
        call = self.live.connection.sign_ins.RedeemSignIn(request, metadata=self.metadata, timeout=LIMIT)
        done = await answer(call)
        self.live.hold(done.tokens.session_id, self.proof_key)
        return SignedIn(self.live, done.tokens, done.session, self.proof_key)

    def watch(self) -> Any:
        """The stream of its states."""
        request = sign_in_pb2.WatchSignInRequest(sign_in_id=self.begun.sign_in_id)
        return self.live.connection.sign_ins.WatchSignIn(request, metadata=self.metadata, timeout=LIMIT)

    async def state(self) -> int:
        """Its present state on the wire."""
        call = self.watch()
        try:
            first: sign_in_pb2.WatchSignInResponse = await answer(call.read())
        finally:
            call.cancel()
        return first.state

    async def cancel(self) -> int:
        """Withdraw it; returns the state it is in then."""
        request = sign_in_pb2.CancelSignInRequest(sign_in_id=self.begun.sign_in_id)
        call = self.live.connection.sign_ins.CancelSignIn(request, metadata=self.metadata, timeout=LIMIT)
        return (await answer(call)).state


@dataclass(slots=True)
class SignedIn:
    """A session in the hands of its client."""

    live: LiveServer
    tokens: common_pb2.SessionTokens
    session: common_pb2.Session
    proof_key: ec.EllipticCurvePrivateKey

    @property
    def metadata(self) -> Metadata:
        """Metadata that carries the access token."""
        return bearer(self.tokens.access_token)

    def refresh_proof(
        self, token: str, key: ec.EllipticCurvePrivateKey | None = None, purpose: Purpose = Purpose.REFRESH
    ) -> bytes:
        """The proof of the client's key that refreshing with `token` asks for."""
        digest = hashlib.sha256(token.encode()).digest()
        statement = proof_statement(self.live.app.world.facts.server_id, digest)
        return sign_proof(key or self.proof_key, purpose, statement)

    async def refresh(self, token: str = "", *, proof: bytes | None = None) -> common_pb2.SessionTokens:
        """New tokens for the present refresh token, or for another one."""
        token = token or self.tokens.refresh_token
        request = sessions_pb2.RefreshSessionRequest(refresh_token=token, proof=proof or self.refresh_proof(token))
        return (await answer(self.live.connection.sessions.RefreshSession(request, timeout=LIMIT))).tokens

    async def introspect(self) -> sessions_pb2.IntrospectSessionResponse:
        """The session as the server knows it now."""
        return await self.live.introspect(self.metadata)


@dataclass(slots=True)
class LiveServer:
    """A running server with its first administrator, and what tests do with it over its own protocol."""

    app: App
    clock: Clock
    data: Path
    public_port: int
    device_port: int
    connection: Connection
    stack: AsyncExitStack
    administrator_pass: str = ""
    _administrator: SignedIn | None = None
    people: dict[str, Person] = field(default_factory=dict)

    def hold(self, session_id: str, key: ec.EllipticCurvePrivateKey) -> None:
        """Prove the calls that carry a token of this session over `connection`, as the SDK does for its own."""
        self.connection.prover.hold(ProofKey(session_id, self.app.world.facts.server_id, key))

    # -- administration ---------------------------------------------------------------------------

    async def admin(self) -> Metadata:
        """Metadata of the first administrator's approved session: enrols and signs in once, later refreshes."""
        if self._administrator is None:
            device = await self.enrol(ADMINISTRATOR, self.administrator_pass)
            person = await self.connect(ADMINISTRATOR, device)
            self._administrator = await self.signed_in(person, app_id="console")
        if self._administrator.tokens.access_expires_at <= self.clock.now():
            self._administrator.tokens = await self._administrator.refresh()
        return self._administrator.metadata

    async def administer(self, method: str, request: Any, metadata: Metadata | None = None) -> Any:
        """Call an administration method, as the first administrator where nobody else is named."""
        if metadata is None:
            metadata = await self.admin()
        return await answer(getattr(self.connection.administration, method)(request, metadata=metadata, timeout=LIMIT))

    async def create_user(self, username: str, role: Role = Role.USER, metadata: Metadata | None = None) -> str:
        """Make a user; returns its id."""
        wanted = admin_pb.Role.Value(f"ROLE_{role.name}")
        request = admin_pb.CreateUserRequest(username=username, role=wanted)
        made: admin_pb.CreateUserResponse = await self.administer("CreateUser", request, metadata)
        return made.user.user_id

    async def issue_pass(self, username: str, metadata: Metadata | None = None, **options: Any) -> str:
        """Make the user's access pass; returns the code."""
        request = admin_pb.CreateAccessPassRequest(username=username, **options)
        made: admin_pb.CreateAccessPassResponse = await self.administer("CreateAccessPass", request, metadata)
        return made.code

    async def issue_pass_again(self, username: str, **options: Any) -> str:
        """The same for a user whose earlier pass may still be valid; their sessions end with it."""
        with suppress(NotFoundError):
            await self.administer("DeleteAccessPass", admin_pb.DeleteAccessPassRequest(username=username))
        return await self.issue_pass(username, **options)

    async def listed_pass(self, username: str) -> admin_pb.AccessPass:
        """The user's pass as administrators see it."""
        request = admin_pb.ListAccessPassesRequest(username=username)
        told: admin_pb.ListAccessPassesResponse = await self.administer("ListAccessPasses", request)
        return told.access_passes[0]

    async def change_policy(self, metadata: Metadata | None = None, **parts: Mapping[str, Any]) -> None:
        """Save the policy with changes: `approval={"enabled": False}`, though it may lock administrators out."""
        policy: Any = (await self.administer("GetPolicy", admin_pb.GetPolicyRequest(), metadata)).policy
        for part, changes in parts.items():
            for name, value in changes.items():
                if isinstance(value, Message):
                    getattr(getattr(policy, part), name).CopyFrom(value)
                else:
                    setattr(getattr(policy, part), name, value)
        request = admin_pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True)
        await self.administer("UpdatePolicy", request, metadata)

    async def audit(self, action: str = "") -> list[AuditRecord]:
        """The audit log of all tenants, oldest first."""
        records = await self.app.store.read(lambda tx: tx.find(AuditRecord, {}, order="sequence"))
        return [r for r in records if action in ("", r.action)]

    # -- people -----------------------------------------------------------------------------------

    async def access_pass_sign_in(self, username: str, code: str, tenant: str = TENANT) -> Any:
        """Sign in with a pass; returns the server's response."""
        request = sign_in_pb2.SignInWithAccessPassRequest(tenant=tenant, username=username, access_pass=code)
        return await answer(self.connection.sign_ins.SignInWithAccessPass(request, timeout=LIMIT))

    async def pass_session(self, username: str, code: str, tenant: str = TENANT) -> Metadata:
        """Sign in with a pass; returns metadata that carries the session."""
        return bearer((await self.access_pass_sign_in(username, code, tenant)).tokens.access_token)

    async def enrol(self, username: str, code: str, tenant: str = TENANT) -> BenchDevice:
        """Register a scripted device with a pass."""
        return await BenchDevice.enrol(self.connection, metadata=await self.pass_session(username, code, tenant))

    async def connect(self, username: str, device: BenchDevice, tenant: str = TENANT) -> Person:
        """Open the device's prompt stream until the server ends."""
        stream = await self.stack.enter_async_context(PromptStream(device))
        person = self.people[username] = Person(tenant, username, device, stream)
        return person

    async def person(self, username: str, role: Role = Role.USER) -> Person:
        """A new user of the first tenant with an enrolled and connected device."""
        await self.create_user(username, role)
        device = await self.enrol(username, await self.issue_pass(username))
        return await self.connect(username, device)

    async def tenant(self, name: str) -> tuple[Person, SignedIn]:
        """A further tenant with its administrator, `admin` too, enrolled and signed in."""
        request = admin_pb.CreateTenantRequest(name=name, administrator=ADMINISTRATOR)
        made: admin_pb.CreateTenantResponse = await self.administer("CreateTenant", request)
        device = await self.enrol(ADMINISTRATOR, made.code, name)
        person = await self.connect(ADMINISTRATOR, device, name)
        return person, await self.signed_in(person, app_id="console")

    # -- sign-in ----------------------------------------------------------------------------------

    async def begin(self, username: str, tenant: str = TENANT, **context: Any) -> OpenSignIn:
        """Begin a sign-in as a client would."""
        key = ec.generate_private_key(ec.SECP256R1())
        wanted: dict[str, Any] = {"app_id": "shop", "app_name": "Shop", "audience": "keyvouch", **context}
        request = sign_in_pb2.BeginSignInRequest(
            context=sign_in_pb2.SignInContext(tenant=tenant, username=username, **wanted),
            proof_public_key=spki_of(key.public_key()),
        )
        begun = await answer(self.connection.sign_ins.BeginSignIn(request, timeout=LIMIT))
        return OpenSignIn(self, begun, key)

    async def approved(self, person: Person, **context: Any) -> OpenSignIn:
        """Begin a sign-in and approve it on the person's device."""
        opened = await self.begin(person.username, person.tenant, **context)
        prompt = await person.stream.prompt()
        outcome = await person.stream.send(person.device.approve(prompt, opened.number))
        assert outcome.accepted, outcome
        return opened

    async def signed_in(self, person: Person, **context: Any) -> SignedIn:
        """The whole ceremony."""
        return await (await self.approved(person, **context)).redeem()

    async def introspect(self, metadata: Metadata) -> sessions_pb2.IntrospectSessionResponse:
        """The session behind metadata as the server knows it now."""
        request = sessions_pb2.IntrospectSessionRequest()
        return await answer(self.connection.sessions.IntrospectSession(request, metadata=metadata, timeout=LIMIT))

    # -- channels ---------------------------------------------------------------------------------

    @property
    def enrolment(self) -> enrolment_pb2_grpc.EnrolmentServiceAsyncStub:
        """The enrolment service."""
        stub: Any = enrolment_pb2_grpc.EnrolmentServiceStub(self.connection.channel)
        return stub  # type: ignore[no-any-return]

    async def device_channel(self, device: BenchDevice) -> grpc.aio.Channel:
        """A channel of the device to its listener, open until the server ends."""
        channel = ProvingChannel(device.open_channel(), self.connection.prover)
        self.stack.push_async_callback(channel.close)
        return channel

    async def device_stub(self, device: BenchDevice) -> prompts_pb2_grpc.PromptServiceAsyncStub:
        """The prompt service as the device reaches it."""
        stub: Any = prompts_pb2_grpc.PromptServiceStub(await self.device_channel(device))
        return stub  # type: ignore[no-any-return]


async def _open_store(data: Path, address: str, *, memory: bool) -> Store:
    if address:
        authority, _ = read_keys(data, SystemClock())
        return await PostgresStore.open(address, authority.server_id.hex())
    return MemoryStore() if memory else SqliteStore.open(data / bootstrap.DATABASE)


@asynccontextmanager
async def live_server(
    template: Path,
    folder: Path,
    *,
    memory: bool = False,
    around: Callable[[Store], Store] = lambda store: store,
    trust: TrustSettings | None = None,
    tpm: TpmSettings | None = None,
    cards: tuple[CardSettings, ...] = (),
) -> AsyncIterator[LiveServer]:
    """Start a server with the keys of `template` and a store of its own in `folder`, or in memory; `around` may put
    another one in front of it.
    """
    data, clock = folder / "server", Clock()
    shutil.copytree(template, data, ignore=shutil.ignore_patterns("keyvouch.db*"))
    address = postgres_server.everywhere[0].database() if postgres_server.everywhere else ""
    store = around(await _open_store(data, address, memory=memory))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        believed: dict[str, Any] = {"trust": trust or TrustSettings(), "tpm": tpm or TpmSettings(), "cards": cards}
        believed["store"] = address
        live = await serve(stack, data, store, clock, believed)
        live.administrator_pass = (await live.app.administration.found(TENANT, ADMINISTRATOR)).access_pass.code
        yield live


async def serve(
    stack: AsyncExitStack, data: Path, store: Store, clock: Clock, settings: Mapping[str, Any]
) -> LiveServer:
    """Serve a store, until `stack` is closed, with the keys in `data`; `settings` are parts of the configuration."""
    app, listening = await _listen(stack, data, store, clock, settings)
    address = f"127.0.0.1:{listening.public_port}"
    connection = await stack.enter_async_context(Connection(address, ca_file=data / "ca.pem"))
    connection.prover.now = clock.now
    ports = listening.public_port, listening.device_port
    return LiveServer(app, clock, data, *ports, connection=connection, stack=stack)


async def _listen(
    stack: AsyncExitStack, data: Path, store: Store, clock: Clock, believed: Mapping[str, Any]
) -> tuple[App, bootstrap.Running]:
    """Another program may take the free port first; then another one is tried."""
    for attempt in range(5):
        config = replace(configuration(free_ports(1)[0]), **believed)
        app = bootstrap.assemble(data, config, store, clock=clock)
        try:
            return app, await stack.enter_async_context(bootstrap.running(app, grace=0))
        except KeyvouchError as error:
            if error.reason is not Reason.CONFIGURATION or attempt == 4:
                raise
    raise AssertionError("unreachable")


@dataclass(slots=True)
class Refusal:
    """A refusal as the caller saw it, for further questions after the block."""

    error: KeyvouchError = field(default_factory=lambda: KeyvouchError(Reason.INTERNAL, "nothing yet"))

    @property
    def status(self) -> grpc.StatusCode:
        """The status code on the wire."""
        return _code(self.error)


@contextmanager
def refused(*reasons: Reason, status: grpc.StatusCode | None = None) -> Iterator[Refusal]:
    """The block has to raise a refusal with one of the reasons, and the status where one is named."""
    refusal = Refusal()
    with pytest.raises(KeyvouchError) as caught:
        yield refusal
    refusal.error = caught.value
    assert caught.value.reason in reasons, f"{caught.value.reason}: {caught.value}"
    if status is not None:
        assert refusal.status is status


def _code(error: KeyvouchError) -> grpc.StatusCode:
    cause: Any = error.__cause__
    code: grpc.StatusCode = cause.code()
    return code


async def nothing_arrives(stream: PromptStream, seconds: float = 0.1) -> None:
    """The stream stays silent. Ends the stream: a cancelled read cannot be taken up again."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await stream.read()
