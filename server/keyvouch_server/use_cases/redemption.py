"""Redemption: an approved sign-in becomes a session, once. The drawing is in sign_in.proto."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from keyvouch.errors import KeyvouchError
from keyvouch.ids import SignInId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, redeem_statement
from keyvouch_server.domain.evaluation import (
    DueCampaign,
    Subject,
    Wanted,
    decide_campaigns,
    decide_method,
    demand_of,
    method_of,
)
from keyvouch_server.domain.model import Credential, Role, Session, SignIn, SignInState, SignInWay, User
from keyvouch_server.domain.oversight_model import RiskEvent, RiskKind
from keyvouch_server.domain.policy import Policy, decide_assurance
from keyvouch_server.domain.sign_in import OPEN, TRANSITIONS, Event, why_not
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Above, OneOf, Snapshot, Transaction
from keyvouch_server.use_cases.budgets import source_of
from keyvouch_server.use_cases.health import approved_assurance
from keyvouch_server.use_cases.key_standing import check_device_key
from keyvouch_server.use_cases.known_clients import KnownClients
from keyvouch_server.use_cases.risks import Risks
from keyvouch_server.use_cases.sessions import IssuedSession, Sessions
from keyvouch_server.use_cases.sign_in_rules import (
    campaigns_due,
    decide_lifetime,
    decide_number,
    held_meanwhile,
    no_longer_enough,
    subject_for,
)
from keyvouch_server.use_cases.world import World, precise, settled, sha256, unknown_sign_in

AT_REDEMPTION: Final = "redemption"
"""The rule that stands for all of them, asked again on what was proved."""

_MAY_BE_SESSIONS: Final = frozenset({SignInState.APPROVED, SignInState.CONSUMED})

LAST_PLACES: Final = 200
"""Sessions of a user that are looked at for an address of the same IPv6 network."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """A sign-in that became a session, by which policy, and what there is to tell beside."""

    row: SignIn
    session: Session
    user: User
    policy: Policy
    due: tuple[DueCampaign, ...]
    open_risk_events: int


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A session with its tokens, and what its client is told beside. `known_client` is empty for a device, which needs
    none; `open_risk_events` counts for administrators.
    """

    issued: IssuedSession
    known_client: str = field(repr=False)
    due: tuple[DueCampaign, ...] = ()
    open_risk_events: int = 0


