"""SignInService: the unary calls and the multiplexed stream, over `use_cases.sign_in`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import KeyvouchError, MalformedError, Reason, ThrottledError, UnauthenticatedError
from keyvouch.ids import SignInId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2 as common
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch.v1 import sign_in_pb2_grpc as rpc
from keyvouch_server.domain.model import SignIn, SignInState
from keyvouch_server.domain.sign_in import OPEN
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import token_of
from keyvouch_server.use_cases.access_passes import AccessPasses
from keyvouch_server.use_cases.sign_in import BegunSignIn, SignInRequest, SignIns
from keyvouch_server.use_cases.world import World

OPEN_PER_STREAM: Final = 4096
"""Sign-ins one SignInSession stream may have open at a time."""
BACKLOG: Final = 512
"""Messages of one stream under way or waiting to be sent; the client's next ones are read when there is room (G4)."""
OPENING_SECONDS: Final = 10
"""How long a client may take to prove its key on a new stream."""

_METHODS = (common.SIGN_IN_METHOD_APPROVAL, common.SIGN_IN_METHOD_ACCESS_PASS)


class SignInServicer(rpc.SignInServiceServicer):
    """Serves keyvouch.v1.SignInService."""

    def __init__(self, world: World, sign_ins: SignIns, passes: AccessPasses, relay: Relay) -> None:
        self._world = world
        self._sign_ins = sign_ins
        self._passes = passes
        self._relay = relay

    async def BeginSignIn(self, request: pb.BeginSignInRequest, context: Any) -> pb.BeginSignInResponse:
        """See sign_in.proto."""
        wanted = _request(request.context, request.proof_public_key, context.peer())
        return _begun(await self._sign_ins.begin(wanted))

    async def WatchSignIn(self, request: pb.WatchSignInRequest, context: Any) -> AsyncIterator[pb.WatchSignInResponse]:
        """See sign_in.proto."""
        token = token_of()
        changes: asyncio.Queue[SignIn] = asyncio.Queue()
        sign_in_id = SignInId(request.sign_in_id)
        self._relay.watch(sign_in_id, changes.put_nowait)
        try:
            row = await self._sign_ins.follow(sign_in_id, token)
            yield _watched(row)
            while row.state in OPEN:
                row = await changes.get()
                yield _watched(row)
        finally:
            self._relay.unwatch(sign_in_id, changes.put_nowait)

    async def RedeemSignIn(self, request: pb.RedeemSignInRequest, context: Any) -> pb.RedeemSignInResponse:
        """See sign_in.proto."""
        issued = await self._sign_ins.redeem(request.sign_in_id, token_of(), request.proof)
        return pb.RedeemSignInResponse(
            tokens=convert.tokens(issued), session=convert.session(issued.session, issued.user)
        )

    async def CancelSignIn(self, request: pb.CancelSignInRequest, context: Any) -> pb.CancelSignInResponse:
        """See sign_in.proto."""
        state = await self._sign_ins.cancel(request.sign_in_id, token_of())
        return pb.CancelSignInResponse(state=convert.state(state))

    async def SignInWithAccessPass(
        self, request: pb.SignInWithAccessPassRequest, context: Any
    ) -> pb.SignInWithAccessPassResponse:
        """See sign_in.proto."""
        address, _ = convert.address_of(context.peer())
        issued = await self._passes.sign_in(request.tenant, request.username, request.access_pass, address=address)
        return pb.SignInWithAccessPassResponse(
            tokens=convert.tokens(issued), session=convert.session(issued.session, issued.user)
        )

    async def SignInSession(
        self, request_iterator: AsyncIterator[pb.SignInSessionRequest], context: Any
    ) -> AsyncIterator[pb.SignInSessionResponse]:
        """See sign_in.proto."""
        nonce = self._world.entropy.token(32)
        server_id = self._world.facts.server_id
        yield pb.SignInSessionResponse(nonce=pb.SignInSessionNonce(nonce=nonce, server_id=server_id))
        opening = await _opening(request_iterator)
        key = load_proof_key(opening.proof_public_key)
        verify_proof(key, Purpose.SIGN_IN_SESSION, proof_statement(server_id, nonce), signature=opening.proof)
        stream = _SignInStream(self._sign_ins, self._relay, opening.proof_public_key, key, context.peer())
        reader = asyncio.create_task(stream.read(request_iterator))
        try:
            while (answer := await stream.next()) is not None:
                yield answer
            await reader
        finally:
            reader.cancel()
            stream.close()


