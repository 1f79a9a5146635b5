"""Receipts of sign-ins, for their owners and for administrators. What one proves is told in `keyvouch.receipt`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from keyvouch.errors import KeyvouchError, NotFoundError, Reason
from keyvouch.receipt import seal
from keyvouch.statement import Purpose
from keyvouch_server.domain.authorisation import Action, authorise
from keyvouch_server.domain.model import Session, SignIn, SignInState, User
from keyvouch_server.domain.oversight_model import AuditRecord
from keyvouch_server.domain.receipts import receipt_of
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.world import Caller, World


class Receipts:
    """Making receipts out of what was kept of a sign-in. Nothing is written: the same sign-in, the same statement."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def receipt_of_sign_in(self, caller: Caller, sign_in_id: str) -> bytes:
        """The receipt of a sign-in of the caller's tenant, for administrators.

        Raises `NotFoundError(SIGN_IN_UNKNOWN)`, also for one that became no session.
        """
        authorise(caller.user, Action.READ_RECEIPT)

        async def work(tx: Snapshot) -> bytes | None:
            row = await tx.get(SignIn, id=sign_in_id)
            return None if row is None or row.tenant_id != caller.user.tenant_id else await self._receipt(tx, row)

        return await self._found(work, _no_such_sign_in())

    async def receipt_of_session(self, caller: Caller, session_id: str = "") -> bytes:
        """The receipt of the sign-in that became one of the caller's sessions; of the present one without an id.

        Raises `NotFoundError(SESSION_UNKNOWN)`, also for a session that was opened with an access pass.
        """

        async def work(tx: Snapshot) -> bytes | None:
            session = await tx.get(Session, id=session_id or caller.session.id)
            if session is None or session.user_id != caller.user.id or not session.sign_in_id:
                return None
            row = await tx.get(SignIn, id=session.sign_in_id)
            return None if row is None else await self._receipt(tx, row)

        return await self._found(work, _no_such_session())

    async def _found(self, work: Callable[[Snapshot], Awaitable[bytes | None]], refusal: KeyvouchError) -> bytes:
        statement = await self._world.store.read(work)
        if statement is None:
            raise refusal
        return seal(statement, self._world.keys.sign_identity(Purpose.RECEIPT, statement))

    async def _receipt(self, tx: Snapshot, row: SignIn) -> bytes | None:
        """The statement of a receipt, or None where there is no session, no evidence or no record of it."""
        session = await tx.get(Session, id=row.session_id)
        user = await tx.get(User, id=row.user_id)
        if row.state is not SignInState.CONSUMED or session is None or user is None:
            return None
        where = {"user_id": row.user_id, "subject": row.id, "action": "sign_in.redeem", "outcome": "ok"}
        records = await tx.find(AuditRecord, where, order="sequence", descending=True, limit=1)
        if not records:
            return None
        facts = self._world.facts
        receipt = receipt_of(
            row,
            session,
            user,
            records[0],
            server_id=facts.server_id,
            identity_key=self._world.keys.identity_key,
            rp_id=facts.rp_id,
        )
        return None if receipt is None else receipt.encode()


def _no_such_sign_in() -> NotFoundError:
    return NotFoundError(
        Reason.SIGN_IN_UNKNOWN,
        "There is no such sign-in in this tenant, or it did not become a session.",
        fix="Look up the id in the audit log: the subject of a record sign_in.redeem.",
    )


def _no_such_session() -> NotFoundError:
    return NotFoundError(
        Reason.SESSION_UNKNOWN,
        "You have no such session, or it was not opened by a sign-in with a key.",
        fix="List your sessions and use an id from there.",
    )
