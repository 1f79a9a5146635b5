"""Calls that are proved with the session's key: a copied access token is worth nothing by itself (P15).

A proof that is sent is always checked, and one is good once. Used ones are rows, written before the call is served, so
that neither a restart nor a second node takes one again. Not here: what a proof is (`keyvouch.call_proof`).
"""

from __future__ import annotations

from typing import Final

from keyvouch.call_proof import WINDOW_SECONDS, VerifiedCall, verify_call_proof
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason, UnauthenticatedError
from keyvouch_server.domain.oversight_model import UsedProof
from keyvouch_server.ports import AtMost, Duplicate, Transaction
from keyvouch_server.use_cases.world import ANONYMOUS, Caller, World, settled

KEPT_SECONDS: Final = 2 * WINDOW_SECONDS + 3600
"""How long a used proof is remembered after its instant: an hour more than it counts, so that a clock which is an hour
ahead for a while, or is set back by one, revives none (P20).
"""


class CallProofs:
    """Checking the proofs of calls."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def check(self, caller: Caller, method: str, token: str, proof: bytes | None, *, may_miss: bool) -> None:
        """Let a call pass that its caller has proved.

        1. without a proof: the session has no key (it was opened with an access pass), or `may_miss`, or policy does
        not ask for one; 2. the proof is of this server, method, token and instant, by the session's key; 3. it was
        never used. Refusals leave a trace: somebody holds the token of a session whose key they do not have.

        Raises `UnauthenticatedError` with PROOF_REQUIRED, PROOF_INVALID or PROOF_REPLAYED.
        """
        if proof is None:
            if caller.session.proof_key and not may_miss:
                await self._must_not_be_required(caller, method)
            return
        try:
            verified = self._verify(caller, method, token, proof)
        except (EvidenceError, MalformedError) as error:
            refusal = UnauthenticatedError(error.reason, error.message, fix=error.fix, metadata=error.metadata)
            await self._world.store.write(lambda tx: self._refuse(tx, caller, method, refusal))
            raise refusal from error
        settled(await self._world.store.write(lambda tx: self._use(tx, caller, method, verified)))

    def _verify(self, caller: Caller, method: str, token: str, proof: bytes) -> VerifiedCall:
        return verify_call_proof(
            proof,
            key_thumbprint=caller.session.proof_thumbprint,
            server_id=self._world.facts.server_id,
            method=method,
            access_token=token,
            now=self._world.clock.now(),
        )

    async def _use(self, tx: Transaction, caller: Caller, method: str, verified: VerifiedCall) -> KeyvouchError | None:
        try:
            await tx.insert(UsedProof(verified.id, verified.issued_at + KEPT_SECONDS))
        except Duplicate:
            refusal = UnauthenticatedError(
                Reason.PROOF_REPLAYED,
                "The proof of this call was used before.",
                fix="Make a proof for each call. If you did, somebody may be reading your connection.",
            )
            await self._audit(tx, caller, method, refusal)
            return refusal
        return None

    async def _must_not_be_required(self, caller: Caller, method: str) -> None:
        policy = await self._world.store.read(lambda tx: self._world.policy_of(tx, caller.session.tenant_id))
        if not policy.session.proof_required:
            return
        refusal = UnauthenticatedError(
            Reason.PROOF_REQUIRED,
            "This call has to be proved with the key of the session.",
            fix="Send a proof with each call, in `keyvouch-proof-bin`; the SDK does.",
        )
        settled(await self._world.store.write(lambda tx: self._refuse(tx, caller, method, refusal)))

    async def _refuse(self, tx: Transaction, caller: Caller, method: str, refusal: KeyvouchError) -> KeyvouchError:
        await self._audit(tx, caller, method, refusal)
        return refusal

    async def _audit(self, tx: Transaction, caller: Caller, method: str, refusal: KeyvouchError) -> None:
        await self._world.audit(
            tx,
            "call.denied",
            actor=ANONYMOUS,
            tenant_id=caller.user.tenant_id,
            subject=method,
            user_id=caller.user.id,
            outcome=refusal.reason.value,
            session=caller.session.id,
        )

    async def forget_passed(self) -> None:
        """Drop the proofs that would not count any more."""
        passed = {"expires_at": AtMost(self._world.clock.now())}
        if await self._world.store.read(lambda tx: tx.find(UsedProof, passed, limit=1)):
            await self._world.store.write(lambda tx: tx.delete(UsedProof, passed))
