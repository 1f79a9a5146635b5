"""Sign-in with a security key at the client. The drawing is in sign_in.proto.

The records, throttle, policy and judgement are those of every sign-in (`opening`, `decisions`, `redemption`). Different
are three things: to whom it is offered (to the client, and to keys that a client can use), what may answer it (an
assertion with the client's origin, by whoever has the sign-in's token), and what a stranger can learn by it: nothing.
Whoever names a user gets eight offers. Those that are of no key of the user's are of no key at all (`decoys`).
"""

from __future__ import annotations

import contextlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, ThrottledError, UnauthenticatedError
from keyvouch.ids import CredentialId, DeviceId, PromptId, SignInId, UserId
from keyvouch.statement import DecisionStatement
from keyvouch_server.domain.model import Credential, Device, Prompt, ProviderKind, SignIn, SignInState, SignInWay
from keyvouch_server.domain.sign_in import why_not
from keyvouch_server.ports import Keys, Plus, Transaction
from keyvouch_server.use_cases.decisions import Answered, CounterMovedError, Decided, Decisions, too_late
from keyvouch_server.use_cases.judgement import Answer, Assertion, Judge, Offered
from keyvouch_server.use_cases.offering import SignInRequest
from keyvouch_server.use_cases.sign_in import BegunSignIn, SignIns
from keyvouch_server.use_cases.world import ANONYMOUS, World, sha256, unknown_sign_in

REFUSED_ANSWERS: Final = 5
"""Assertions that prove nothing, after which a request takes no more."""

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class BegunWithKey:
    """What the client holds after `begin`: the sign-in, and an offer for each credential, in the order of their ids."""

    begun: BegunSignIn
    offers: tuple[tuple[CredentialId, bytes], ...]


