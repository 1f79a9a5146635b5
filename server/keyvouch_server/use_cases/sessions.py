"""Sessions: made by a sign-in, ended by anybody entitled.

Refresh tokens are opaque and derived: HMAC(session id, generation) under a key of the server. So the store holds
only their hashes, and yet a reply that was lost can be given again. Not here: prolonging (`session_refresh`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from keyvouch import base64url
from keyvouch.errors import (
    KeyvouchError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
    UsageError,
)
from keyvouch.ids import SESSION, AccessPassId, DeviceId, SessionId, UserId
from keyvouch.tokens import AccessTokenClaims
from keyvouch_server.domain.access_pass import access_pass_end
from keyvouch_server.domain.evaluation import SELF_AUDIENCE
from keyvouch_server.domain.model import AccessPass, Session, SessionKind, SignIn, SignInState, User
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.session import ACR_ACCESS_PASS, AMR_ACCESS_PASS, acr_of, amr_of
from keyvouch_server.ports import Above, OneOf, Snapshot, Transaction
from keyvouch_server.use_cases.world import Caller, World, session_revoked, settled, sha256

AHEAD_SECONDS: Final = 3600
"""P20: the clock may be ahead by so much. What seems to have run out within it is ended for good with the rest, lest
it come back with the right time.
"""

_AT_ONCE: Final = 500
"""Sessions that are looked up by one statement."""


@dataclass(frozen=True, slots=True)
class IssuedSession:
    """A session with its tokens, as they leave the server. `refresh_token` is empty where there is none."""

    session: Session
    user: User
    access_token: str = field(repr=False)
    access_expires_at: int
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """What an act has ended: how many sessions, and the approvals for more that were cancelled with them."""

    sessions: int
    sign_ins: Sequence[SignIn] = ()


class Sessions:
    """Opening, prolonging, checking and ending sessions."""

    def __init__(self, world: World) -> None:
        self._world = world

    # -- opening: records only, the ceremonies write them ------------------------------------------

    def from_approval(self, row: SignIn, policy: Policy) -> Session:
        """The session an approved sign-in becomes."""
        now = self._world.clock.now()
        session_id = SessionId(self._world.new_id(SESSION))
        return Session(
            id=session_id,
            tenant_id=row.tenant_id,
            user_id=row.user_id,
            device_id=row.device_id,
            kind=SessionKind.APPROVAL,
            access_pass_id=AccessPassId(""),
            app_id=row.app_id,
            app_name=row.app_name,
            audience=row.audience,
            amr=amr_of(row),
            acr=acr_of(row),
            assurance=row.assurance,
            proof_key=row.proof_key,
            proof_thumbprint=row.proof_thumbprint,
            auth_time=row.decided_at,
            created_at=now,
            expires_at=now + policy.session.session_seconds,
            generation=1,
            refresh_hash=sha256(self.refresh_token(session_id, 1)),
            certificate_bound=row.same_device,
            sign_in_id=row.id,
            address=row.address,
        )

    def from_access_pass(
        self, found: AccessPass, policy: Policy, *, one_time_seconds: int, address: str = ""
    ) -> Session:
        """T8: the session of a pass. It cannot be prolonged and never outlives the pass."""
        now = self._world.clock.now()
        end = min(access_pass_end(found), now + policy.session.session_seconds)
        if found.one_time:
            end = min(end, now + one_time_seconds)
        return Session(
            id=SessionId(self._world.new_id(SESSION)),
            tenant_id=found.tenant_id,
            user_id=found.user_id,
            device_id=DeviceId(""),
            kind=SessionKind.ACCESS_PASS,
            access_pass_id=found.id,
            app_id=SELF_AUDIENCE,
            app_name="Keyvouch",
            audience=SELF_AUDIENCE,
            amr=AMR_ACCESS_PASS,
            acr=ACR_ACCESS_PASS,
            assurance="",
            proof_key=b"",
            proof_thumbprint=b"",
            auth_time=now,
            created_at=now,
            expires_at=end,
            generation=0,
            refresh_hash=b"",
            address=address,
        )

    def issue(self, session: Session, user: User, policy: Policy, *, certificate: bytes = b"") -> IssuedSession:
        """Sign an access token for a session; derive the refresh token of its generation.

        P15: a session that is bound to a certificate gets a token for `certificate`, the SHA-256 of the one on this
        connection; without it, for the one it began with.
        """
        now = self._world.clock.now()
        expires = min(now + policy.session.access_token_seconds, session.expires_at)
        if session.kind is SessionKind.ACCESS_PASS:
            expires = session.expires_at
        token_id = base64url.encode(self._world.entropy.token(12))
        holder = base64url.encode(certificate or session.proof_thumbprint) if session.proof_thumbprint else ""
        claims = AccessTokenClaims(
            issuer=self._world.facts.issuer,
            subject=session.user_id,
            audience=session.audience,
            client_id=session.app_id,
            tenant=session.tenant_id,
            session_id=session.id,
            token_id=token_id,
            issued_at=now,
            expires_at=expires,
            auth_time=session.auth_time,
            acr=session.acr,
            amr=tuple(session.amr.split()),
            assurance=session.assurance,
            confirmation="" if session.certificate_bound else holder,
            device_id=session.device_id,
            username=user.username,
            certificate_thumbprint=holder if session.certificate_bound else "",
        )
        refresh = self.refresh_token(session.id, session.generation) if session.generation else ""
        return IssuedSession(session, user, self._world.keys.access_token(claims), expires, refresh)

    def refresh_token(self, session_id: SessionId, generation: int) -> str:
        """The refresh token of a generation of a session. Only hashes of them are stored."""
        secret = self._world.keys.mac("refresh-token", f"{session_id}/{generation}".encode())
        return f"kvr_{session_id}_{generation}.{base64url.encode(secret)}"

    # -- using -------------------------------------------------------------------------------------

    async def caller(self, session_id: str) -> Caller:
        """Whose session this is, now: revoked and expired sessions, and those without user or pass, are refused."""

        async def work(tx: Snapshot) -> tuple[Session | None, User | None]:
            session = await tx.get(Session, id=session_id)
            if session is None or not await _has_its_pass(tx, session):
                return None, None
            return session, await tx.get(User, id=session.user_id)

        session, user = await self._world.store.read(work)
        if session is None or user is None:
            raise session_revoked()
        ended = end_of(session, self._world.clock.now())
        if ended is not None:
            raise ended
        return Caller(session, user)

    async def over(self, session_ids: Collection[str]) -> dict[str, KeyvouchError]:
        """Of these sessions, those that are over, each with why."""
        asked = tuple(session_ids)

        async def work(tx: Snapshot) -> dict[str, Session]:
            parts = [asked[start : start + _AT_ONCE] for start in range(0, len(asked), _AT_ONCE)]
            return {row.id: row for part in parts for row in await tx.find(Session, {"id": OneOf(part)})}

        found = await self._world.store.read(work)
        now = self._world.clock.now()
        ends = {one: end_of(found[one], now) if one in found else session_revoked() for one in asked}
        return {one: why for one, why in ends.items() if why is not None}

    async def sessions_of(self, user: UserId, *, after: str = "", limit: int = 50) -> Sequence[Session]:
        """The user's sessions, in the order of their ids, ended ones included."""
        where: dict[str, object] = {"user_id": user, "id": Above(after)}
        return await self._world.store.read(lambda tx: tx.find(Session, where, order="id", limit=limit))

    async def revoke(self, caller: Caller, session_id: str) -> None:
        """End one of the caller's sessions; the present one when no id is given. Idempotent.

        A session of an access pass can end itself and no other (T8).
        """
        wanted = session_id or caller.session.id
        if wanted != caller.session.id:
            check_own_audience(caller.session)

        async def work(tx: Transaction) -> NotFoundError | None:
            session = await tx.get(Session, id=wanted)
            foreign = caller.session.kind is SessionKind.ACCESS_PASS and wanted != caller.session.id
            if session is None or session.user_id != caller.user.id or foreign:
                return NotFoundError(
                    Reason.SESSION_UNKNOWN,
                    "You have no such session.",
                    fix="List your sessions and use an id from there.",
                )
            await self.revoke_in(tx, [session], reason="signed_out", actor=caller.user.id)
            return None

        settled(await self._world.store.write(work))

    async def revoke_others(self, caller: Caller) -> int:
        """End every session of the caller's but the present one, and what was approved for more; returns how many.

        A session of an access pass may not (T8). Raises `PermissionDeniedError(SESSION_PURPOSE)`.
        """
        if caller.session.kind is not SessionKind.APPROVAL:
            raise PermissionDeniedError(
                Reason.SESSION_PURPOSE,
                "A session opened with an access pass may register methods and review security info, nothing else.",
                fix="Enrol a device, then sign in with it.",
            )

        async def work(tx: Transaction) -> Ended:
            await self._world.must_stand(tx, caller)
            sessions = await self.live_sessions(tx, user_id=caller.user.id)
            others = [session for session in sessions if session.id != caller.session.id]
            cancelled = await self.cancel_approvals(tx, actor=caller.user.id, user_id=caller.user.id)
            ended = await self.revoke_in(tx, others, reason="ended_by_owner", actor=caller.user.id)
            return Ended(ended, cancelled)

        return (await self._world.write_and_tell(work, self.tell)).sessions

    def tell(self, ended: Ended) -> None:
        """Tell who watches what was cancelled."""
        for sign_in in ended.sign_ins:
            self._world.announcer.sign_in(sign_in, ())

    async def revoke_in(self, tx: Transaction, sessions: Sequence[Session], *, reason: str, actor: str) -> int:
        """End sessions inside somebody else's transaction, each with its audit record; returns how many lived."""
        now, ended = self._world.clock.now(), 0
        for session in sessions:
            changed = await tx.update(
                Session, {"id": session.id, "revoked_at": 0}, {"revoked_at": now, "revoke_reason": reason}
            )
            ended += sum(s.expires_at > now for s in changed)
            for s in changed:
                await self._world.audit(
                    tx,
                    "session.revoke",
                    actor=actor,
                    tenant_id=s.tenant_id,
                    subject=s.id,
                    user_id=s.user_id,
                    reason=reason,
                )
        return ended

    async def end_all_in(self, tx: Transaction, user: UserId, *, reason: str, actor: str) -> Ended:
        """End all sessions of a user, and what was approved for more of them. `tell` of it once it is durable."""
        cancelled = await self.cancel_approvals(tx, actor=actor, user_id=user)
        live = await self.live_sessions(tx, user_id=user)
        return Ended(await self.revoke_in(tx, live, reason=reason, actor=actor), cancelled)

    async def cancel_approvals(self, tx: Transaction, *, actor: str, **where: object) -> list[SignIn]:
        """Sign-ins that are approved and not redeemed: who holds one would have a new session a moment later."""
        unused = {**where, "state": SignInState.APPROVED, "expires_at": Above(self._world.clock.now())}
        cancelled = await tx.update(SignIn, unused, {"state": SignInState.CANCELLED})
        for s in cancelled:
            await self._world.audit(
                tx, "sign_in.cancel", actor=actor, tenant_id=s.tenant_id, subject=s.id, user_id=s.user_id
            )
        return cancelled

    async def live_sessions(self, tx: Transaction, **where: object) -> list[Session]:
        """Sessions that are neither revoked nor expired for `AHEAD_SECONDS`: every one of them, however many there are.

        `where` names any column but the id, by which they are read in pages.
        """
        if "id" in where:
            raise UsageError("Sessions are read by other columns than their id here.", fix="Get the one session.")
        live = {**where, "revoked_at": 0, "expires_at": Above(self._world.clock.now() - AHEAD_SECONDS)}
        found: list[Session] = []
        while page := await tx.find(Session, {**live, "id": Above(found[-1].id if found else "")}, order="id"):
            found += page
        return found


