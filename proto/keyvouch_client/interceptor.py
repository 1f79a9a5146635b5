"""`RequireSession`: a `grpc.aio` server interceptor that lets signed-in callers through.

    rules = AccessRules(
        issuer="https://keyvouch.example.org",
        audience="https://orders.example.org",
        methods={"/orders.v1.Orders/Delete": Requirement(acr=frozenset({"phishing-resistant"}), max_age=300)},
        open_methods=frozenset({"/grpc.health.v1.Health/Check"}),
    )
    server = grpc.aio.server(interceptors=[RequireSession(connection, rules, introspect=connection)])

`connection` is a `Connection` to the Keyvouch server, or a `JwksDocument` where keys are pinned. Without `introspect` a
token is good until it expires, minutes after its issue; with it every call asks the server and sees revocation at once.
Inside a handler, `current_session()` gives the verified claims.

Not here: the judgement itself (`access`), and servers with threads (`interceptor_sync`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from grpc import aio
from grpc_status import rpc_status

from keyvouch.errors import KeyvouchError, Reason, RefusedError, ThrottledError, UnavailableError
from keyvouch.tokens import AccessTokenClaims
from keyvouch.v1 import sessions_pb2
from keyvouch_client.access import AccessRules, bearer_token, check_certificate, check_live, refusal_for
from keyvouch_client.connection import Connection
from keyvouch_client.errors import answer, status_for
from keyvouch_client.jwks import JwksCache, JwksSource
from keyvouch_client.proof_checks import ProofChecks
from keyvouch_client.session_context import Handler, bind, bind_async, current_session, is_asynchronous, remember

__all__ = ["RequireSession", "current_session"]

_LOG = logging.getLogger(__name__)


class RequireSession(aio.ServerInterceptor):
    """Refuses every call without a session that satisfies `rules`, before any other code of the server runs.

    A token that is bound to a TLS certificate (RFC 8705) is accepted only over a connection with that certificate, for
    which the server has to ask its clients (`require_client_auth`); this is looked at just before the handler runs.

    Callers see UNAUTHENTICATED, PERMISSION_DENIED, or UNAVAILABLE while keys or introspection cannot be had, each with
    `google.rpc.ErrorInfo`. The precise reason goes to this module's logger; tokens never do.
    """

    def __init__(self, keys: JwksSource, rules: AccessRules, *, introspect: Connection | None = None) -> None:
        self._rules = rules
        self._keys = JwksCache(keys, issuer=rules.issuer)
        self._proofs = ProofChecks(rules.server_id)
        self._introspect = introspect

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Judge the call, then pass it on. Part of the gRPC interface."""
        if self._rules.is_open(handler_call_details.method):
            remember(None)
            return await continuation(handler_call_details)
        try:
            claims = await self._admit(handler_call_details)
        except KeyvouchError as error:
            _LOG.info("refused a call of %r: %s", handler_call_details.method, error.reason)
            return _refusing(refusal_for(error))
        remember(claims)
        handler = await continuation(handler_call_details)
        return None if handler is None else _guarded(handler, claims)

    async def _admit(self, call: grpc.HandlerCallDetails) -> AccessTokenClaims:
        token = bearer_token(call.invocation_metadata)
        keys = await self._keys.keys_for(token)
        now = int(time.time())
        claims = self._rules.judge(token, method=call.method, keys=keys, now=now)
        self._proofs.check(claims, token, method=call.method, metadata=call.invocation_metadata, now=now)
        if self._introspect is not None:
            await _check_with_server(self._introspect, token, claims)
        return claims


async def _check_with_server(server: Connection, token: str, claims: AccessTokenClaims) -> None:
    metadata = (("authorization", f"Bearer {token}"),)
    call = server.sessions.IntrospectSession(
        sessions_pb2.IntrospectSessionRequest(), timeout=server.deadline, metadata=metadata
    )
    try:
        answered = await answer(call)
    except KeyvouchError as error:
        raise introspection_failure(error) from error
    check_live(claims, answered.session)


def introspection_failure(error: KeyvouchError) -> KeyvouchError:
    """A refusal is the session's end; anything else means that the server could not be asked."""
    if isinstance(error, RefusedError) and not isinstance(error, ThrottledError):
        return error
    return UnavailableError(
        Reason.SERVER_UNREACHABLE, "Whether the session still lives cannot be found out now.", fix="Try again."
    )


def _guarded(handler: Handler, claims: AccessTokenClaims) -> Handler:
    if not is_asynchronous(handler):
        return bind(handler, lambda context: _held(claims, context))
    return bind_async(handler, lambda context: _hold(claims, context)) if claims.certificate_thumbprint else handler


async def _hold(claims: AccessTokenClaims, context: aio.ServicerContext[Any, Any]) -> None:
    """Only the call itself knows what certificate its connection has, so this is asked last."""
    refusal = _refusal(claims, context.auth_context())
    if refusal is not None:
        await context.abort_with_status(refusal)


def _held(claims: AccessTokenClaims, context: grpc.ServicerContext) -> AccessTokenClaims:
    """The same for handlers with threads, whose context on this kind of server lacks `abort_with_status`."""
    refusal = _refusal(claims, context.auth_context())
    if refusal is not None:
        context.set_trailing_metadata(refusal.trailing_metadata)
        context.abort(refusal.code, refusal.details)
    return claims


def _refusal(claims: AccessTokenClaims, auth_context: Mapping[str, Any]) -> Any:
    try:
        check_certificate(claims, auth_context)
    except KeyvouchError as error:
        _LOG.info("refused a call with the token of session %s: %s", claims.session_id, error.reason)
        return rpc_status.to_status(status_for(refusal_for(error)))
    return None


def _refusing(error: KeyvouchError) -> Handler:
    """A handler that reads nothing and refuses; streaming both ways, it answers calls of all four kinds."""

    async def refuse(_requests: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort_with_status(rpc_status.to_status(status_for(error)))

    return grpc.stream_stream_rpc_method_handler(refuse)
