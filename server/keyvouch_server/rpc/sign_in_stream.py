"""One SignInSession stream: many sign-ins of one proved key, told apart by their tags."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, Final

from keyvouch.errors import KeyvouchError, MalformedError, Reason, ThrottledError
from keyvouch.v1 import sign_in_pb2 as pb
from keyvouch_server.domain.model import SignIn, SignInState
from keyvouch_server.relay import Relay
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.interceptors import internal_error
from keyvouch_server.rpc.sign_in_messages import campaign_message, method_message
from keyvouch_server.use_cases.offering import SignInRequest
from keyvouch_server.use_cases.redemption import Redeemed, Redemptions
from keyvouch_server.use_cases.sign_in import BegunSignIn, SignIns

OPEN_PER_STREAM: Final = 4096
"""Sign-ins one SignInSession stream may have open at a time."""
BACKLOG: Final = 512
"""Messages of one stream under way or waiting to be sent; the client's next ones are read when there is room (G4)."""

_log = logging.getLogger("keyvouch.rpc")


class SignInStream:
    """One SignInSession stream: its open sign-ins by tag, and what waits to be sent."""

    def __init__(self, sign_ins: SignIns, redemptions: Redemptions, relay: Relay, proof_key: bytes, peer: str) -> None:
        self.outbox: asyncio.Queue[pb.SignInSessionResponse | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._sign_ins = sign_ins
        self._redemptions = redemptions
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
            self._start(request.begin.tag, self._begin(request.begin))
        elif event == "cancel":
            self._start(request.cancel.tag, self._cancel(request.cancel.tag))
        else:
            raise MalformedError(
                Reason.FIELD_INVALID, "After its opening, a client sends begin or cancel.", fix="Update the client."
            )

    def _start(self, tag: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(tag, work))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.set()
        self._end_when_idle()

    async def _guard(self, tag: int, work: Coroutine[Any, Any, None]) -> None:
        """Whatever goes wrong, the client is told: a tag never stays without an answer."""
        try:
            await work
        except KeyvouchError as error:
            self._refuse(tag, error)
        except Exception:  # noqa: BLE001 - as in the interceptor: nothing but a coded refusal leaves the server
            _log.exception("unexpected error")
            self._refuse(tag, internal_error())

    async def _begin(self, begin: pb.SignInSessionBegin) -> None:
        if begin.tag in self._open or len(self._open) >= OPEN_PER_STREAM:
            self._tell(begin.tag, _too_many())
            return
        opened = self._open[begin.tag] = _OpenSignIn(begin.tag, self)
        begun = await self._sign_ins.begin(
            request_of(begin.context, self._proof_key, self._peer, known_client=begin.known_client)
        )
        # No await between the commit and this subscription: nothing can happen to the row unseen by this node, and what
        # another one did to it already is looked up.
        opened.follow(begun, self._relay)
        self.outbox.put_nowait(pb.SignInSessionResponse(tag=begin.tag, begun=begun_message(begun)))
        if opened.is_cancelled:
            await self._sign_ins.cancel(begun.sign_in.id, begun.token)

    async def _cancel(self, tag: int) -> None:
        found = self._open.get(tag)
        if found is None:
            return
        found.is_cancelled = True
        if found.begun is not None:
            await self._sign_ins.cancel(found.begun.sign_in.id, found.begun.token)

    def changed(self, tag: int, row: SignIn) -> None:
        """A sign-in of this stream changed: an approval is redeemed, everything else is told."""
        if row.state in (SignInState.APPROVED, SignInState.CONSUMED):
            self._start(tag, self._redeem(tag, row))
        elif row.state is not SignInState.PENDING:
            self._finish(tag, pb.SignInSessionResponse(tag=tag, changed=watched_message(row)))

    async def _redeem(self, tag: int, row: SignIn) -> None:
        try:
            redeemed = await self._redemptions.consume(row.id)
        except KeyvouchError:
            if self._is_open(tag, row):
                raise
            return  # it ended meanwhile and was told; the tag may be another's by now
        self._finish(tag, pb.SignInSessionResponse(tag=tag, session=redeemed_message(redeemed)))

    def _is_open(self, tag: int, row: SignIn) -> bool:
        found = self._open.get(tag)
        return found is not None and found.begun is not None and found.begun.sign_in.id == row.id

    def _finish(self, tag: int, last: pb.SignInSessionResponse) -> None:
        self.outbox.put_nowait(last)
        self._open_end(tag)

    def _open_end(self, tag: int) -> None:
        found = self._open.pop(tag, None)
        if found is not None:
            found.unfollow(self._relay)
        self._end_when_idle()

    def _refuse(self, tag: int, error: KeyvouchError) -> None:
        """The sign-in of this tag is over, with an error."""
        self._tell(tag, error)
        self._open_end(tag)

    def _tell(self, tag: int, error: KeyvouchError) -> None:
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

    def __init__(self, tag: int, stream: SignInStream) -> None:
        self.begun: BegunSignIn | None = None
        self.is_cancelled = False
        self._is_approved = False
        self._tag = tag
        self._stream = stream

    def follow(self, begun: BegunSignIn, relay: Relay) -> None:
        self.begun = begun
        relay.watch(begun.sign_in.id, self._changed)

    def unfollow(self, relay: Relay) -> None:
        if self.begun is not None:
            relay.unwatch(self.begun.sign_in.id, self._changed)

    def _changed(self, row: SignIn | None) -> None:
        """The first word of an approval is passed on. That may be `consumed`: of another node's acts, only the last."""
        assert self.begun is not None
        now = as_it_is(row, self.begun.sign_in)
        approved = now.state in (SignInState.APPROVED, SignInState.CONSUMED)
        if not (approved and self._is_approved):
            self._is_approved |= approved
            self._stream.changed(self._tag, now)


def as_it_is(row: SignIn | None, before: SignIn) -> SignIn:
    """A sign-in that changed. One that has ceased to be was cancelled, and is gone with its user."""
    return row or replace(before, state=SignInState.CANCELLED)


def request_of(context: pb.SignInContext, proof_key: bytes, peer: str, *, known_client: str = "") -> SignInRequest:
    """A request with what the connection tells of where it came from."""
    address, place = convert.address_of(peer)
    required = ""
    if context.HasField("required_assurance"):
        required = convert.requirement_from(context.required_assurance, "context.required_assurance")
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
        required_assurance=required,
        phishing_resistant=context.phishing_resistant,
        known_client=known_client,
    )