async def _has_its_pass(tx: Snapshot, session: Session) -> bool:
    """T8: no session is without the pass that opened it, also if it was over when the pass went and the clock since
    was set back.
    """
    return not session.access_pass_id or await tx.get(AccessPass, id=session.access_pass_id) is not None


def check_own_audience(session: Session) -> None:
    """P14: a token handed to a resource server must not open this server for it. Raises TOKEN_AUDIENCE."""
    if session.audience != SELF_AUDIENCE:
        raise UnauthenticatedError(
            Reason.TOKEN_AUDIENCE,
            "The access token is meant for another audience than this server.",
            fix=f"Sign in with the audience {SELF_AUDIENCE}.",
            metadata={"expected": SELF_AUDIENCE},
        )


def certificate_required() -> UnauthenticatedError:
    """For a session that is bound to a device's certificate, outside of a connection with it."""
    return UnauthenticatedError(
        Reason.CERTIFICATE_REQUIRED,
        "This session is bound to the certificate of the device that signed in.",
        fix="Let the device's agent refresh it; for this server's own services sign in with a number.",
    )


def end_of(session: Session, now: int) -> UnauthenticatedError | None:
    """Why a session is over, or None."""
    if session.revoked_at:
        return session_revoked()
    if session.expires_at <= now:
        return UnauthenticatedError(Reason.SESSION_EXPIRED, "The session has come to its end.", fix="Sign in again.")
    return None
