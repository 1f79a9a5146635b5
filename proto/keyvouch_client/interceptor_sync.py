"""`RequireSessionSync`: the twin of `interceptor.RequireSession` for servers with threads (`grpc.server`).

    channel = grpc.secure_channel("keyvouch.example.org:7443", credentials)
    guard = RequireSessionSync(jwks_from_channel(channel), rules, introspect=channel)
    server = grpc.server(ThreadPoolExecutor(), interceptors=[guard])

The judgement is the same (`access`); it runs in the thread of the call, because it may have to ask the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from keyvouch.errors import KeyvouchError
from keyvouch.tokens import AccessTokenClaims
from keyvouch.v1 import sessions_pb2, sessions_pb2_grpc
from keyvouch_client.access import AccessRules, bearer_token, check_certificate, check_live, refusal_for
from keyvouch_client.errors import error_from, status_for
from keyvouch_client.interceptor import introspection_failure
from keyvouch_client.jwks import SyncJwksCache, SyncJwksSource
from keyvouch_client.proof_checks import ProofChecks
from keyvouch_client.session_context import Handler, bind, current_session

__all__ = ["RequireSessionSync", "current_session"]

_LOG = logging.getLogger(__name__)


class RequireSessionSync(grpc.ServerInterceptor):
    """Refuses every call without a session that satisfies `rules`. See `RequireSession`.

    `introspect` is a channel to the Keyvouch server, `deadline` the seconds it may take to answer.
    """

    def __init__(
        self,
        keys: SyncJwksSource,
        rules: AccessRules,
        *,
        introspect: grpc.Channel | None = None,
        deadline: float = 10.0,
    ) -> None:
        self._rules = rules
        self._keys = SyncJwksCache(keys, issuer=rules.issuer)
        self._proofs = ProofChecks(rules.server_id)
        self._sessions = sessions_pb2_grpc.SessionServiceStub(introspect) if introspect is not None else None
        self._deadline = deadline

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the judgement in front of the handler. Part of the gRPC interface."""
        handler: Handler | None = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or self._rules.is_open(method):
            return handler
        return bind(handler, lambda context: self._admit(method, context))

    def _admit(self, method: str, context: grpc.ServicerContext) -> AccessTokenClaims:
        try:
            return self._judge(method, context)
        except KeyvouchError as error:
            _LOG.info("refused a call of %r: %s", method, error.reason)
            context.abort_with_status(rpc_status.to_status(status_for(refusal_for(error))))
            raise  # never reached: aborting raises

    def _judge(self, method: str, context: grpc.ServicerContext) -> AccessTokenClaims:
        token = bearer_token(context.invocation_metadata())
        keys = self._keys.keys_for(token)
        now, metadata = int(time.time()), context.invocation_metadata()
        claims = self._rules.judge(token, method=method, keys=keys, now=now)
        check_certificate(claims, context.auth_context())
        self._proofs.check(claims, token, method=method, metadata=metadata, now=now)
        if self._sessions is not None:
            self._check_with_server(self._sessions, token, claims)
        return claims

    def _check_with_server(
        self, sessions: sessions_pb2_grpc.SessionServiceStub, token: str, claims: AccessTokenClaims
    ) -> None:
        metadata = (("authorization", f"Bearer {token}"),)
        request = sessions_pb2.IntrospectSessionRequest()
        try:
            answered = sessions.IntrospectSession(request, timeout=self._deadline, metadata=metadata)
        except grpc.RpcError as error:
            raise introspection_failure(error_from(error)) from error
        check_live(claims, answered.session)
