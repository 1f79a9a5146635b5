"""What a fake Keyvouch server knows: the rows that survive its restarts. Keys, proofs and tokens are real.

Not here: gRPC (`fake_sign_in_server`). A test plays the person with `decide`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.base64url import encode as base64url
from keyvouch.errors import Reason, RefusedError, UnauthenticatedError
from keyvouch.ids import SESSION, SIGN_IN, ServerId, SignInId, new_id
from keyvouch.proofs import jwk_of, load_proof_key, spki_sha256, thumbprint, verify_proof
from keyvouch.statement import Purpose, proof_statement, redeem_statement
from keyvouch.tokens import AccessTokenClaims, sign_access_token, token_header, verify_access_token
from keyvouch.v1 import common_pb2, sign_in_pb2

ISSUER = "https://keyvouch.test"
STRONG = "tpm/hardware_gated/attested/fleet-root"
ENDED = frozenset(range(common_pb2.SIGN_IN_STATE_DENIED, common_pb2.SIGN_IN_STATE_CONSUMED))


class Issuer:
    """A token issuer with one P-256 key."""

    def __init__(self, key_id: str = "key-1") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.key_id = key_id

    def sign(self, claims: AccessTokenClaims, *, header: bytes | None = None) -> str:
        signer = self.key
        return sign_access_token(
            claims,
            header=header or token_header(self.key_id),
            sign=lambda message: signer.sign(message, ec.ECDSA(hashes.SHA256())),
        )

    def jwks(self) -> str:
        jwk = {**jwk_of(self.key.public_key()), "kid": self.key_id, "alg": "ES256", "use": "sig"}
        return json.dumps({"keys": [jwk]})

    def keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        return {self.key_id: self.key.public_key()}


def claims_for(**changes: object) -> AccessTokenClaims:
    """Claims of a good access token, with changes."""
    now = int(time.time())
    values: dict[str, object] = {
        "issuer": ISSUER,
        "subject": "usr_ada",
        "audience": "https://orders.test",
        "client_id": "shop",
        "tenant": "ten_example",
        "session_id": "ses_one",
        "token_id": base64url(os.urandom(8)),
        "issued_at": now,
        "expires_at": now + 300,
        "auth_time": now,
        "acr": "number-matched",
        "amr": ("pop", "pin", "mfa"),
        "assurance": STRONG,
    }
    return AccessTokenClaims(**{**values, **changes})  # type: ignore[arg-type]


@dataclass(slots=True)
class SignInRow:
    """One sign-in."""

    sign_in_id: str
    token: str
    number: str
    context: sign_in_pb2.SignInContext
    proof_key: ec.EllipticCurvePublicKey
    expires_at: int
    state: int = common_pb2.SIGN_IN_STATE_PENDING
    session_id: str = ""


@dataclass(slots=True)
class SessionRow:
    """One session. `refresh_tokens` has every token ever issued, the newest last."""

    session: common_pb2.Session
    audience: str
    proof_key: ec.EllipticCurvePublicKey | None
    refresh_tokens: list[str] = field(default_factory=list)


def refused(reason: Reason, message: str = "No.") -> RefusedError:
    """A refusal by the state of things."""
    return RefusedError(reason, message, fix="Do something else.")


def unauthenticated(reason: Reason) -> UnauthenticatedError:
    """A refusal of a credential."""
    return UnauthenticatedError(reason, "Who are you?", fix="Sign in.")


class FakeWorld:
    """Rows and rules of a server, enough for a client to meet every answer the protocol has."""

    def __init__(self) -> None:
        self.server_id: ServerId = ServerId(spki_sha256(ec.generate_private_key(ec.SECP256R1()).public_key()))
        self.issuer = Issuer()
        self.sign_ins: dict[str, SignInRow] = {}
        self.sessions: dict[str, SessionRow] = {}
        self.access_passes = {"ada": "correct-horse-pass"}
        self.access_seconds = 300
        self.lifetime_seconds = 60
        self.lost_redeem_replies = 0
        self.lost_refresh_replies = 0
        self.begin_error: Exception | None = None
        self.calls: list[str] = []
        self.changed = asyncio.Condition()

    # the person

    async def decide(self, sign_in_id: str, state: int = common_pb2.SIGN_IN_STATE_APPROVED) -> None:
        """Change the state of one sign-in and wake whoever watches."""
        async with self.changed:
            self.sign_ins[sign_in_id].state = state
            self.changed.notify_all()

    async def row(self, username: str = "ada", count: int = 1) -> SignInRow:
        """The newest sign-in of a user, once there are `count` of them."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self._rows_of(username)) >= count)
            return self._rows_of(username)[-1]

    def _rows_of(self, username: str) -> list[SignInRow]:
        return [row for row in self.sign_ins.values() if row.context.username == username]

    # the sign-in

    async def begin(self, context: sign_in_pb2.SignInContext, spki: bytes) -> SignInRow:
        """A new row; older ones of the same user are superseded."""
        if self.begin_error is not None:
            raise self.begin_error
        proof_key = load_proof_key(spki)
        row = SignInRow(
            sign_in_id=new_id(SIGN_IN, os.urandom(16)),
            token=base64url(os.urandom(32)),
            number=f"{int.from_bytes(os.urandom(4), 'big') % 100:02d}",
            context=context,
            proof_key=proof_key,
            expires_at=int(time.time()) + self.lifetime_seconds,
        )
        async with self.changed:
            for older in self._rows_of(context.username):
                if older.state == common_pb2.SIGN_IN_STATE_PENDING:
                    older.state = common_pb2.SIGN_IN_STATE_SUPERSEDED
            self.sign_ins[row.sign_in_id] = row
            self.changed.notify_all()
        return row

    def sign_in_of(self, sign_in_id: str, token: str) -> SignInRow:
        """The row a caller has shown the token of."""
        row = self.sign_ins.get(sign_in_id)
        if row is None or row.token != token:
            raise unauthenticated(Reason.SIGN_IN_UNKNOWN)
        return row

    async def next_state(self, row: SignInRow, seen: int) -> int:
        """The state of a sign-in, once it is another one than `seen`."""
        async with self.changed:
            await self.changed.wait_for(lambda: row.state != seen)
            return row.state

    def redeem_with_proof(self, row: SignInRow, proof: bytes) -> SessionRow:
        """Verify the proof as the protocol says, and redeem."""
        statement = redeem_statement(self.server_id, SignInId(row.sign_in_id), row.token)
        verify_proof(row.proof_key, Purpose.REDEEM, statement, signature=proof)
        return self.redeem(row)

    def redeem(self, row: SignInRow) -> SessionRow:
        """Turn an approval into a session; once, and the same again."""
        if row.session_id:
            return self.sessions[row.session_id]
        if row.state != common_pb2.SIGN_IN_STATE_APPROVED:
            raise refused(Reason.SIGN_IN_PENDING)
        session = self.new_session(row.context, acr="number-matched", amr=("pop", "pin", "mfa"), key=row.proof_key)
        session.refresh_tokens.append(base64url(os.urandom(32)))
        row.state, row.session_id = common_pb2.SIGN_IN_STATE_CONSUMED, session.session.session_id
        return session

    # sessions

    def new_session(
        self,
        context: sign_in_pb2.SignInContext,
        *,
        acr: str,
        amr: tuple[str, ...],
        key: ec.EllipticCurvePublicKey | None,
    ) -> SessionRow:
        """A session row without a refresh token."""
        now = int(time.time())
        session = common_pb2.Session(
            session_id=new_id(SESSION, os.urandom(16)),
            tenant_id="ten_example",
            user_id=f"usr_{context.username}",
            username=context.username,
            app_name=context.app_name,
            amr=amr,
            acr=acr,
            auth_time=now,
            created_at=now,
            expires_at=now + 86_400,
        )
        row = SessionRow(session, context.audience or context.app_id, key)
        self.sessions[session.session_id] = row
        return row

    def tokens_of(self, row: SessionRow) -> common_pb2.SessionTokens:
        """Present tokens of a session; the access token is a new one each time."""
        now, session = int(time.time()), row.session
        claims = claims_for(
            subject=session.user_id,
            audience=row.audience,
            session_id=session.session_id,
            issued_at=now,
            expires_at=now + self.access_seconds,
            auth_time=session.auth_time,
            acr=session.acr,
            amr=tuple(session.amr),
            confirmation=base64url(thumbprint(row.proof_key)) if row.proof_key else "",
            username=session.username,
        )
        return common_pb2.SessionTokens(
            session_id=session.session_id,
            access_token=self.issuer.sign(claims),
            access_expires_at=claims.expires_at,
            refresh_token=row.refresh_tokens[-1] if row.refresh_tokens else "",
            session_expires_at=session.expires_at,
        )

    def refresh(self, token: str, proof: bytes) -> SessionRow:
        """Rotate: the newest token makes a new one, the one before gives it again, an older one ends the session."""
        row = next((r for r in self.sessions.values() if token in r.refresh_tokens), None)
        if row is None or row.proof_key is None:
            raise unauthenticated(Reason.CREDENTIALS_INVALID)
        statement = proof_statement(self.server_id, hashlib.sha256(token.encode()).digest())
        verify_proof(row.proof_key, Purpose.REFRESH, statement, signature=proof)
        if token not in row.refresh_tokens[-2:]:
            row.session.revoked = True
        if row.session.revoked:
            raise unauthenticated(Reason.SESSION_REVOKED)
        if token == row.refresh_tokens[-1]:
            row.refresh_tokens.append(base64url(os.urandom(32)))
        return row

    def authenticate(self, token: str) -> SessionRow:
        """The live session of an access token."""
        claims = verify_access_token(token, keys=self.issuer.keys(), issuer=ISSUER, audience=None, now=int(time.time()))
        row = self.sessions.get(claims.session_id)
        if row is None:
            raise unauthenticated(Reason.CREDENTIALS_INVALID)
        if row.session.revoked:
            raise unauthenticated(Reason.SESSION_REVOKED)
        return row


def unverified(token: str) -> dict[str, object]:
    """The payload of a token, without verification."""
    body = token.split(".")[1]
    payload: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return payload
