"""Redemption: an approved sign-in becomes a session, once. The drawing is in sign_in.proto."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import replace

from keyvouch.errors import KeyvouchError
from keyvouch.ids import SignInId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, redeem_statement
from keyvouch_server.domain.model import Session, SignIn, SignInState, User
from keyvouch_server.domain.policy import Policy, decide_assurance, decide_way, required_by
from keyvouch_server.domain.sign_in import OPEN, TRANSITIONS, Event, why_not
from keyvouch_server.ports import Above, OneOf, Transaction
from keyvouch_server.use_cases.health import approved_assurance
from keyvouch_server.use_cases.key_standing import check_device_key
from keyvouch_server.use_cases.sessions import IssuedSession, Sessions
from keyvouch_server.use_cases.world import World, precise, settled, sha256, unknown_sign_in

_Consumed = tuple[SignIn, Session, User, Policy]


class Redemptions:
    """Turning approvals into sessions."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions

    async def redeem(self, sign_in_id: str, token: str, proof: bytes) -> IssuedSession:
        """Turn an approval into a session for whoever holds the token and the proof key."""
        return await self._issue(lambda tx: self._redeem(tx, SignInId(sign_in_id), token, proof))

    async def consume(self, sign_in_id: SignInId, *, certificate: bytes = b"") -> IssuedSession:
        """The same, for a caller whose proof key has been verified already; `certificate` as in `Sessions.issue`.

        1. policy again, on what was proved (KI1, P19); 2. `approved -> consumed`, session and audit in one
        transaction; 3. tokens. Repeated before the sign-in's expiry it gives the same session again: the
        tokens are derived, the row decides, and there is never a second session.
        """
        return await self._issue(lambda tx: self._find_and_consume(tx, sign_in_id), certificate)

    async def _issue(
        self, work: Callable[[Transaction], Awaitable[_Consumed | KeyvouchError]], certificate: bytes = b""
    ) -> IssuedSession:
        row, session, user, policy = settled(await self._world.store.write(work))
        self._world.announcer.sign_in(row, ())
        return self._sessions.issue(session, user, policy, certificate=certificate)

    async def _redeem(
        self, tx: Transaction, sign_in_id: SignInId, token: str, proof: bytes
    ) -> _Consumed | KeyvouchError:
        row = await tx.get(SignIn, id=sign_in_id)
        if row is None or row.same_device or not hmac.compare_digest(row.token_hash, sha256(token)):
            return unknown_sign_in()
        statement = redeem_statement(self._world.facts.server_id, sign_in_id, token)
        verify_proof(load_proof_key(row.proof_key), Purpose.REDEEM, statement, signature=proof)
        return await self._consume(tx, row)

    async def _find_and_consume(self, tx: Transaction, sign_in_id: SignInId) -> _Consumed | KeyvouchError:
        row = await tx.get(SignIn, id=sign_in_id)
        return unknown_sign_in() if row is None else await self._consume(tx, row)

    async def _consume(self, tx: Transaction, row: SignIn) -> _Consumed | KeyvouchError:
        now = self._world.clock.now()
        user = await tx.get(User, id=row.user_id)
        if user is None:
            return _no_session(row, now)
        policy = await self._world.policy_of(tx, row.tenant_id)
        if row.state is SignInState.CONSUMED and now < row.expires_at:
            return await self._repeat(tx, row, user, policy)
        try:
            if row.state is SignInState.APPROVED:
                row = replace(row, assurance=self._world.vouched(await approved_assurance(tx, row)))
                decide_way(policy, row.way)
                await check_device_key(tx, self._world, row.device_id, policy)
                decide_assurance(row.assurance, required_by(policy, row.way))
        except KeyvouchError as refusal:
            await self._audit_consumption(tx, row, refusal.reason.value, **precise(refusal))
            return refusal
        session = self._sessions.from_approval(row, policy)
        states, target = TRANSITIONS[Event.REDEEM]
        consumed = await tx.update(
            SignIn,
            {"id": row.id, "state": OneOf(tuple(states)), "expires_at": Above(now)},
            {"state": target, "session_id": session.id},
        )
        if not consumed:
            return _no_session(row, now)
        await tx.insert(session)
        await self._audit_consumption(tx, row, "ok")
        return consumed[0], session, user, policy

    async def _repeat(self, tx: Transaction, row: SignIn, user: User, policy: Policy) -> _Consumed | KeyvouchError:
        session = await tx.get(Session, id=row.session_id)
        if session is None or session.revoked_at or session.generation != 1:
            return why_not(row.state)
        return row, session, user, policy

    async def _audit_consumption(self, tx: Transaction, row: SignIn, outcome: str, **details: str) -> None:
        await self._world.audit(
            tx,
            "sign_in.redeem",
            actor=row.user_id,
            tenant_id=row.tenant_id,
            subject=row.id,
            user_id=row.user_id,
            outcome=outcome,
            **details,
        )


def _no_session(row: SignIn, now: int) -> KeyvouchError:
    """Why this sign-in gives no session now."""
    return why_not(SignInState.EXPIRED if row.state in OPEN and row.expires_at <= now else row.state)
