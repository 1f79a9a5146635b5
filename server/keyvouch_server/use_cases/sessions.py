"""Sessions: made by a sign-in, prolonged by a rotating refresh token and the proof key, ended by anybody entitled.

Refresh tokens are opaque and derived: HMAC(session id, generation) under a key of the server. So the store holds
only their hashes, and yet a reply that was lost can be given again.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from keyvouch import base64url
from keyvouch.assurance import Assurance
from keyvouch.errors import EvidenceError, MalformedError, NotFoundError, Reason, UnauthenticatedError
from keyvouch.ids import SESSION, AccessPassId, DeviceId, SessionId, UserId
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch.tokens import AccessTokenClaims
from keyvouch_server.domain.model import AccessPass, Device, Session, SessionKind, SignIn, SignInWay, User
from keyvouch_server.domain.policy import Policy, access_pass_end
from keyvouch_server.ports import Above, Plus, Snapshot, Transaction
from keyvouch_server.use_cases.world import Caller, World, session_revoked, settled, sha256

ACR_NUMBER_MATCHED = "number-matched"
ACR_PHISHING_RESISTANT = "phishing-resistant"
"""P3: only of sign-ins whose client is the device that approves, or holds the security key and has made sure for which
server it signs. Matching a number never earns it.
"""
ACR_ACCESS_PASS = "access-pass"
AMR_APPROVAL = "pop pin mfa"
"""PS7: possession of the key and the PIN that unlocks it: two factors, no second prompt (RFC 8176)."""
AMR_SECURITY_KEY = "user pin mfa"
"""Beside where the key is: a touch, and the PIN or whatever else the key takes for it."""
AMR_ACCESS_PASS = "otp"
SELF_AUDIENCE = "keyvouch"
"""Audience of tokens that are meant for this server alone."""


@dataclass(frozen=True, slots=True)
class IssuedSession:
    """A session with its tokens, as they leave the server. `refresh_token` is empty where there is none."""

    session: Session
    user: User
    access_token: str = field(repr=False)
    access_expires_at: int
    refresh_token: str = field(repr=False)


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
            amr=_amr_of(row),
            acr=ACR_NUMBER_MATCHED if row.way is SignInWay.PROMPT else ACR_PHISHING_RESISTANT,
            assurance=row.assurance,
            proof_key=row.proof_key,
            proof_thumbprint=row.proof_thumbprint,
            auth_time=row.decided_at,
            created_at=now,
            expires_at=now + policy.session.session_seconds,
            generation=1,
            refresh_hash=sha256(self._refresh_token(session_id, 1)),
            certificate_bound=row.same_device,
        )

    def from_access_pass(self, found: AccessPass, policy: Policy, *, one_time_seconds: int) -> Session:
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
        refresh = self._refresh_token(session.id, session.generation) if session.generation else ""
        return IssuedSession(session, user, self._world.keys.access_token(claims), expires, refresh)

    def _refresh_token(self, session_id: SessionId, generation: int) -> str:
        secret = self._world.keys.mac("refresh-token", f"{session_id}/{generation}".encode())
        return f"kvr_{session_id}_{generation}.{base64url.encode(secret)}"

    # -- using -------------------------------------------------------------------------------------

    async def refresh(self, refresh_token: str, proof: bytes) -> IssuedSession:
        """New tokens for old.

        1. find the session; 2. the proof key signs for this very token; 3. rotate by compare-and-set; the token
        before the present one gives the present one again (a lost reply); any older one ends the session.
        """
        session = await self._by_refresh_token(refresh_token)
        if session.certificate_bound:
            raise certificate_required()
        digest = sha256(refresh_token)
        statement = proof_statement(self._world.facts.server_id, digest)
        try:
            verify_proof(load_proof_key(session.proof_key), Purpose.REFRESH, statement, signature=proof)
        except (EvidenceError, MalformedError) as error:
            raise UnauthenticatedError(error.reason, error.message, fix=error.fix) from error
        return settled(await self._world.store.write(lambda tx: self._rotate(tx, session, refresh_token, digest)))

    async def refresh_over_channel(self, refresh_token: str, device: Device, certificate: bytes) -> IssuedSession:
        """The same for a session that is bound to a certificate: the device's channel is the proof.

        `certificate` is the SHA-256 of the one on this connection. Raises CREDENTIALS_INVALID for another device.
        """
        session = await self._by_refresh_token(refresh_token)
        own = session.device_id == device.id and hmac.compare_digest(session.proof_key, device.channel_key)
        if not session.certificate_bound or not own:
            raise _not_a_token()
        digest = sha256(refresh_token)
        return settled(
            await self._world.store.write(lambda tx: self._rotate(tx, session, refresh_token, digest, certificate))
        )

    async def _by_refresh_token(self, refresh_token: str) -> Session:
        parts = refresh_token.split("_", 3)
        session_id = "_".join(parts[1:3]) if len(parts) == 4 else ""
        session = await self._world.store.read(lambda tx: tx.get(Session, id=session_id))
        if session is None or not session.generation or not session.proof_key:
            raise _not_a_token()
        return session

    async def _rotate(
        self, tx: Transaction, seen: Session, refresh_token: str, digest: bytes, certificate: bytes = b""
    ) -> IssuedSession | UnauthenticatedError:
        now = self._world.clock.now()
        session = await tx.get(Session, id=seen.id)
        user = await tx.get(User, id=seen.user_id)
        if session is None or user is None:
            return _not_a_token()
        ended = _ended(session, now)
        if ended is not None:
            return ended
        policy = await self._world.policy_of(tx, session.tenant_id)
        if session.previous_hash and hmac.compare_digest(digest, session.previous_hash):
            return self.issue(session, user, policy, certificate=certificate)
        if not hmac.compare_digest(digest, session.refresh_hash):
            return await self._refuse_old_token(tx, session, refresh_token)
        rotated = await tx.update(
            Session,
            {"id": session.id, "generation": session.generation, "revoked_at": 0},
            {
                "generation": Plus(1),
                "previous_hash": session.refresh_hash,
                "refresh_hash": sha256(self._refresh_token(session.id, session.generation + 1)),
            },
        )
        await self._world.audit(
            tx,
            "session.refresh",
            actor=session.user_id,
            tenant_id=session.tenant_id,
            subject=session.id,
            user_id=session.user_id,
        )
        return self.issue(rotated[0], user, policy, certificate=certificate)

    async def _refuse_old_token(self, tx: Transaction, session: Session, refresh_token: str) -> UnauthenticatedError:
        """A genuine but older token means two holders: the session ends. A made-up one changes nothing.

        The token names its generation, so that one comparison is enough however often a session was refreshed.
        """
        claimed = refresh_token.split("_", 3)[3].partition(".")[0]
        generation = int(claimed) if claimed.isascii() and claimed.isdigit() and len(claimed) < 10 else 0
        genuine = self._refresh_token(session.id, generation)
        if 0 < generation < session.generation and hmac.compare_digest(refresh_token.encode(), genuine.encode()):
            await self.revoke_in(tx, [session], reason="refresh_token_reused", actor="server")
            return session_revoked()
        return _not_a_token()

    async def caller(self, session_id: str) -> Caller:
        """Whose session this is, now: revoked and expired sessions and removed users are refused."""

        async def work(tx: Snapshot) -> tuple[Session | None, User | None]:
            session = await tx.get(Session, id=session_id)
            return session, (await tx.get(User, id=session.user_id) if session else None)

        session, user = await self._world.store.read(work)
        if session is None or user is None:
            raise session_revoked()
        ended = _ended(session, self._world.clock.now())
        if ended is not None:
            raise ended
        return Caller(session, user)

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

    async def revoke_in(self, tx: Transaction, sessions: Sequence[Session], *, reason: str, actor: str) -> int:
        """End sessions inside somebody else's transaction, each with its audit record; returns how many."""
        now, ended = self._world.clock.now(), 0
        for session in sessions:
            changed = await tx.update(
                Session, {"id": session.id, "revoked_at": 0}, {"revoked_at": now, "revoke_reason": reason}
            )
            ended += len(changed)
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

    async def live_sessions(self, tx: Transaction, **where: object) -> list[Session]:
        """Sessions that are neither revoked nor expired: every one of them, however many there are."""
        live = {**where, "revoked_at": 0, "expires_at": Above(self._world.clock.now())}
        found: list[Session] = []
        while page := await tx.find(Session, {**live, "id": Above(found[-1].id if found else "")}, order="id"):
            found += page
        return found


def way_of(session: Session) -> SignInWay:
    """By which way the approval came that opened a session."""
    if session.certificate_bound:
        return SignInWay.SAME_DEVICE
    return SignInWay.SECURITY_KEY if session.acr == ACR_PHISHING_RESISTANT else SignInWay.PROMPT


def _amr_of(row: SignIn) -> str:
    """What was proved, in the words of RFC 8176. A key counts as one in hardware only where somebody vouches for it."""
    if row.way is not SignInWay.SECURITY_KEY:
        return AMR_APPROVAL
    in_hardware = bool(row.assurance) and Assurance.parse(row.assurance).protection.is_hardware
    return f"{'hwk' if in_hardware else 'swk'} {AMR_SECURITY_KEY}"


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


def _ended(session: Session, now: int) -> UnauthenticatedError | None:
    if session.revoked_at:
        return session_revoked()
    if session.expires_at <= now:
        return UnauthenticatedError(Reason.SESSION_EXPIRED, "The session has come to its end.", fix="Sign in again.")
    return None


def _not_a_token() -> UnauthenticatedError:
    return UnauthenticatedError(
        Reason.CREDENTIALS_INVALID, "This refresh token is not known here.", fix="Sign in again."
    )
