"""Many sign-ins on one stream, for busy clients: one proof of the key, no further call per sign-in.

    async with SignInStream(connection, app_id="shop", app_name="Shop") as stream:
        pending = await stream.begin(tenant="example", username="ada")
        print(pending.number)
        session = await pending.session()

Any number of tasks may share a `SignInStream`. When the stream breaks, sign-ins that have begun go on by watching and
redeeming with their own tokens, and the next `begin` opens a new stream; nobody who waits has to know.

One physical stream is an `_OpenStream`: a reader task that hands each event to the sign-in with its tag.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from keyvouch.errors import (
    EvidenceError,
    KeyvouchError,
    MalformedError,
    Reason,
    RefusedError,
    UnavailableError,
    UsageError,
    error_for,
)
from keyvouch.ids import ServerId
from keyvouch.proofs import sign_proof, spki_of
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2, sign_in_pb2
from keyvouch_client.backoff import Patience
from keyvouch_client.connection import Connection
from keyvouch_client.errors import error_from
from keyvouch_client.outcomes import error_for_state
from keyvouch_client.session import Session
from keyvouch_client.sign_in import Begun, new_proof_key

__all__ = ["PendingSignIn", "SignInStream"]

_BEGIN_PATIENCE = 20.0
"""Seconds for which `begin` looks for a server. A second begin supersedes the first, so it may be repeated."""

_NONCE_BYTES = range(16, 129)


class _BrokenError(UnavailableError):
    """The stream is gone; what has begun on it goes on without it."""

    def __init__(self, why: str) -> None:
        super().__init__(Reason.SERVER_UNREACHABLE, why, fix="Try again.")


class _Slot:
    """The two answers a tag waits for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[sign_in_pb2.BeginSignInResponse] = loop.create_future()
        self.result: asyncio.Future[sign_in_pb2.RedeemSignInResponse] = loop.create_future()

    def fail(self, error: KeyvouchError) -> None:
        """Hand `error` to whoever waits now."""
        for future in (self.begun, self.result):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody has to be waiting


class _OpenStream:
    """One stream after its proof: sends begins and cancels, hands events to slots by tag."""

    def __init__(self, call: aio.StreamStreamCall[Any, Any], server_id: ServerId) -> None:
        self.server_id = server_id
        self._call = call
        self._slots: dict[int, _Slot] = {}
        self._tags = itertools.count(1)
        self._writing = asyncio.Lock()
        self._broken: KeyvouchError | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def is_broken(self) -> bool:
        """Whether it can carry no further sign-in."""
        return self._broken is not None

    async def begin(self, context: sign_in_pb2.SignInContext, known_client: str) -> tuple[int, _Slot]:
        """Send a begin and wait for its answer. Raises the refusal, or `UnavailableError` when the stream breaks."""
        if self._broken is not None:
            raise self._broken
        tag, slot = next(self._tags), _Slot()
        self._slots[tag] = slot
        begin = sign_in_pb2.SignInSessionBegin(tag=tag, context=context, known_client=known_client)
        try:
            await self._write(sign_in_pb2.SignInSessionRequest(begin=begin))
            await slot.begun
        except asyncio.CancelledError:
            await self.cancel(tag)
            raise
        except KeyvouchError:
            self._slots.pop(tag, None)
            raise
        return tag, slot

    async def cancel(self, tag: int) -> bool:
        """Withdraw a sign-in; False where the stream could not carry the message."""
        if self._slots.pop(tag, None) is None or self._broken is not None:
            return False
        try:
            await self._write(sign_in_pb2.SignInSessionRequest(cancel=sign_in_pb2.SignInSessionCancel(tag=tag)))
        except KeyvouchError:
            return False
        return True

    def forget(self, tag: int) -> None:
        """Nobody waits for this tag any more."""
        self._slots.pop(tag, None)

    async def close(self) -> None:
        """End the stream; whoever still waits on it goes on without it."""
        self._call.cancel()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._break(_BrokenError("The stream was closed."))

    async def _write(self, request: sign_in_pb2.SignInSessionRequest) -> None:
        async with self._writing:
            try:
                await self._call.write(request)
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                lost = error_from(error) if isinstance(error, grpc.RpcError) else _BrokenError("The stream has ended.")
                self._break(lost)
                raise lost from error

    async def _read(self) -> None:
        try:
            while isinstance(event := await self._call.read(), sign_in_pb2.SignInSessionResponse):
                self._deliver(event)
        except grpc.RpcError as error:
            self._break(error_from(error))
        finally:
            self._break(_BrokenError("The stream has ended."))

    def _deliver(self, event: sign_in_pb2.SignInSessionResponse) -> None:
        slot = self._slots.get(event.tag)
        if slot is None:
            return  # cancelled here while the event was under way
        match event.WhichOneof("event"):
            case "begun" if not slot.begun.done():
                slot.begun.set_result(event.begun)
            case "session" if not slot.result.done():
                slot.result.set_result(event.session)
            case "changed":
                error = error_for_state(event.changed.state)
                if error is not None:
                    slot.fail(error)
            case "refusal":
                slot.fail(_refusal(event.refusal))
            case _:
                return  # a newer server may have more to say

    def _break(self, error: KeyvouchError) -> None:
        if self._broken is not None:
            return
        self._broken = error
        lost = error if isinstance(error, UnavailableError) else _BrokenError(error.message)
        for slot in self._slots.values():
            slot.fail(lost)
        self._slots.clear()


