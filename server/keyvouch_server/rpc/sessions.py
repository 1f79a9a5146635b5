"""SessionService: a person's own sessions."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import sessions_pb2 as pb
from keyvouch.v1 import sessions_pb2_grpc as rpc
from keyvouch_server.keyring import Keyring
from keyvouch_server.rpc import convert
from keyvouch_server.rpc.cursors import Cursors
from keyvouch_server.rpc.interceptors import caller_of, must_be_proved
from keyvouch_server.use_cases.session_refresh import SessionRefreshes
from keyvouch_server.use_cases.sessions import Sessions, check_own_audience
from keyvouch_server.use_cases.world import ServerFacts


class SessionServicer(rpc.SessionServiceServicer):
    """Serves keyvouch.v1.SessionService."""

    def __init__(
        self,
        sessions: Sessions,
        refreshes: SessionRefreshes,
        keyring: Keyring,
        facts: ServerFacts,
        cursors: Cursors,
    ) -> None:
        self._sessions = sessions
        self._refreshes = refreshes
        self._cursors = cursors
        self._keyring = keyring
        self._facts = facts

    async def RefreshSession(self, request: pb.RefreshSessionRequest, context: Any) -> pb.RefreshSessionResponse:
        """See sessions.proto."""
        address, _ = convert.address_of(context.peer())
        issued = await self._refreshes.refresh(request.refresh_token, request.proof, address=address)
        return pb.RefreshSessionResponse(tokens=convert.tokens(issued))

    async def IntrospectSession(
        self, request: pb.IntrospectSessionRequest, context: Any
    ) -> pb.IntrospectSessionResponse:
        """See sessions.proto."""
        caller = caller_of()
        return pb.IntrospectSessionResponse(
            session=convert.session(caller.session, caller.user), role=caller.user.role.value
        )

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """See sessions.proto."""
        caller = caller_of()
        page = self._cursors.page(caller, request, own=True)
        rows = await self._sessions.sessions_of(caller.user.id, after=page.after, limit=page.size)
        return pb.ListSessionsResponse(
            sessions=[convert.session(row, caller.user) for row in rows],
            next_token=page.next_token(rows, lambda row: row.id),
        )

    async def RevokeSession(self, request: pb.RevokeSessionRequest, context: Any) -> pb.RevokeSessionResponse:
        """See sessions.proto."""
        caller = caller_of()
        if request.session_id not in ("", caller.session.id):
            check_own_audience(caller.session)
            await must_be_proved()  # a copied token ends its own session, and no other (P15)
        await self._sessions.revoke(caller, request.session_id)
        return pb.RevokeSessionResponse()

    async def GetJwks(self, request: pb.GetJwksRequest, context: Any) -> pb.GetJwksResponse:
        """See sessions.proto."""
        return pb.GetJwksResponse(jwks=self._keyring.jwks, server_id=self._facts.server_id, issuer=self._facts.issuer)
