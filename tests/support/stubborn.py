"""Clients and devices that do not give up: what real ones do when the server goes away in the middle of anything."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import UnavailableError
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, SignInOffer, proof_statement
from keyvouch.v1 import enrolment_pb2 as enrolment
from keyvouch.v1 import enrolment_pb2_grpc as enrolment_rpc
from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch.v1 import sessions_pb2
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch_bench.device import BenchDevice, PromptStream, SoftKey, completion
from keyvouch_client import Connection, Session
from keyvouch_client.backoff import persist
from keyvouch_client.errors import answer
from keyvouch_client.sign_in import Begun, new_proof_key

T = TypeVar("T")

PATIENCE = 30.0
_GONE = (UnavailableError, EOFError, grpc.RpcError, asyncio.InvalidStateError)


async def insist(connection: Connection, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat until somebody answers."""
    return await persist(attempt, seconds=PATIENCE, backoff=connection.backoff)


async def begin(connection: Connection, tenant: str, username: str, *, app: str = "shop", seconds: float = 15) -> Begun:
    """One BeginSignIn, not repeated; what comes back can be watched and redeemed."""
    key = new_proof_key()
    context = pb.SignInContext(tenant=tenant, username=username, app_id=app, app_name=app, audience="keyvouch")
    request = pb.BeginSignInRequest(context=context, proof_public_key=spki_of(key.public_key()))
    return Begun(connection, await answer(connection.sign_ins.BeginSignIn(request, timeout=seconds)), key)


def refresh_request(session: Session) -> sessions_pb2.RefreshSessionRequest:
    """The request that refreshes a session with the token it holds now."""
    token = session.tokens.refresh_token
    statement = proof_statement(session.server_id, hashlib.sha256(token.encode()).digest())
    assert session.proof_key is not None
    return sessions_pb2.RefreshSessionRequest(
        refresh_token=token, proof=sign_proof(session.proof_key, Purpose.REFRESH, statement)
    )


class Enrolling:
    """A registration in two steps. The second sends the same bytes as often as it takes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = enrolment_rpc.EnrolmentServiceStub(connection.channel)
        self._channel_key = ec.generate_private_key(ec.SECP256R1())
        self._begun = enrolment.BeginRegistrationResponse()
        self._credential = SoftKey("", b"")
        self.request = enrolment.CompleteRegistrationRequest()

    async def begin(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Begin, anew if need be: a registration that is not completed leaves no device."""
        request = enrolment.BeginRegistrationRequest(
            channel_public_key=spki_of(self._channel_key.public_key()), display_name="stubborn device"
        )
        self._begun = await insist(
            self._connection, lambda: answer(self._stub.BeginRegistration(request, metadata=metadata, timeout=15))
        )
        self.remake()

    def remake(self) -> None:
        """Answer the statement with a new credential."""
        self._credential = SoftKey(self._begun.rp_id, self._begun.user_handle)
        self.request = completion(self._begun.statement, self._credential, self._channel_key)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata that carries the registration's token."""
        return (("authorization", f"Registration {self._begun.registration_token}"),)

    async def complete_once(self) -> enrolment.CompleteRegistrationResponse:
        """Send the answer."""
        return await answer(self._stub.CompleteRegistration(self.request, metadata=self.metadata, timeout=15))

    async def complete(self) -> BenchDevice:
        """Send the answer until there is a reply."""
        return self.device(await insist(self._connection, self.complete_once))

    def device(self, done: enrolment.CompleteRegistrationResponse) -> BenchDevice:
        """The device that a reply makes."""
        return BenchDevice(
            done.device.device_id,
            self._begun.username,
            self._credential,
            self._channel_key,
            tuple(done.certificate_chain),
            done.device_endpoint,
        )


class StubbornDevice:
    """A device that connects again for as long as it lives, and sends an answer until its outcome has come."""

    def __init__(self, device: BenchDevice, *, open_channel: Callable[[], grpc.aio.Channel] | None = None) -> None:
        self.device = device
        self.connections = 0
        self.prompts: dict[str, prompts.Prompt] = {}
        self.deliveries: defaultdict[str, int] = defaultdict(int)
        self.outcomes: defaultdict[str, list[prompts.Outcome]] = defaultdict(list)
        self.withdrawn: list[str] = []
        self._outbox: dict[str, prompts.Answer] = {}
        self._open_channel = open_channel or device.open_channel
        self._stream: PromptStream | None = None
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def online(self) -> AsyncIterator[Self]:
        """Connected, again and again, while the block lasts."""
        task = asyncio.create_task(self._stay())
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _stay(self) -> None:
        while True:
            try:
                await self._connect_once()
            except _GONE:
                await asyncio.sleep(0.05)

    async def _connect_once(self) -> None:
        channel = self._open_channel()
        try:
            async with PromptStream(self.device, channel) as stream:
                async with self._writing:
                    self._stream = stream
                    self.connections += 1
                    for kept in list(self._outbox.values()):
                        await stream.write(kept)
                await self._tell()
                async for message in stream.messages():
                    self._take(message)
                    await self._tell()
        finally:
            self._stream = None
            await channel.close()

    def _take(self, message: prompts.StreamPromptsResponse) -> None:
        match message.WhichOneof("event"):
            case "prompt":
                self.prompts[SignInOffer.parse(message.prompt.offer).sign_in_id] = message.prompt
                self.deliveries[message.prompt.prompt_id] += 1
            case "outcome":
                self.outcomes[message.outcome.prompt_id].append(message.outcome)
                self._outbox.pop(message.outcome.prompt_id, None)
            case "withdrawn":
                self.withdrawn.append(message.withdrawn.prompt_id)
                self._outbox.pop(message.withdrawn.prompt_id, None)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(holds)

    async def connected(self, times: int = 1) -> None:
        """Wait until it has been welcomed so often."""
        await self._until(lambda: self.connections >= times and self._stream is not None)

    async def prompt_of(self, sign_in_id: str) -> prompts.Prompt:
        """Wait for the prompt of a sign-in."""
        await self._until(lambda: sign_in_id in self.prompts)
        return self.prompts[sign_in_id]

    async def send(self, given: prompts.Answer) -> None:
        """Keep an answer and send it, now and after each connection, until its outcome comes."""
        self._outbox[given.prompt_id] = given
        async with self._writing:
            if self._stream is not None:
                with suppress(*_GONE):
                    await self._stream.write(given)

    async def outcome(self, prompt_id: str, number: int = 1) -> prompts.Outcome:
        """Wait for the n-th outcome of a prompt."""
        await self._until(lambda: len(self.outcomes[prompt_id]) >= number)
        return self.outcomes[prompt_id][number - 1]