class _SignInStream:
    """One SignInSession stream: its open sign-ins by tag, and what waits to be sent."""

    def __init__(
        self, sign_ins: SignIns, relay: Relay, proof_key: bytes, key: ec.EllipticCurvePublicKey, peer: str
    ) -> None:
        self.outbox: asyncio.Queue[pb.SignInSessionResponse | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._sign_ins = sign_ins
        self._relay = relay
        self._proof_key = proof_key
        self._peer = peer
        self._open: dict[int, _OpenSignIn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def read(self, requests: AsyncIterator[pb.SignInSessionRequest]) -> None:
        """Take the client's messages until it closes its side; what is open then is still answered."""
        try:
            async for request in requests:
                await self._wait_for_room()
                self._take(request)
        except BaseException:
            self.outbox.put_nowait(None)
            raise
        self._closing = True
        self._end_when_idle()

    async def next(self) -> pb.SignInSessionResponse | None:
        """What is to be sent next; None at the end."""
        response = await self.outbox.get()
        self._room.set()
        return response

    async def _wait_for_room(self) -> None:
        """A client that sends and never reads must not fill the server's memory."""
        while self.outbox.qsize() + len(self._tasks) >= BACKLOG:
            self._room.clear()
            await self._room.wait()

    def _end_when_idle(self) -> None:
        if self._closing and not self._open and not self._tasks:
            self.outbox.put_nowait(None)

    def _take(self, request: pb.SignInSessionRequest) -> None:
        event = request.WhichOneof("event")
        if event == "begin":
            self._start(self._begin(request.begin))
        elif event == "cancel":
            self._start(self._cancel(request.cancel.tag))
        else:
            raise MalformedError(
                Reason.FIELD_INVALID, "After its opening, a client sends begin or cancel.", fix="Update the client."
            )

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.set()
        self._end_when_idle()

    async def _begin(self, begin: pb.SignInSessionBegin) -> None:
        if begin.tag in self._open or len(self._open) >= OPEN_PER_STREAM:
            self._refuse(begin.tag, _too_many())
            return
        self._open[begin.tag] = _OpenSignIn(begin.tag, self)
        try:
            begun = await self._sign_ins.begin(_request(begin.context, self._proof_key, self._peer))
        except KeyvouchError as error:
            self._open.pop(begin.tag, None)
            self._refuse(begin.tag, error)
            return
        # No await between the commit and this subscription: nothing can happen to the row unseen.
        self._open[begin.tag].follow(begun, self._relay)
        self.outbox.put_nowait(pb.SignInSessionResponse(tag=begin.tag, begun=_begun(begun)))

    async def _cancel(self, tag: int) -> None:
        found = self._open.get(tag)
        if found is not None and found.begun is not None:
            await self._sign_ins.cancel(found.begun.sign_in.id, found.begun.token)

    def changed(self, tag: int, row: SignIn) -> None:
        """A sign-in of this stream changed: an approval is redeemed at once, everything else is told."""
        if row.state is SignInState.APPROVED:
            self._start(self._redeem(tag, row))
            return
        if row.state not in (SignInState.PENDING, SignInState.CONSUMED):
            self._finish(tag, pb.SignInSessionResponse(tag=tag, changed=_watched(row)))

    async def _redeem(self, tag: int, row: SignIn) -> None:
        try:
            issued = await self._sign_ins.consume(row.id)
        except KeyvouchError as error:
            self._refuse(tag, error)
            self._open_end(tag)
            return
        session = pb.RedeemSignInResponse(
            tokens=convert.tokens(issued), session=convert.session(issued.session, issued.user)
        )
        self._finish(tag, pb.SignInSessionResponse(tag=tag, session=session))

    def _finish(self, tag: int, last: pb.SignInSessionResponse) -> None:
        self.outbox.put_nowait(last)
        self._open_end(tag)

    def _open_end(self, tag: int) -> None:
        found = self._open.pop(tag, None)
        if found is not None:
            found.unfollow(self._relay)
        self._end_when_idle()

    def _refuse(self, tag: int, error: KeyvouchError) -> None:
        refusal = pb.SignInSessionRefusal(
            kind=type(error).__name__,
            reason=error.reason.value,
            message=error.message,
            fix=error.fix,
            metadata=error.metadata,
            retry_after=error.retry_after if isinstance(error, ThrottledError) else 0.0,
        )
        self.outbox.put_nowait(pb.SignInSessionResponse(tag=tag, refusal=refusal))

    def close(self) -> None:
        """Let go of everything; the sign-ins themselves go on and can be followed with their tokens."""
        for tag in tuple(self._open):
            self._open_end(tag)
        for task in tuple(self._tasks):
            task.cancel()


class _OpenSignIn:
    """One sign-in of a stream."""

    def __init__(self, tag: int, stream: _SignInStream) -> None:
        self.begun: BegunSignIn | None = None
        self._tag = tag
        self._stream = stream

    def follow(self, begun: BegunSignIn, relay: Relay) -> None:
        self.begun = begun
        relay.watch(begun.sign_in.id, self._changed)

    def unfollow(self, relay: Relay) -> None:
        if self.begun is not None:
            relay.unwatch(self.begun.sign_in.id, self._changed)

    def _changed(self, row: SignIn) -> None:
        self._stream.changed(self._tag, row)


async def _opening(requests: AsyncIterator[pb.SignInSessionRequest]) -> pb.SignInSessionOpen:
    try:
        async with asyncio.timeout(OPENING_SECONDS):
            first = await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        first = pb.SignInSessionRequest()
    if first.WhichOneof("event") != "open":
        raise UnauthenticatedError(
            Reason.PROOF_INVALID,
            "The stream did not begin with a proof of the client's key.",
            fix="Answer the nonce with the proof key and a signature over it.",
        )
    return first.open


def _request(context: pb.SignInContext, proof_key: bytes, peer: str) -> SignInRequest:
    address, place = convert.address_of(peer)
    return SignInRequest(
        tenant=context.tenant,
        username=context.username,
        app_id=context.app_id,
        app_name=context.app_name or context.app_id,
        audience=context.audience,
        binding_message=context.binding_message,
        proof_key=proof_key,
        address=address,
        place=place,
    )


def _begun(begun: BegunSignIn) -> pb.BeginSignInResponse:
    return pb.BeginSignInResponse(
        sign_in_id=begun.sign_in.id,
        sign_in_token=begun.token,
        number=begun.sign_in.number,
        expires_at=begun.sign_in.expires_at,
        methods=_METHODS,
    )


def _watched(row: SignIn) -> pb.WatchSignInResponse:
    return pb.WatchSignInResponse(state=convert.state(row.state), expires_at=row.expires_at)


def _too_many() -> ThrottledError:
    return ThrottledError(
        Reason.THROTTLED,
        "The tag is in use, or too many sign-ins are open on this stream.",
        retry_after=1.0,
        fix="Wait until some have ended.",
    )