class SecurityKeySignIns:
    """Sign-ins that a security key at the client approves."""

    def __init__(self, world: World, sign_ins: SignIns, decisions: Decisions) -> None:
        self._world = world
        self._sign_ins = sign_ins
        self._decisions = decisions
        self._judge = Judge(world.facts)
        self._no_key = _key_of_nobody(world.keys)

    # -- begin ------------------------------------------------------------------------------------

    async def begin(self, request: SignInRequest) -> BegunWithKey:
        """Open a sign-in like every other (`SignIns.begin`); offer it to the keys there are, and to some that are none.

        No stream of a device is told. A user without a key that policy accepts now gets an answer like everybody's; the
        audit log says `no_method`.
        """
        begun = await self._sign_ins.begin(request, way=SignInWay.SECURITY_KEY)
        return BegunWithKey(begun, tuple(sorted((prompt.credential_id, prompt.offer) for prompt in begun.prompts)))

    # -- complete ---------------------------------------------------------------------------------

    async def complete(self, sign_in_id: str, token: str, statement: bytes, assertion: Assertion) -> SignInState:
        """Approve a sign-in, all of it in one transaction.

        1. it must be one of this kind, with its token; 2. the row must be open, with tries left; 3. the credential must
        be one it was offered to; 4. the assertion is judged and decides like every other. Raises the state's error, or
        `UnauthenticatedError(SECURITY_KEY_REFUSED)` for whatever is wrong with the answer, be it offered to somebody's
        key or to nobody's. Such an answer counts, and does not end the request.
        """
        answer = Answer("", statement, assertion)
        try:
            answered, _ = await self._world.write_and_tell(
                lambda tx: self._complete(tx, sign_in_id, token, answer),
                lambda done: self._decisions.announce(done[1], ""),
            )
        except CounterMovedError as undone:  # and its audit record with it
            row, refusal = undone.offered.sign_in, undone.refusal
            answered = await self._world.store.write(lambda tx: self._refused(tx, row, refusal))
        if answered.refusal is not None:
            raise answered.refusal
        return answered.state

    async def _complete(
        self, tx: Transaction, sign_in_id: str, token: str, answer: Answer
    ) -> tuple[Answered, Decided | None]:
        row = await tx.get(SignIn, id=sign_in_id)
        if row is None or not row.security_key or not hmac.compare_digest(row.token_hash, sha256(token)):
            return Answered(SignInState.EXPIRED, unknown_sign_in()), None
        left = row.expires_at - self._world.clock.now()
        if row.state is not SignInState.PENDING:
            return Answered(row.state, too_late(row, answer.statement)), None
        if left <= 0:
            return Answered(SignInState.EXPIRED, why_not(SignInState.EXPIRED)), None
        if row.refused_answers >= REFUSED_ANSWERS:
            return Answered(row.state, _too_many_answers(left)), None
        offered = await self._offered(tx, row, answer)
        if offered is None:
            return await self._refused(tx, row, self._judge_for_nobody(row, answer)), None
        answered, decided = await self._decisions.decide(tx, offered, answer)
        if answered.refusal is not None and answered.state is SignInState.PENDING:
            answered = await self._refused(tx, row, answered.refusal)
        return answered, decided

    async def _offered(self, tx: Transaction, row: SignIn, answer: Answer) -> Offered | None:
        """W2: the prompt of the credential that claims to have signed, if it is one of this very sign-in."""
        if isinstance(answer.evidence, bytes):
            return None
        prompts = await tx.find(Prompt, {"sign_in_id": row.id})
        prompt = next((p for p in prompts if p.credential_id == answer.evidence.credential_id), None)
        if prompt is None:
            return None
        device = await tx.get(Device, id=prompt.device_id)
        credential = await tx.get(Credential, id=prompt.credential_id)
        if device is None or credential is None or not device.user_id == credential.user_id == row.user_id:
            return None
        return Offered(device, prompt, row, credential)

    def _judge_for_nobody(self, row: SignIn, answer: Answer) -> EvidenceError:
        """P12: what was offered to no key takes as long to refuse as what was offered to one."""
        with contextlib.suppress(KeyvouchError):
            offer = DecisionStatement.parse(answer.statement).offer
            self._judge.judge(_offered_to_nobody(row, offer, answer, self._no_key), answer)
        return EvidenceError(
            Reason.CREDENTIAL_ID, "The credential is none that the sign-in was offered to.", fix="Use a registered key."
        )

    async def _refused(self, tx: Transaction, row: SignIn, refusal: KeyvouchError) -> Answered:
        """Count and record what was wrong; the caller is told that something was."""
        await tx.update(SignIn, {"id": row.id, "state": SignInState.PENDING}, {"refused_answers": Plus(1)})
        await self._world.audit(
            tx,
            "sign_in.answer",
            actor=ANONYMOUS,
            tenant_id=row.tenant_id,
            subject=row.id,
            user_id=row.user_id,
            outcome=refusal.reason.value,
        )
        return Answered(SignInState.PENDING, _not_accepted())


def _key_of_nobody(keys: Keys) -> bytes:
    """A COSE key that nothing was ever signed with."""
    scalar = int.from_bytes(keys.mac("decoy-key", b""), "big") % (_P256_ORDER - 1) + 1
    return bytes(CoseKey.from_public_key(ec.derive_private_key(scalar, ec.SECP256R1()).public_key()))


def _offered_to_nobody(row: SignIn, offer: bytes, answer: Answer, key: bytes) -> Offered:
    claimed = b"" if isinstance(answer.evidence, bytes) else answer.evidence.credential_id
    credential_id, device_id, nobody = CredentialId(claimed), DeviceId(""), UserId("")
    return Offered(
        Device(device_id, row.tenant_id, nobody, "", ProviderKind.FIDO2, b"", b"", 0),
        Prompt(PromptId(""), SignInId(row.id), device_id, credential_id, offer, 0, 0),
        row,
        Credential(
            credential_id, row.tenant_id, nobody, device_id, b"", key, 0, False, bytes(16), b"", b"", row.assurance, 0
        ),
    )


def _not_accepted() -> UnauthenticatedError:
    """The one answer to whatever proves nothing."""
    return UnauthenticatedError(
        Reason.SECURITY_KEY_REFUSED,
        "The server does not accept this security key's answer.",
        fix="Use a security key that you have registered here. Administrators find the reason in the audit log.",
    )


def _too_many_answers(seconds: int) -> ThrottledError:
    return ThrottledError(
        Reason.THROTTLED,
        f"{REFUSED_ANSWERS} answers to this sign-in were refused, so it takes no more.",
        retry_after=float(seconds),
        fix="Begin a new sign-in.",
    )
