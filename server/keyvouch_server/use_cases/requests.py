"""Requests that are done once, however often they arrive: `request_id`.

A caller who lost a reply sends the request again under the same id. What was done under an id is a row, written in the
transaction of the act itself: either both are there or neither is. The answer is kept beside it, once it was made, so
that a repetition gets the same bytes; where it holds a secret, was lost to a crash before it was kept, or was for
somebody with another role than the caller has by now, a repetition learns that the act is done.

    first call     act and row in one transaction ──► answer ──► answer kept in the row
    repetition     row with an answer: the answer. Row without one: REQUEST_COMPLETED. Other request: REQUEST_ID_REUSED

`Requests.perform` runs a call under its id; `OnceStore` is the store every use case writes through, and puts the row
into the first transaction of the call that does something. Not here: which calls have an id (`rpc.interceptors`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from keyvouch.errors import ConflictError, KeyvouchError, Reason, RefusedError
from keyvouch_server.domain.model import Role, User
from keyvouch_server.domain.names import invalid_field
from keyvouch_server.domain.oversight_model import DoneRequest
from keyvouch_server.ports import AtMost, Clock, Snapshot, Store, T, Transaction

KEPT_SECONDS: Final = 86400
"""How long a request is known by its id."""

FORGET_EVERY_SECONDS: Final = 3600

_FORM: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")


@dataclass(slots=True)
class _Pending:
    """A call under way: its row, and whether a transaction has taken it."""

    row: DoneRequest
    written: bool = False


_PENDING: ContextVar[_Pending | None] = ContextVar("pending", default=None)


class OnceStore:
    """The `Store` port around another one. Reads and writes outside of a call with an id pass as they are."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, work: Callable[[Snapshot], Awaitable[T]]) -> T:
        """See `ports.Store`."""
        return await self._store.read(work)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """See `ports.Store`. A work that refuses does nothing but leave its audit record, and takes no row.

        The row is looked for first: of two calls at once the later one learns that it is a repetition, before it meets
        what the first has done.
        """
        pending = _PENDING.get()
        if pending is None or pending.written:
            return await self._store.write(work)

        async def once(tx: Transaction) -> T:
            known = await tx.get(DoneRequest, **_key(pending.row))
            if known is not None:
                raise _met(known, pending.row)
            result = await work(tx)
            if not isinstance(result, KeyvouchError):
                await tx.insert(pending.row)
            return result

        result = await self._store.write(once)
        pending.written = not isinstance(result, KeyvouchError)
        return result

    async def close(self) -> None:
        """See `ports.Store`."""
        await self._store.close()


class Requests:
    """Calls under an id."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._forget_at = 0

    async def perform(
        self,
        caller: User,
        request_id: str,
        method: str,
        request: bytes,
        serve: Callable[[], Awaitable[tuple[bytes, bool]]],
    ) -> bytes:
        """Serve a request once. `request` is its deterministic serialisation without the id.

        1. a known id: the answer of before, or why there is none; 2. `serve`, whose first transaction takes the row; it
        returns the answer, and whether that may be kept: a secret may not; 3. the answer is kept.

        Raises `MalformedError(FIELD_INVALID)` for an id that is none, `ConflictError(REQUEST_ID_REUSED)` and
        `RefusedError(REQUEST_COMPLETED)`.
        """
        if not _FORM.fullmatch(request_id):
            raise invalid_field("request_id", "8 to 64 letters, digits, hyphens and underscores of ASCII, or nothing")
        digest = hashlib.sha256(method.encode() + b"\0" + request).digest()
        row = DoneRequest(caller.tenant_id, caller.id, request_id, digest, b"", self._clock.now())
        known = await self._store.read(lambda tx: tx.get(DoneRequest, **_key(row)))
        if known is not None:
            return _answer_of_before(known, digest, caller.role)
        pending = _Pending(row)
        token = _PENDING.set(pending)
        try:
            answer, keep = await serve()
        finally:
            _PENDING.reset(token)
        if pending.written and keep:
            kept = _mark_of(caller.role) + answer
            await self._store.write(lambda tx: tx.update(DoneRequest, _key(row), {"response": kept}))
        return answer

    async def forget_old(self) -> None:
        """Drop what was done long ago; looked at once an hour."""
        if self._clock.now() < self._forget_at:
            return
        self._forget_at = self._clock.now() + FORGET_EVERY_SECONDS
        old = {"at": AtMost(self._clock.now() - KEPT_SECONDS)}
        await self._store.write(lambda tx: tx.delete(DoneRequest, old))


def _key(row: DoneRequest) -> dict[str, object]:
    return {"tenant_id": row.tenant_id, "actor": row.actor, "request_id": row.request_id}


def _mark_of(role: Role) -> bytes:
    """In front of an answer that is kept: for whom it was. So one that is empty is told from none, too."""
    return role.value.encode() + b"\0"


def _answer_of_before(known: DoneRequest, digest: bytes, role: Role) -> bytes:
    if known.request_hash != digest:
        raise _reused()
    if not known.response.startswith(_mark_of(role)):
        raise RefusedError(
            Reason.REQUEST_COMPLETED,
            "This request was done before, and its answer cannot be given again.",
            fix="Look at what it made. Where the answer held the code of an access pass, replace the pass.",
        )
    return known.response.removeprefix(_mark_of(role))


def _met(known: DoneRequest, row: DoneRequest) -> ConflictError:
    """For a row that is there and was not there when the call came. Transactions that write are serial."""
    if known.request_hash != row.request_hash:
        return _reused()
    return ConflictError(
        Reason.REQUEST_COMPLETED,
        "The same request was done at the same moment by another call.",
        fix="Repeat the call: it gets the answer of the one that was first.",
    )


def _reused() -> ConflictError:
    return ConflictError(
        Reason.REQUEST_ID_REUSED,
        "Another request was made under this request_id.",
        fix="Draw a fresh id for each request; repeat one only with the very same request.",
    )
