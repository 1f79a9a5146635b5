"""A session in the hands of its client: tokens, the proof key they are bound to, refreshing and ending.

    stub = OrdersStub(channel)
    await stub.ListOrders(request, metadata=await session.metadata())

or, on a TLS channel, once and for all:

    credentials = grpc.composite_channel_credentials(tls, session.call_credentials())

The access token is refreshed when less than a minute of it is left. Calls of Keyvouch itself are proved with the
session's key on their way (`call_proofs`). Not here: keeping a session in a file
(`session_file`), and judging other people's sessions (`interceptor`).
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import secrets
import time
from collections.abc import Awaitable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.call_proof import METADATA_KEY
from keyvouch.errors import KeyvouchError, Reason, UnauthenticatedError
from keyvouch.ids import ServerId
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.v1 import common_pb2, sessions_pb2
from keyvouch_client.backoff import persist
from keyvouch_client.call_proofs import ProofKey
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
    tokens where several processes share one session; without it they live in this object alone. `campaigns` is what
    the person has to register, and `open_risk_events` counts what nobody has looked at: both as the sign-in told them,
    and empty for a session that was stored. `known_client` is for the next sign-in of this user at this client.
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
        campaigns: Iterable[common_pb2.CampaignNotice] = (),
        open_risk_events: int = 0,
        known_client: str = "",
    ) -> None:
        self.connection = connection
        self.server_id = server_id
        self.tokens = tokens
        self.details = details
        self.proof_key = proof_key
        self.campaigns = tuple(campaigns)
        self.open_risk_events = open_risk_events
        self.known_client = known_client
        self._hold_key()
        self._keeper = keeper
        self._refreshing = asyncio.Lock()

    def _hold_key(self) -> None:
        if self.proof_key is not None:
            self.connection.prover.hold(ProofKey(self.session_id, self.server_id, self.proof_key))

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
        self._hold_key()
        if time.time() >= self.tokens.access_expires_at - _REFRESH_BEFORE:
            await self._refresh_unless_changed(self.tokens.access_token)
        return self.tokens.access_token

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata that authenticates one call, over `connection` or at a resource server. Raises as `access_token`."""
        return (("authorization", f"Bearer {await self.access_token()}"),)

    async def proved_metadata(self, method: str) -> tuple[tuple[str, str | bytes], ...]:
        """The same with the proof of the session's key for one call of `method` (`/package.Service/Name`).

        Over `connection` calls are proved as they go; this is for calls of the same server over another channel.
        """
        token = await self.access_token()
        proof = self.connection.prover.proof(method, token)
        return (("authorization", f"Bearer {token}"), *(((METADATA_KEY, proof),) if proof else ()))

    def call_credentials(self) -> grpc.CallCredentials:
        """Credentials for gRPC calls on TLS channels, each proved; refreshed on the event loop that runs now."""
        return grpc.metadata_call_credentials(_TokenPlugin(self, asyncio.get_running_loop()), "keyvouch")

    async def call(self, method: _Method[Request, Response], request: Request) -> Response:
        """Make a unary call of a Keyvouch service in this session; made again where the clocks disagree.

        A request that changes something is sent with a fresh `request_id` where it has none, so that it may be sent
        again. The message itself stays as it is: whoever calls with it twice means two requests.
        """
        if getattr(request, "request_id", None) == "":
            request = copy.deepcopy(request)
            setattr(request, "request_id", secrets.token_hex(16))  # noqa: B010 - not every request has the field
        await self.access_token()
        for _ in range(2):
            used = self.tokens.access_token
            try:
                return await self._call_with(used, method, request)
            except KeyvouchError as error:
                if not await self._clocks_agree_now(error, used):
                    raise
        return await self._call_with(self.tokens.access_token, method, request)

    def _call_with(self, token: str, method: _Method[Request, Response], request: Request) -> Awaitable[Response]:
        metadata = (("authorization", f"Bearer {token}"),)
        return answer(method(request, timeout=self.connection.deadline, metadata=metadata))

    async def _clocks_agree_now(self, refusal: KeyvouchError, used: str) -> bool:
        """Whether a call was refused because of the time, and is worth to be made again."""
        if refusal.reason is Reason.TOKEN_EXPIRED and self.tokens.refresh_token:
            await self._refresh_unless_changed(used)
            return True
        return self.connection.prover.learn_time(refusal)

    async def refresh(self) -> None:
        """Exchange the tokens for new ones now. Raises as `access_token`."""
        await self._refresh_unless_changed(self.tokens.access_token)

    async def revoke(self) -> None:
        """End this session on the server. Ending an ended one succeeds."""
        request = sessions_pb2.RevokeSessionRequest(session_id=self.session_id)
        await self.call(self.connection.sessions.RevokeSession, request)
        self.connection.prover.forget(self.session_id)

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
        # The token goes to whom the channel was made for; TLS has checked who that is.
        method = f"{urlsplit(context.service_url).path}/{context.method_name}"
        asyncio.run_coroutine_threadsafe(self._answer(method, callback), self._loop)

    async def _answer(self, method: str, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            metadata = await self._session.proved_metadata(method)
        except KeyvouchError as error:
            callback((), error)
        else:
            callback(metadata, None)