class Redemptions:
    """Turning approvals into sessions."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions
        self._known = KnownClients(world)
        self._risks = Risks(world)

    async def redeem(self, sign_in_id: str, token: str, proof: bytes) -> Redeemed:
        """Turn an approval into a session for whoever holds the token and the proof key."""
        return await self._issue(lambda tx: self._redeem(tx, SignInId(sign_in_id), token, proof))

    async def consume(self, sign_in_id: SignInId, *, certificate: bytes = b"") -> Redeemed:
        """The same, for a caller whose proof key has been verified already; `certificate` as in `Sessions.issue`.

        1. policy again, on what was proved (KI1, P19); 2. `approved -> consumed`, session and audit in one
        transaction; 3. tokens. Repeated before the sign-in's expiry it gives the same session again: the
        tokens are derived, the row decides, and there is never a second session.
        """
        return await self._issue(lambda tx: self._find_and_consume(tx, sign_in_id), certificate)

    async def _issue(
        self, work: Callable[[Transaction], Awaitable[Consumed | KeyvouchError]], certificate: bytes = b""
    ) -> Redeemed:
        done = settled(await self._world.write_and_tell(work, self._tell))
        issued = self._sessions.issue(done.session, done.user, done.policy, certificate=certificate)
        own_device = done.row.way is SignInWay.SAME_DEVICE
        known = "" if own_device else self._known.token(done.user.tenant_id, done.user.id)
        return Redeemed(issued, known, done.due, done.open_risk_events)

    def _tell(self, done: Consumed | KeyvouchError) -> None:
        if not isinstance(done, KeyvouchError):
            self._world.announcer.sign_in(done.row, ())

    async def _redeem(
        self, tx: Transaction, sign_in_id: SignInId, token: str, proof: bytes
    ) -> Consumed | KeyvouchError:
        row = await tx.get(SignIn, id=sign_in_id)
        if row is None or row.same_device or not hmac.compare_digest(row.token_hash, sha256(token)):
            return unknown_sign_in()
        statement = redeem_statement(self._world.facts.server_id, sign_in_id, token)
        verify_proof(load_proof_key(row.proof_key), Purpose.REDEEM, statement, signature=proof)
        return await self._consume(tx, row)

    async def _find_and_consume(self, tx: Transaction, sign_in_id: SignInId) -> Consumed | KeyvouchError:
        row = await tx.get(SignIn, id=sign_in_id)
        return unknown_sign_in() if row is None else await self._consume(tx, row)

    async def _consume(self, tx: Transaction, row: SignIn) -> Consumed | KeyvouchError:
        now = self._world.clock.now()
        if row.state not in _MAY_BE_SESSIONS:  # P12: nothing is looked up of whoever was named
            return _no_session(row, now)
        user = await tx.get(User, id=row.user_id)
        if user is None:
            return _no_session(row, now)
        policy = await self._world.policy_of(tx, row.tenant_id)
        subject = await subject_for(tx, self._world, policy, user)
        due = await campaigns_due(tx, self._world, policy, subject)
        if row.state is SignInState.CONSUMED and now < row.expires_at:
            session = await tx.get(Session, id=row.session_id)
            if session is None or session.revoked_at or session.generation != 1:
                return why_not(row.state)
            return await self._told(tx, row, session, user, policy, due)
        try:
            if row.state is SignInState.APPROVED:
                keys = await tx.find(Credential, {"device_id": row.device_id})
                row = self._as_it_counts_now(row, keys)
                await self._decide_again(tx, row, policy, subject, due, keys)
                await self._decide_meanwhile(tx, row, policy, user, keys)
        except KeyvouchError as refusal:
            await self._audit_consumption(tx, row, refusal.reason.value, **precise(refusal))
            await tx.update(SignIn, {"id": row.id}, {"rules": _said(row, refusal)})
            return refusal
        session = self._sessions.from_approval(row, policy)
        states, target = TRANSITIONS[Event.REDEEM]
        consumed = await tx.update(
            SignIn,
            {"id": row.id, "state": OneOf(tuple(states)), "expires_at": Above(now)},
            {"state": target, "session_id": session.id, "rules": _said(row)},
        )
        if not consumed:
            return _no_session(row, now)
        await self._note_new_place(tx, row)
        await tx.insert(session)
        await self._remember_method(tx, row, user)
        await self._audit_consumption(tx, row, "ok", session=session.id)
        return await self._told(tx, consumed[0], session, user, policy, due)

    def _as_it_counts_now(self, row: SignIn, keys: list[Credential]) -> SignIn:
        now = self._world.vouched(approved_assurance(row, keys))
        return row if now == row.assurance else replace(row, assurance=now)

    async def _decide_meanwhile(
        self, tx: Snapshot, row: SignIn, present: Policy, user: User, keys: list[Credential]
    ) -> None:
        """P19: by every policy that held since the beginning, also when it was approved: the strictest wins."""
        for held in await held_meanwhile(tx, row, present):
            try:
                subject = await subject_for(tx, self._world, held, user)
                due = await campaigns_due(tx, self._world, held, subject)
                await self._decide_again(tx, row, held, subject, due, keys)
            except KeyvouchError as refusal:
                raise no_longer_enough(held, refusal) from None

    async def _decide_again(
        self,
        tx: Snapshot,
        row: SignIn,
        policy: Policy,
        subject: Subject,
        due: tuple[DueCampaign, ...],
        keys: list[Credential],
    ) -> None:
        """All rules once more, on what was proved. What was demanded at the beginning is demanded still: of two
        policies the stricter wins (P19). `keys` are those of the device now. Raises the first refusal.
        """
        verdicts = Verdicts()
        wanted = Wanted(row.app_id, row.audience, row.required_assurance, row.phishing_resistant)
        decide_method(policy, method_of(row.way), subject, verdicts)
        demand = demand_of(policy, row.way, wanted, verdicts)
        decide_lifetime(policy, row, now=self._world.clock.now())
        decide_number(policy, subject.role, row)
        await check_device_key(tx, self._world, keys, policy)
        decide_campaigns(due, wanted, verdicts)
        decide_assurance(row.assurance, demand.required_assurance)

    async def _note_new_place(self, tx: Transaction, row: SignIn) -> None:
        """P3: a number can be relayed, and whoever relays it sits at an address where the user has never been."""
        if row.way is not SignInWay.PROMPT or not source_of(row.address) or await _has_been_at(tx, row):
            return
        await self._risks.note(
            tx,
            RiskKind.NEW_PLACE,
            f"A sign-in to {row.app_name} was approved by number from an address the user had no session at before.",
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            subject=row.id,
            address=row.address,
        )

    async def _remember_method(self, tx: Transaction, row: SignIn, user: User) -> None:
        """PS6: what was used last is offered first next time."""
        method = method_of(row.way).value
        if user.last_method != method:
            await tx.update(User, {"id": user.id}, {"last_method": method})

    async def _told(
        self,
        tx: Snapshot,
        row: SignIn,
        session: Session,
        user: User,
        policy: Policy,
        due: tuple[DueCampaign, ...],
    ) -> Consumed:
        """With what an administrator is told at each sign-in: how many risk events wait to be looked at."""
        risks = 0
        if user.role is not Role.USER:
            risks = await tx.count(RiskEvent, {"tenant_id": user.tenant_id, "closed_at": 0})
        return Consumed(row, session, user, policy, due, risks)

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


async def _has_been_at(tx: Snapshot, row: SignIn) -> bool:
    """Whether the user had a session there. A host changes its address within its IPv6 network from day to day."""
    if await tx.find(Session, {"user_id": row.user_id, "address": row.address}, limit=1):
        return True
    source = source_of(row.address)
    if source == row.address:
        return False
    last = await tx.find(Session, {"user_id": row.user_id}, order="created_at", descending=True, limit=LAST_PLACES)
    return any(source_of(session.address) == source for session in last)


def _said(row: SignIn, refusal: KeyvouchError | None = None) -> str:
    """What the rules said of a sign-in, with why it was refused at its redemption; of several times the last counts."""
    if refusal is None and AT_REDEMPTION not in row.rules:
        return row.rules  # as it nearly always is: nothing was refused
    before = Verdicts.load(row.rules)
    said = before.without(AT_REDEMPTION)
    if refusal is not None:
        said.refuse(AT_REDEMPTION, refusal)
    elif len(list(said)) < len(list(before)):
        said.allow(AT_REDEMPTION)
    return said.document()


def _no_session(row: SignIn, now: int) -> KeyvouchError:
    """Why this sign-in gives no session now."""
    return why_not(SignInState.EXPIRED if row.state in OPEN and row.expires_at <= now else row.state)
