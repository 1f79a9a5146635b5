"""Sign-in on the device itself, over its own channel. The drawing is in same_device.proto.

The records, the policy and the judgement of the answer are those of every sign-in (`sign_in`, `decisions`,
`redemption`). Different are three things: whose it is (the device's channel key, which the connection proves), to
whom it is offered (to that device), and what the session is bound to (the certificate of the connection).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from keyvouch.errors import KeyvouchError
from keyvouch.ids import SignInId
from keyvouch_server.domain.model import Device, Prompt, SignIn, SignInState, SignInWay, User
from keyvouch_server.ports import Snapshot, Transaction
from keyvouch_server.use_cases.decisions import Decisions
from keyvouch_server.use_cases.devices import removed
from keyvouch_server.use_cases.judgement import Answer
from keyvouch_server.use_cases.offering import SignInRequest
from keyvouch_server.use_cases.opening import Opened, Openings, check_app
from keyvouch_server.use_cases.redemption import Redemptions
from keyvouch_server.use_cases.sessions import IssuedSession
from keyvouch_server.use_cases.world import World, settled, sha256, unknown_sign_in


@dataclass(frozen=True, slots=True)
class BegunOnDevice:
    """What the device holds after `begin`."""

    sign_in: SignIn
    prompt: Prompt
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Completed:
    """What an answer led to: a session after an approval, else none."""

    state: SignInState
    session: IssuedSession | None = None


class SameDeviceSignIns:
    """Sign-ins whose client is the device that approves them."""

    def __init__(self, world: World, openings: Openings, decisions: Decisions, redemptions: Redemptions) -> None:
        self._world = world
        self._openings = openings
        self._decisions = decisions
        self._redemptions = redemptions

    async def begin(self, device: Device, request: SignInRequest, certificate: bytes) -> BegunOnDevice:
        """Open a sign-in of the device's user. `certificate` is the SHA-256 of the one on this connection.

        1. check the request; 2. a budget of its own, and policy as for every sign-in (KI1); 3. supersede the older
        request (KI4); 4. row, prompt for this device alone, audit.
        """
        check_app(request)
        token = self._world.secret("kvs")
        opened = settled(
            await self._world.write_and_tell(
                lambda tx: self._begin(tx, device, request, certificate, token), self._tell_superseded
            )
        )
        return BegunOnDevice(opened.sign_in, opened.prompts[0], token)

    def _tell_superseded(self, opened: Opened | KeyvouchError) -> None:
        for old, old_prompts in () if isinstance(opened, KeyvouchError) else opened.superseded:
            self._world.announcer.sign_in(old, old_prompts)

    async def _begin(
        self, tx: Transaction, device: Device, request: SignInRequest, certificate: bytes, token: str
    ) -> Opened | KeyvouchError:
        user = await tx.get(User, id=device.user_id)
        if user is None or await tx.get(Device, id=device.id) is None:
            return removed()
        return await self._openings.on_device(tx, device, user, request, certificate, token)

    async def complete(
        self, device: Device, sign_in_id: str, token: str, answer: Answer, certificate: bytes
    ) -> Completed:
        """Decide a sign-in, and turn an approval into its session.

        1. it must be this device's own, with its token, and the answer one to it; 2. the answer is judged like every
        other; 3. an approval is consumed, policy once more. A copy of the answer that decided goes on to step 3,
        which gives the same session again: the row remembers which statement decided it.
        """
        row = await self._world.store.read(lambda tx: self._own(tx, device, sign_in_id, token, answer.prompt_id))
        answered = await self._decisions.answer(device, answer, way=SignInWay.SAME_DEVICE)
        if answered.refusal is not None and not await self._decided(row.id, answer):
            raise answered.refusal
        if answered.state in (SignInState.DENIED, SignInState.REPORTED):
            return Completed(answered.state)
        redeemed = await self._redemptions.consume(row.id, certificate=certificate)
        return Completed(SignInState.CONSUMED, redeemed.issued)

    async def _own(self, tx: Snapshot, device: Device, sign_in_id: str, token: str, prompt_id: str) -> SignIn:
        row = await tx.get(SignIn, id=sign_in_id)
        if row is None or not row.same_device or not hmac.compare_digest(row.token_hash, sha256(token)):
            raise unknown_sign_in()
        prompt = await tx.get(Prompt, id=prompt_id)
        if prompt is None or prompt.sign_in_id != row.id or not hmac.compare_digest(row.proof_key, device.channel_key):
            raise unknown_sign_in()
        return row

    async def _decided(self, sign_in_id: SignInId, answer: Answer) -> bool:
        """Whether this very statement decided the sign-in, so that this answer is a copy of the one that did."""
        row = await self._world.store.read(lambda tx: tx.get(SignIn, id=sign_in_id))
        return row is not None and row.decision_hash == hashlib.sha256(answer.statement).digest()
