"""Sign-in, the client's half: begin, follow, withdraw, expire. The drawing is in sign_in.proto.

The device's half is `decisions`, the end of it all `redemption`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keyvouch.errors import KeyvouchError
from keyvouch.proofs import load_proof_key, thumbprint
from keyvouch_server.domain.model import NO_SESSION, Prompt, SignIn, SignInMethod, SignInState, SignInWay
from keyvouch_server.domain.oversight_model import Block
from keyvouch_server.domain.sign_in import OPEN, TRANSITIONS, Event
from keyvouch_server.ports import AtMost, OneOf, Transaction
from keyvouch_server.use_cases.decisions import asked_of
from keyvouch_server.use_cases.offering import SignInRequest
from keyvouch_server.use_cases.opening import Opened, Openings, audit_end, check_request, withdrawn
from keyvouch_server.use_cases.world import ANONYMOUS, SERVER, World, settled, sha256, unknown_sign_in

RETENTION_SECONDS: Final = 7 * 86400
"""How long a sign-in that came to nothing is kept before the sweep removes it. Its audit records stay."""
FORGET_EVERY_SECONDS: Final = 3600
"""How often the sweep looks for them: it has to read the whole table."""


@dataclass(frozen=True, slots=True)
class BegunSignIn:
    """What the client holds after `begin`. `prompts` are those of its user, `methods` what it is told of."""

    sign_in: SignIn
    methods: tuple[SignInMethod, ...]
    prompts: tuple[Prompt, ...] = ()
    token: str = field(default="", repr=False)


class SignIns:
    """Sign-in requests."""

    def __init__(self, world: World, openings: Openings) -> None:
        self._world = world
        self._openings = openings
        self._forget_at = 0
        self._thumbprints: dict[bytes, bytes] = {}

    # -- begin ------------------------------------------------------------------------------------

    async def begin(self, request: SignInRequest, *, way: SignInWay = SignInWay.PROMPT) -> BegunSignIn:
        """Open a sign-in and offer it to the user's devices, or to the client itself (`security_key`).

        1. check the request; 2. find the user: nobody gets the same kind of row; 3. budgets and blocks; 4. policy
        (KI1: before any device is bothered); 5. supersede the older request (KI4); 6. row, prompts, audit. All but the
        first is `opening`.
        """
        check_request(request)
        print_ = self._thumbprint(request.proof_key)
        token = self._world.secret("kvs")
        work = self._openings.for_name
        opened = settled(
            await self._world.write_and_tell(lambda tx: work(tx, request, print_, token, way), self._tell_of_opened)
        )
        return BegunSignIn(opened.sign_in, opened.methods, tuple(opened.prompts), token)

    def _tell_of_opened(self, opened: Opened | KeyvouchError) -> None:
        if isinstance(opened, KeyvouchError):
            return
        for old, old_prompts in opened.superseded:
            self._world.announcer.sign_in(old, old_prompts)
        for prompt in opened.prompts if opened.sign_in.way is SignInWay.PROMPT else ():
            self._world.announcer.prompt(prompt, asked_of(opened.sign_in))

    def _thumbprint(self, proof_key: bytes) -> bytes:
        """The key's name, checked once per key: a busy client begins many sign-ins with one."""
        found = self._thumbprints.get(proof_key)
        if found is None:
            if len(self._thumbprints) >= 1000:
                self._thumbprints.clear()
            found = self._thumbprints[proof_key] = thumbprint(load_proof_key(proof_key))
        return found

    # -- follow and withdraw ----------------------------------------------------------------------

    async def follow(self, sign_in_id: str, token: str) -> SignIn:
        """The sign-in as it is now, for the holder of its token."""
        found = await self._world.store.read(lambda tx: tx.get(SignIn, id=sign_in_id))
        if found is None or found.token_hash != sha256(token):
            raise unknown_sign_in()
        if found.state in OPEN and found.expires_at <= self._world.clock.now():
            await self._end(Event.EXPIRE, {"id": found.id}, actor=SERVER)
            return await self.follow(sign_in_id, token)
        return found

    async def cancel(self, sign_in_id: str, token: str) -> SignInState:
        """Withdraw a sign-in that is still open. One that has ended stays as it is."""
        found = await self.follow(sign_in_id, token)
        ended = await self._end(Event.CANCEL, {"id": found.id}, actor=ANONYMOUS)
        return ended[0].state if ended else (await self.follow(sign_in_id, token)).state

    async def expire(self) -> int:
        """End what has run out of time and forget what ended long ago; returns how many expired."""
        now = self._world.clock.now()
        ended = await self._end(Event.EXPIRE, {"expires_at": AtMost(now)}, actor=SERVER)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_SECONDS
            # What became a session stays with it: the row is the proof of where the session came from.
            old = {"expires_at": AtMost(now - RETENTION_SECONDS), "session_id": NO_SESSION}
            await self._world.store.write(lambda tx: tx.delete(SignIn, old))
            await self._world.store.write(lambda tx: tx.delete(Block, {"until": AtMost(now)}))
        return len(ended)

    async def _end(self, event: Event, where: dict[str, object], *, actor: str) -> list[SignIn]:
        states, target = TRANSITIONS[event]

        async def work(tx: Transaction) -> list[tuple[SignIn, list[Prompt]]]:
            ended = await tx.update(SignIn, {**where, "state": OneOf(tuple(states))}, {"state": target})
            for s in ended:
                await audit_end(self._world, tx, event, s, actor=actor)
            return [(s, await withdrawn(tx, s)) for s in ended]

        def tell(outcome: list[tuple[SignIn, list[Prompt]]]) -> None:
            for sign_in, prompts in outcome:
                self._world.announcer.sign_in(sign_in, prompts)

        return [s for s, _ in await self._world.write_and_tell(work, tell)]
