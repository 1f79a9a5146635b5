"""A Keyvouch server in the test's own process: real gRPC, real proofs, real tokens, rules enough for a client.

`FakeServer` can be stopped and started again on the same port with the same `FakeWorld`, as a server restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from keyvouch.errors import (
    EvidenceError,
    KeyvouchError,
    PermissionDeniedError,
    Reason,
    RefusedError,
    ThrottledError,
    UnauthenticatedError,
    UnavailableError,
)
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import (
    administration_pb2_grpc,
    common_pb2,
    security_info_pb2,
    security_info_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    sign_in_pb2,
    sign_in_pb2_grpc,
)
from support.fake_world import ENDED, ISSUER, FakeWorld, SessionRow, SignInRow, refused, unauthenticated

_CODES = (
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (ThrottledError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
    (EvidenceError, grpc.StatusCode.UNAUTHENTICATED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
)


def rich_status(error: KeyvouchError) -> grpc.Status:
    """The status a Keyvouch server sends for an error."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INVALID_ARGUMENT)
    status = status_pb2.Status(code=code.value[0], message=error.message)
    told = error_details_pb2.ErrorInfo(domain="keyvouch", reason=error.reason.value, metadata=error.metadata)
    told.metadata["kind"] = type(error).__name__
    told.metadata["fix"] = error.fix
    status.details.add().Pack(told)
    if isinstance(error, ThrottledError):
        nanos = int(error.retry_after * 1e9)
        delay = Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)


