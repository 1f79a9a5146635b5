"""A session in the hands of its client: tokens, the proof key they are bound to, refreshing and ending.

    stub = OrdersStub(channel)
    await stub.ListOrders(request, metadata=await session.metadata())

or, on a TLS channel, once and for all:

    credentials = grpc.composite_channel_credentials(tls, session.call_credentials())

The access token is refreshed when less than a minute of it is left. Not here: keeping a session in a file
(`session_file`), and judging other people's sessions (`interceptor`).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import ServerId
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2, sessions_pb2
from keyvouch_client.backoff import persist
from keyvouch_client.connection import Connection
from keyvouch_client.errors import answer

__all__ = ["Session", "TokenKeeper"]

_REFRESH_BEFORE = 60
"""Seconds of life an access token has to have left to be handed out."""

_REFRESH_PATIENCE = 20.0
"""Seconds for which a refresh is tried again when nobody answers: repeating it gives the same token."""

Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Method(Protocol[Request_contra, Response_co]):
    """A unary method of a stub."""

    def __call__(
        self, request: Request_contra, /, *, timeout: float | None, metadata: tuple[tuple[str, str], ...]
    ) -> Awaitable[Response_co]: ...


class TokenKeeper(Protocol):
    """Where the tokens of a session are stored between processes; see `session_file`."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep every other process from refreshing while the context lasts."""

    def load(self) -> common_pb2.SessionTokens | None:
        """The tokens as stored, perhaps by another process; None where the session is not stored any more."""

    def save(self, tokens: common_pb2.SessionTokens) -> None:
        """Store new tokens."""


class Session:
    """An open session. `details` is what the server said of it when it began; tokens change over time.

    `proof_key` is None for a session opened by a Temporary Access Pass, which cannot be refreshed. `keeper` stores the
    tokens where several processes share one session; without it they live in this object alone.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        server_id: ServerId,
        tokens: common_pb2.SessionTokens,
        details: common_pb2.Session,
        proof_key: ec.EllipticCurvePrivateKey | None,
        keeper: TokenKeeper | None = None,
    ) -> None:
        self.connection = connection
        self.server_id = server_id
        self.tokens = tokens
        self.details = details
        self.proof_key = proof_key
        self._keeper = keeper
        self._refreshing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Session({self.session_id!r}, username={self.details.username!r})"

    @property
    def session_id(self) -> str:
        """Id of the session on the server."""
        return self.tokens.session_id

    async def access_token(self) -> str:
        """An access token with at least a minute to live, or the session's last one.

        Raises `UnauthenticatedError` with SESSION_REVOKED, SESSION_EXPIRED or CREDENTIALS_INVALID, or
        `UnavailableError`.
        """
        if time.time() >= self.tokens.access_expires_at - _REFRESH_BEFORE:
            await self._refresh_unless_changed(self.tokens.access_token)
        return self.tokens.access_token

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata that authenticates one call. Raises as `access_token`."""
        return (("authorization", f"Bearer {await self.access_token()}"),)

    def call_credentials(self) -> grpc.CallCredentials:
        """Credentials for gRPC calls on TLS channels, refreshed on the event loop that runs now."""
        return grpc.metadata_call_credentials(_TokenPlugin(self, asyncio.get_running_loop()), "keyvouch")

    async def call(self, method: _Method[Request, Response], request: Request) -> Response:
        """Make a unary call of a Keyvouch service in this session; refreshes once where the clocks disagree."""
        metadata = await self.metadata()
        used = self.tokens.access_token
        try:
            return await answer(method(request, timeout=self.connection.deadline, metadata=metadata))
        except KeyvouchError as error:
            if error.reason is not Reason.TOKEN_EXPIRED or not self.tokens.refresh_token:
                raise
        await self._refresh_unless_changed(used)
        metadata = (("authorization", f"Bearer {self.tokens.access_token}"),)
        return await answer(method(request, timeout=self.connection.deadline, metadata=metadata))

    async def refresh(self) -> None:
        """Exchange the tokens for new ones now. Raises as `access_token`."""
        await self._refresh_unless_changed(self.tokens.access_token)

    async def revoke(self) -> None:
        """End this session on the server. Ending an ended one succeeds."""
        request = sessions_pb2.RevokeSessionRequest(session_id=self.session_id)
        await self.call(self.connection.sessions.RevokeSession, request)

    async def _refresh_unless_changed(self, old_access_token: str) -> None:
        async with self._refreshing:
            if self._keeper is None:
                await self._refresh_alone(old_access_token)
                return
            with self._keeper.exclusive():
                self.tokens = self._keeper.load() or self.tokens
                await self._refresh_alone(old_access_token)
                self._keeper.save(self.tokens)

    async def _refresh_alone(self, old_access_token: str) -> None:
        if self.tokens.access_token != old_access_token:
            return
        if self.proof_key is None or not self.tokens.refresh_token:
            self._check_alive()
            return
        token_hash = hashlib.sha256(self.tokens.refresh_token.encode()).digest()
        proof = sign_proof(self.proof_key, Purpose.REFRESH, proof_statement(self.server_id, token_hash))
        request = sessions_pb2.RefreshSessionRequest(refresh_token=self.tokens.refresh_token, proof=proof)
        connection = self.connection

        def attempt() -> Awaitable[sessions_pb2.RefreshSessionResponse]:
            return answer(connection.sessions.RefreshSession(request, timeout=connection.deadline))

        response = await persist(attempt, seconds=_REFRESH_PATIENCE, backoff=connection.backoff)
        self.tokens = response.tokens

    def _check_alive(self) -> None:
        if time.time() >= self.tokens.access_expires_at:
            raise UnauthenticatedError(
                Reason.SESSION_EXPIRED,
                "The session has ended; one opened with a Temporary Access Pass cannot be prolonged.",
                fix="Sign in again.",
            )


class _TokenPlugin(grpc.AuthMetadataPlugin):
    """Answers gRPC, which asks from a thread of its own, with a token made on the session's event loop."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._loop = loop

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        del context  # the token goes to whom the channel was made for; TLS has checked who that is
        asyncio.run_coroutine_threadsafe(self._answer(callback), self._loop)

    async def _answer(self, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            metadata = await self._session.metadata()
        except KeyvouchError as error:
            callback((), error)
        else:
            callback(metadata, None)