def begun_message(begun: BegunSignIn) -> pb.BeginSignInResponse:
    """What the client is told of a sign-in it began."""
    return pb.BeginSignInResponse(
        sign_in_id=begun.sign_in.id,
        sign_in_token=begun.token,
        number=begun.sign_in.number,
        expires_at=begun.sign_in.expires_at,
        methods=[method_message(method) for method in begun.methods],
    )


def redeemed_message(redeemed: Redeemed) -> pb.RedeemSignInResponse:
    """A session with its tokens, and what its client is told beside."""
    issued = redeemed.issued
    return pb.RedeemSignInResponse(
        tokens=convert.tokens(issued),
        session=convert.session(issued.session, issued.user),
        known_client=redeemed.known_client,
        campaigns=[campaign_message(one) for one in redeemed.due],
        open_risk_events=redeemed.open_risk_events,
    )


def watched_message(row: SignIn) -> pb.WatchSignInResponse:
    """A sign-in as a watcher sees it."""
    return pb.WatchSignInResponse(state=convert.state(row.state), expires_at=row.expires_at)


def _too_many() -> ThrottledError:
    return ThrottledError(
        Reason.THROTTLED,
        "The tag is in use, or too many sign-ins are open on this stream.",
        retry_after=1.0,
        fix="Wait until some have ended.",
    )