def credential(context: aio.ServicerContext[Any, Any], scheme: str) -> str:
    """The credential of a call, of one scheme."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and str(value).startswith(f"{scheme} "):
            return str(value).removeprefix(f"{scheme} ")
    raise unauthenticated(Reason.CREDENTIALS_MISSING)


class TellErrors(aio.ServerInterceptor):
    """Keeps a list of the calls and turns Keyvouch's errors into statuses."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        self._world.calls.append(details.method.rpartition("/")[2])
        handler = await continuation(details)
        if handler is None or handler.response_streaming:
            return handler
        behaviour: Callable[..., Coroutine[Any, Any, Any]] = handler.unary_unary

        async def told(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(request, context)
            except KeyvouchError as error:
                await context.abort_with_status(rich_status(error))

        return grpc.unary_unary_rpc_method_handler(
            told,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def begun_of(row: SignInRow) -> sign_in_pb2.BeginSignInResponse:
    """What the client learns of a new sign-in."""
    return sign_in_pb2.BeginSignInResponse(
        sign_in_id=row.sign_in_id,
        sign_in_token=row.token,
        number=row.number,
        expires_at=row.expires_at,
        methods=[common_pb2.SIGN_IN_METHOD_APPROVAL, common_pb2.SIGN_IN_METHOD_ACCESS_PASS],
    )


class SignIns(sign_in_pb2_grpc.SignInServiceServicer):
    """The sign-in service over a world."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def BeginSignIn(self, request: Any, context: Any) -> Any:
        return begun_of(await self._world.begin(request.context, request.proof_public_key))

    async def WatchSignIn(self, request: Any, context: Any) -> Any:
        try:
            row = self._world.sign_in_of(request.sign_in_id, credential(context, "SignIn"))
        except KeyvouchError as error:
            await context.abort_with_status(rich_status(error))
        state = row.state
        while True:
            yield sign_in_pb2.WatchSignInResponse(state=state, expires_at=row.expires_at)  # type: ignore[arg-type]
            if state != common_pb2.SIGN_IN_STATE_PENDING:
                return
            state = await self._world.next_state(row, state)

    async def RedeemSignIn(self, request: Any, context: Any) -> Any:
        row = self._world.sign_in_of(request.sign_in_id, credential(context, "SignIn"))
        session = self._world.redeem_with_proof(row, request.proof)
        if self._world.lost_redeem_replies:
            self._world.lost_redeem_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return self._redeemed(session)

    async def CompleteSecurityKeySignIn(self, request: Any, context: Any) -> Any:
        """No security key is known here."""
        self._world.sign_in_of(request.sign_in_id, credential(context, "SignIn"))
        raise UnauthenticatedError(Reason.SECURITY_KEY_REFUSED, "No such key.", fix="Use another way.")

    async def CancelSignIn(self, request: Any, context: Any) -> Any:
        row = self._world.sign_in_of(request.sign_in_id, credential(context, "SignIn"))
        if row.state == common_pb2.SIGN_IN_STATE_PENDING:
            await self._world.decide(row.sign_in_id, common_pb2.SIGN_IN_STATE_CANCELLED)
        return sign_in_pb2.CancelSignInResponse(state=row.state)  # type: ignore[arg-type]

    async def SignInWithAccessPass(self, request: Any, context: Any) -> Any:
        if self._world.access_passes.get(request.username) != request.access_pass:
            raise UnauthenticatedError(Reason.ACCESS_PASS_REFUSED, "That did not work.", fix="Ask for a new pass.")
        sign_in = sign_in_pb2.SignInContext(tenant=request.tenant, username=request.username, app_id="keyvouch")
        session = self._world.new_session(sign_in, acr="access-pass", amr=("otp",), key=None)
        return sign_in_pb2.SignInWithAccessPassResponse(tokens=self._world.tokens_of(session), session=session.session)

    async def SignInSession(self, request_iterator: Any, context: Any) -> Any:
        requests = aiter(request_iterator)
        nonce = os.urandom(32)
        first = sign_in_pb2.SignInSessionNonce(nonce=nonce, server_id=self._world.server_id)
        yield sign_in_pb2.SignInSessionResponse(nonce=first)
        opening = (await anext(requests)).open
        try:
            statement = proof_statement(self._world.server_id, nonce)
            key = load_proof_key(opening.proof_public_key)
            verify_proof(key, Purpose.SIGN_IN_SESSION, statement, signature=opening.proof)
        except KeyvouchError as error:
            await context.abort_with_status(rich_status(error))
        async with contextlib.aclosing(requests), asyncio.TaskGroup() as tasks:
            stream = _Multiplex(self._world, opening.proof_public_key, tasks)
            tasks.create_task(stream.read(requests))
            while (event := await stream.events.get()) is not None:
                yield event

    def _redeemed(self, session: SessionRow) -> sign_in_pb2.RedeemSignInResponse:
        return sign_in_pb2.RedeemSignInResponse(tokens=self._world.tokens_of(session), session=session.session)


class _Multiplex:
    """One stream of many sign-ins after its proof."""

    def __init__(self, world: FakeWorld, spki: bytes, tasks: asyncio.TaskGroup) -> None:
        self.events: asyncio.Queue[sign_in_pb2.SignInSessionResponse | None] = asyncio.Queue()
        self._world = world
        self._spki = spki
        self._tasks = tasks
        self._rows: dict[int, SignInRow] = {}

    async def read(self, requests: AsyncIterator[sign_in_pb2.SignInSessionRequest]) -> None:
        async for request in requests:
            if request.WhichOneof("event") == "begin":
                self._tasks.create_task(self._follow(request.begin))
            elif (row := self._rows.get(request.cancel.tag)) is not None:
                await self._world.decide(row.sign_in_id, common_pb2.SIGN_IN_STATE_CANCELLED)
        self.events.put_nowait(None)

    async def _follow(self, begin: sign_in_pb2.SignInSessionBegin) -> None:
        try:
            row = self._rows[begin.tag] = await self._world.begin(begin.context, self._spki)
        except KeyvouchError as error:
            self._refuse(begin.tag, error)
            return
        self._send(begin.tag, begun=begun_of(row))
        state = await self._world.next_state(row, common_pb2.SIGN_IN_STATE_PENDING)
        if state in ENDED:
            self._send(begin.tag, changed=sign_in_pb2.WatchSignInResponse(state=state, expires_at=row.expires_at))  # type: ignore[arg-type]
            return
        session = self._world.redeem(row)
        redeemed = sign_in_pb2.RedeemSignInResponse(tokens=self._world.tokens_of(session), session=session.session)
        self._send(begin.tag, session=redeemed)

    def _send(self, tag: int, **event: Any) -> None:
        self.events.put_nowait(sign_in_pb2.SignInSessionResponse(tag=tag, **event))

    def _refuse(self, tag: int, error: KeyvouchError) -> None:
        self._send(
            tag,
            refusal=sign_in_pb2.SignInSessionRefusal(
                kind=type(error).__name__,
                reason=error.reason.value,
                message=error.message,
                fix=error.fix,
                metadata=error.metadata,
                retry_after=getattr(error, "retry_after", 0.0),
            ),
        )


class Sessions(sessions_pb2_grpc.SessionServiceServicer):
    """The session service over a world."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def GetJwks(self, request: Any, context: Any) -> Any:
        jwks = self._world.issuer.jwks()
        return sessions_pb2.GetJwksResponse(jwks=jwks, server_id=self._world.server_id, issuer=ISSUER)

    async def RefreshSession(self, request: Any, context: Any) -> Any:
        row = self._world.refresh(request.refresh_token, request.proof)
        if self._world.lost_refresh_replies:
            self._world.lost_refresh_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return sessions_pb2.RefreshSessionResponse(tokens=self._world.tokens_of(row))

    async def IntrospectSession(self, request: Any, context: Any) -> Any:
        row = self._world.authenticate(credential(context, "Bearer"))
        return sessions_pb2.IntrospectSessionResponse(session=row.session, role="global_administrator")

    async def ListSessions(self, request: Any, context: Any) -> Any:
        own = self._world.authenticate(credential(context, "Bearer")).session.user_id
        found = [row.session for row in self._world.sessions.values() if row.session.user_id == own]
        start = int(request.page.token or 0)
        end = start + 2  # small pages, so that clients have to turn them
        token = str(end) if end < len(found) else ""
        return sessions_pb2.ListSessionsResponse(sessions=found[start:end], next_token=token)

    async def RevokeSession(self, request: Any, context: Any) -> Any:
        own = self._world.authenticate(credential(context, "Bearer"))
        row = self._world.sessions.get(request.session_id or own.session.session_id)
        if row is None:
            raise refused(Reason.SESSION_UNKNOWN, "There is no such session.")
        row.session.revoked = True
        return sessions_pb2.RevokeSessionResponse()


class SecurityInfo(security_info_pb2_grpc.SecurityInfoServiceServicer):
    """The security info service over a world."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def GetSecurityInfo(self, request: Any, context: Any) -> Any:
        session = self._world.authenticate(credential(context, "Bearer")).session
        return security_info_pb2.GetSecurityInfoResponse(
            user_id=session.user_id,
            username=session.username,
            tenant_name="example",
            devices=[common_pb2.Device(device_id="dev_1", display_name="Lapt\x1b[31mop", connected=True)],
            warnings=["One device alone is one loss away from being locked out."],
        )

    async def RemoveDevice(self, request: Any, context: Any) -> Any:
        self._world.authenticate(credential(context, "Bearer"))
        return security_info_pb2.RemoveDeviceResponse(revoked_sessions=1)

    async def RenameDevice(self, request: Any, context: Any) -> Any:
        self._world.authenticate(credential(context, "Bearer"))
        device = common_pb2.Device(device_id=request.device_id, display_name=request.display_name)
        return security_info_pb2.RenameDeviceResponse(device=device)

    async def SetDefaultMethod(self, request: Any, context: Any) -> Any:
        self._world.authenticate(credential(context, "Bearer"))
        return security_info_pb2.SetDefaultMethodResponse()

    async def RevokeOtherSessions(self, request: Any, context: Any) -> Any:
        self._world.authenticate(credential(context, "Bearer"))
        return security_info_pb2.RevokeOtherSessionsResponse(revoked_sessions=2)

    async def GetOwnReceipt(self, request: Any, context: Any) -> Any:
        self._world.authenticate(credential(context, "Bearer"))
        return security_info_pb2.GetOwnReceiptResponse(receipt=b"receipt")

    async def ExplainOwnSignIn(self, request: Any, context: Any) -> Any:
        self._world.authenticate(credential(context, "Bearer"))
        allowed = common_pb2.RuleVerdict(rule="approval.enabled", outcome=common_pb2.RULE_OUTCOME_ALLOWED)
        return security_info_pb2.ExplainOwnSignInResponse(rules=[allowed], policy_version=1)


class FakeServer:
    """The services of a world on a loopback port that stays the same from start to start."""

    def __init__(
        self,
        world: FakeWorld,
        *,
        administration: administration_pb2_grpc.AdministrationServiceServicer | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.world = world
        self.address = ""
        self._administration = administration
        self._credentials = credentials
        self._server: aio.Server | None = None

    async def start(self) -> None:
        server = aio.server(interceptors=[TellErrors(self.world)], options=[("grpc.so_reuseport", 0)])
        sign_in_pb2_grpc.add_SignInServiceServicer_to_server(SignIns(self.world), server)
        sessions_pb2_grpc.add_SessionServiceServicer_to_server(Sessions(self.world), server)
        security_info_pb2_grpc.add_SecurityInfoServiceServicer_to_server(SecurityInfo(self.world), server)
        if self._administration is not None:
            administration_pb2_grpc.add_AdministrationServiceServicer_to_server(self._administration, server)
        address = self.address or "127.0.0.1:0"
        if self._credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, self._credentials)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Break every stream at once, as a crash does."""
        if self._server is not None:
            await self._server.stop(0)
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
