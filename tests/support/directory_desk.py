"""What tests ask of the directory over the wire, and of the store behind it."""

from __future__ import annotations

from typing import Any

from keyvouch.v1 import administration_pb2 as admin
from keyvouch.v1 import directory_pb2 as pb
from keyvouch_client.errors import answer
from keyvouch_server.use_cases.world import Caller
from support.live_server import LIMIT, LiveServer, Metadata


async def directory(live: LiveServer, method: str, request: Any, metadata: Metadata | None = None) -> Any:
    """Call a method of the directory, as the first administrator where nobody else is named."""
    metadata = await live.admin() if metadata is None else metadata
    return await answer(getattr(live.connection.directory, method)(request, metadata=metadata, timeout=LIMIT))


async def get(live: LiveServer, who: str) -> admin.User:
    """A user by id, login name or alias."""
    told: pb.GetUserResponse = await directory(live, "GetUser", pb.GetUserRequest(user=who))
    return told.user


async def update(live: LiveServer, who: str, **changes: Any) -> pb.UpdateUserResponse:
    """Change what is said of a user."""
    done: pb.UpdateUserResponse = await directory(live, "UpdateUser", pb.UpdateUserRequest(user=who, **changes))
    return done


async def caller(live: LiveServer, metadata: Metadata) -> Caller:
    """Whose session it is, as use cases are told."""
    told = await live.introspect(metadata)
    return await live.app.sessions.caller(told.session.session_id)


async def rows(live: LiveServer, table: Any, where: Any) -> list[Any]:
    """Records as they are in the store."""
    return await live.app.store.read(lambda tx: tx.find(table, where))