def _refusal(told: sign_in_pb2.SignInSessionRefusal) -> KeyvouchError:
    return error_for(
        told.kind, told.reason, told.message, fix=told.fix, metadata=told.metadata, retry_after=told.retry_after
    )


async def _open(connection: Connection, proof_key: ec.EllipticCurvePrivateKey) -> _OpenStream:
    """Open a stream and prove the key on it: read the nonce, check the server, sign."""
    identity = await connection.identity()
    call = connection.sign_ins.SignInSession()
    try:
        async with asyncio.timeout(connection.deadline):
            first = await call.read()
            await call.write(_opening(first, identity.server_id, proof_key))
    except grpc.RpcError as error:
        raise error_from(error) from error
    except asyncio.InvalidStateError as error:
        raise _BrokenError("The stream has ended.") from error
    except TimeoutError as error:
        raise UnavailableError(Reason.DEADLINE, "The server did not answer in time.", fix="Try again.") from error
    except BaseException:
        call.cancel()
        raise
    return _OpenStream(call, identity.server_id)


def _opening(
    first: object, server_id: ServerId, proof_key: ec.EllipticCurvePrivateKey
) -> sign_in_pb2.SignInSessionRequest:
    if not isinstance(first, sign_in_pb2.SignInSessionResponse):
        raise _BrokenError("The server ended the stream.")
    if first.WhichOneof("event") != "nonce" or len(first.nonce.nonce) not in _NONCE_BYTES:
        raise MalformedError(Reason.MISSING_FIELD, "The stream did not begin with a nonce.", fix="Check the server.")
    if first.nonce.server_id != server_id:
        raise EvidenceError(
            Reason.WRONG_SERVER,
            "The stream leads to another server than this connection.",
            fix="Nothing was signed. Find out what stands between you and the server.",
        )
    proof = sign_proof(proof_key, Purpose.SIGN_IN_SESSION, proof_statement(server_id, first.nonce.nonce))
    spki = spki_of(proof_key.public_key())
    return sign_in_pb2.SignInSessionRequest(open=sign_in_pb2.SignInSessionOpen(proof_public_key=spki, proof=proof))


