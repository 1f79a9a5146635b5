"""Prolonging sessions: a rotating refresh token, and the key that the session is bound to.

    token of the present generation    rotated, by compare-and-set
    the one before it                  the present one again: the reply was lost
    any older one                      two holders: the session ends, and the administrators are told
    anything else                      nothing happens

A token that is genuine and comes with another key's proof changes nothing, and leaves a trace: it was copied.

Not here: what tokens are made of (`sessions`).
"""

from __future__ import annotations

import hmac

from keyvouch.errors import EvidenceError, MalformedError, Reason, UnauthenticatedError
from keyvouch.proofs import load_proof_key, verify_proof
from keyvouch.statement import Purpose, proof_statement
from keyvouch_server.domain.model import Device, Session, User
from keyvouch_server.domain.oversight_model import RiskKind
from keyvouch_server.ports import Plus, Transaction
from keyvouch_server.use_cases.risks import Risks
from keyvouch_server.use_cases.sessions import IssuedSession, Sessions, certificate_required, end_of
from keyvouch_server.use_cases.world import ANONYMOUS, SERVER, World, session_revoked, settled, sha256


class SessionRefreshes:
    """Exchanging refresh tokens."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world = world
        self._sessions = sessions
        self._risks = Risks(world)

    async def refresh(self, refresh_token: str, proof: bytes, *, address: str = "") -> IssuedSession:
        """New tokens for old.

        1. find the session; 2. the proof key signs for this very token; 3. rotate by compare-and-set; the token
        before the present one gives the present one again (a lost reply); any older one ends the session. `address`
        is where the token came from.
        """
        session = await self._by_refresh_token(refresh_token)
        if session.certificate_bound:
            raise certificate_required()
        digest = sha256(refresh_token)
        statement = proof_statement(self._world.facts.server_id, digest)
        try:
            verify_proof(load_proof_key(session.proof_key), Purpose.REFRESH, statement, signature=proof)
        except (EvidenceError, MalformedError) as error:
            refusal = UnauthenticatedError(error.reason, error.message, fix=error.fix)
            if self._is_genuine(session, refresh_token):
                await self._world.store.write(lambda tx: self._trace(tx, session, refusal, address))
            raise refusal from error
        return settled(
            await self._world.store.write(
                lambda tx: self._rotate(tx, session, refresh_token, digest, address=address),
            )
        )

    async def refresh_over_channel(
        self, refresh_token: str, device: Device, certificate: bytes, *, address: str = ""
    ) -> IssuedSession:
        """The same for a session that is bound to a certificate: the device's channel is the proof.

        `certificate` is the SHA-256 of the one on this connection. Raises CREDENTIALS_INVALID for another device.
        """
        session = await self._by_refresh_token(refresh_token)
        own = session.device_id == device.id and hmac.compare_digest(session.proof_key, device.channel_key)
        if not session.certificate_bound or not own:
            raise _not_a_token()
        digest = sha256(refresh_token)
        return settled(
            await self._world.store.write(
                lambda tx: self._rotate(tx, session, refresh_token, digest, certificate, address=address),
            )
        )

    async def _by_refresh_token(self, refresh_token: str) -> Session:
        parts = refresh_token.split("_", 3)
        session_id = "_".join(parts[1:3]) if len(parts) == 4 else ""
        session = await self._world.store.read(lambda tx: tx.get(Session, id=session_id))
        if session is None or not session.generation or not session.proof_key:
            raise _not_a_token()
        return session

    async def _rotate(
        self,
        tx: Transaction,
        seen: Session,
        refresh_token: str,
        digest: bytes,
        certificate: bytes = b"",
        *,
        address: str,
    ) -> IssuedSession | UnauthenticatedError:
        now = self._world.clock.now()
        session = await tx.get(Session, id=seen.id)
        user = await tx.get(User, id=seen.user_id)
        if session is None or user is None:
            return _not_a_token()
        ended = end_of(session, now)
        if ended is not None:
            return ended
        policy = await self._world.policy_of(tx, session.tenant_id)
        if session.previous_hash and hmac.compare_digest(digest, session.previous_hash):
            return self._sessions.issue(session, user, policy, certificate=certificate)
        if not hmac.compare_digest(digest, session.refresh_hash):
            return await self._refuse_old_token(tx, session, refresh_token, address)
        rotated = await tx.update(
            Session,
            {"id": session.id, "generation": session.generation, "revoked_at": 0},
            {
                "generation": Plus(1),
                "previous_hash": session.refresh_hash,
                "refresh_hash": sha256(self._sessions.refresh_token(session.id, session.generation + 1)),
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
        return self._sessions.issue(rotated[0], user, policy, certificate=certificate)

    async def _refuse_old_token(
        self, tx: Transaction, session: Session, refresh_token: str, address: str
    ) -> UnauthenticatedError:
        """A genuine but older token means two holders: the session ends. A made-up one changes nothing."""
        if not self._is_genuine(session, refresh_token):
            return _not_a_token()
        await self._sessions.revoke_in(tx, [session], reason="refresh_token_reused", actor=SERVER)
        await self._risks.note(
            tx,
            RiskKind.TOKEN_REUSED,
            "A refresh token came that had been exchanged before: somebody else has a copy. The session was ended.",
            tenant_id=session.tenant_id,
            user_id=session.user_id,
            subject=session.id,
            address=address,
        )
        return session_revoked()

    def _is_genuine(self, session: Session, refresh_token: str) -> bool:
        """Whether a token is, or was, of this session.

        It names its generation, so that one comparison is enough however often a session was refreshed.
        """
        claimed = refresh_token.split("_", 3)[3].partition(".")[0]
        generation = int(claimed) if claimed.isascii() and claimed.isdigit() and len(claimed) < 10 else 0
        genuine = self._sessions.refresh_token(session.id, generation)
        return 0 < generation <= session.generation and hmac.compare_digest(refresh_token.encode(), genuine.encode())

    async def _trace(self, tx: Transaction, session: Session, refusal: UnauthenticatedError, address: str) -> None:
        """P15: somebody has the token of a session whose key they do not have."""
        await self._world.audit(
            tx,
            "session.refresh",
            actor=ANONYMOUS,
            tenant_id=session.tenant_id,
            subject=session.id,
            user_id=session.user_id,
            outcome=refusal.reason.value,
            address=address,
        )


def _not_a_token() -> UnauthenticatedError:
    return UnauthenticatedError(
        Reason.CREDENTIALS_INVALID, "This refresh token is not known here.", fix="Sign in again."
    )