class PendingSignIn:
    """A sign-in begun on a stream. Also an asynchronous context manager that withdraws it unless it has ended."""

    def __init__(self, stream: _OpenStream, tag: int, slot: _Slot, begun: Begun, make: _SessionMaker) -> None:
        self._stream = stream
        self._tag = tag
        self._slot = slot
        self._begun = begun
        self._make = make
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            await self.cancel()

    @property
    def sign_in_id(self) -> str:
        """Id of the sign-in on the server."""
        return self._begun.begun.sign_in_id

    @property
    def number(self) -> str:
        """Show exactly this to the person, who types it on the device."""
        return self._begun.begun.number

    @property
    def expires_at(self) -> int:
        """When the sign-in ends by itself, in seconds since the epoch on the server's clock."""
        return self._begun.begun.expires_at

    @property
    def methods(self) -> tuple[common_pb2.SignInMethod.ValueType, ...]:
        """Ways to sign in that are open to the user, the preferred one first."""
        return tuple(self._begun.begun.methods)

    async def session(self) -> Session:
        """Wait for the session. Raises as `SignIn.session`."""
        try:
            session = await self._from_stream()
        except RefusedError:
            self._end()
            raise
        except UnavailableError:
            session = await self._without_stream()
        self._end()
        return session

    async def cancel(self) -> None:
        """Withdraw the sign-in, on the stream or, where that is gone, without it."""
        self._ended = True
        if not await self._stream.cancel(self._tag):
            await self._begun.cancel()

    async def _from_stream(self) -> Session:
        return self._make(await asyncio.shield(self._slot.result))

    async def _without_stream(self) -> Session:
        try:
            await self._begun.wait()
            return await self._begun.redeem()
        except RefusedError:
            self._end()
            raise

    def _end(self) -> None:
        self._ended = True
        self._stream.forget(self._tag)


class _SessionMaker:
    """Makes sessions out of what the stream delivers."""

    def __init__(self, connection: Connection, server_id: ServerId, proof_key: ec.EllipticCurvePrivateKey) -> None:
        self._connection = connection
        self._server_id = server_id
        self._proof_key = proof_key

    def __call__(self, response: sign_in_pb2.RedeemSignInResponse) -> Session:
        return Session(
            self._connection,
            server_id=self._server_id,
            tokens=response.tokens,
            details=response.session,
            proof_key=self._proof_key,
            campaigns=response.campaigns,
            open_risk_events=response.open_risk_events,
            known_client=response.known_client,
        )


class SignInStream:
    """A stream of sign-ins of one app, all bound to one proof key made here.

    `required_assurance` is the least that the app accepts, where that is more than policy asks for.
    Entering opens the stream and proves the key; raises `UnavailableError`, or `EvidenceError(WRONG_SERVER)`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        app_id: str,
        app_name: str,
        audience: str = "",
        required_assurance: common_pb2.AssuranceRequirement | None = None,
    ) -> None:
        self._connection = connection
        self._app = sign_in_pb2.SignInContext(
            app_id=app_id, app_name=app_name, audience=audience, required_assurance=required_assurance
        )
        self._proof_key = new_proof_key()
        self._stream: _OpenStream | None = None
        self._opening = asyncio.Lock()
        self._closed = True

    async def __aenter__(self) -> Self:
        self._closed = False
        await self._live_stream()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._stream is not None:
            await self._stream.close()

    async def begin(
        self, *, tenant: str, username: str, binding_message: str = "", known_client: str = ""
    ) -> PendingSignIn:
        """Begin a sign-in; `known_client` is that of the last session of this user.

        Raises `RefusedError`, `ThrottledError` or, when nobody answers, `UnavailableError`.
        """
        context = sign_in_pb2.SignInContext(tenant=tenant, username=username, binding_message=binding_message)
        context.MergeFrom(self._app)
        patience = Patience(_BEGIN_PATIENCE, self._connection.backoff)
        while True:
            try:
                return await self._begin_once(context, known_client)
            except UnavailableError as error:
                if self._stream is not None and not self._stream.is_broken:
                    raise  # the server itself says that it cannot
                await patience.wait_or_raise(error)

    async def _begin_once(self, context: sign_in_pb2.SignInContext, known_client: str) -> PendingSignIn:
        stream = await self._live_stream()
        tag, slot = await stream.begin(context, known_client)
        begun = Begun(self._connection, slot.begun.result(), self._proof_key)
        return PendingSignIn(
            stream, tag, slot, begun, _SessionMaker(self._connection, stream.server_id, self._proof_key)
        )

    async def _live_stream(self) -> _OpenStream:
        async with self._opening:
            if self._closed:
                raise UsageError("The stream of sign-ins is not open.", fix="Enter it with `async with` first.")
            if self._stream is None or self._stream.is_broken:
                self._stream = await _open(self._connection, self._proof_key)
            return self._stream
