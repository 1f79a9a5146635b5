"""Sign-in for an app on this device. The drawing stands in `keyvouch/v1/same_device.proto`.

    1  BeginSignIn over the device's own channel
    2  review the offer like every prompt: server, tenant, user, device, credential, expiry (`ceremonies.sign_in`)
    3  it must ask for what the app asked for, and name this device's certificate as its proof key
       -- the person is shown the review and gives the PIN --
    4  the provider signs an approval, with the number of the reply: here the device is the client
    5  CompleteSignIn, again while the server cannot be reached: a copy gives the same session and never a second one

What is not here: showing, asking, and what the session is used for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from keyvouch.errors import EvidenceError, Reason, UnavailableError
from keyvouch_agent.agent_ports import Answer, Prompt
from keyvouch_agent.ceremonies.sign_in import Review, SignInCeremony
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.ports import ProviderInteraction
from keyvouch_agent.session_ports import AppRequest, BegunSignIn, OpenedSession, SessionServer

__all__ = ["OpenSignIn", "SameDeviceCeremony"]

PAUSES: Final = (0.3, 1.0, 3.0)
"""Seconds before an answer is sent again."""


@dataclass(frozen=True, slots=True)
class OpenSignIn:
    """A sign-in that may be shown: `review` fits the enrolment and what was asked for."""

    begun: BegunSignIn
    review: Review


class SameDeviceCeremony:
    """Sign-ins of one enrolment for itself.

    `current` gives the record as it is, `server` connects with it, `signing` is the ceremony of all its prompts, `turn`
    is held while the provider signs.
    """

    def __init__(
        self,
        *,
        current: Callable[[], Enrolment],
        server: Callable[[Enrolment], SessionServer],
        signing: SignInCeremony,
        turn: asyncio.Lock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._current = current
        self._server = server
        self._signing = signing
        self._turn = turn
        self._sleep = sleep

    async def begin(self, wanted: AppRequest) -> OpenSignIn:
        """Steps 1 to 3.

        Raises what the server answers, what `SignInCeremony.review` raises, and `EvidenceError(STATEMENT_MISMATCH)`.
        """
        enrolment = self._current()
        server = self._server(enrolment)
        try:
            begun = await server.begin_sign_in(wanted)
        finally:
            await server.close()
        prompt = Prompt(begun.prompt_id, begun.offer, begun.expires_at, len(begun.number))
        review = self._signing.review(prompt)
        _check_asked(review, begun, wanted)
        _check_certificate(review, enrolment)
        return OpenSignIn(begun, review)

    async def complete(self, opened: OpenSignIn, interaction: ProviderInteraction) -> OpenedSession:
        """Steps 4 and 5. The PIN comes from `interaction`.

        Raises what `SignInCeremony.approve` raises, and what the server answers.
        """
        async with self._turn:
            answer = await self._approved(opened, interaction)
        server = self._server(self._current())
        try:
            return await self._send(server, opened.begun, answer)
        finally:
            await server.close()

    async def _approved(self, opened: OpenSignIn, interaction: ProviderInteraction) -> Answer:
        """Step 4. Whoever gives up takes back what the person is being asked."""
        try:
            return await asyncio.to_thread(self._signing.approve, opened.review, opened.begun.number, interaction)
        except asyncio.CancelledError:
            self._signing.withdraw(opened.review)
            raise

    async def _send(self, server: SessionServer, begun: BegunSignIn, answer: Answer) -> OpenedSession:
        for pause in PAUSES:
            try:
                return await server.complete_sign_in(begun, answer)
            except UnavailableError:
                await self._sleep(pause)
        return await server.complete_sign_in(begun, answer)


def _check_asked(review: Review, begun: BegunSignIn, wanted: AppRequest) -> None:
    offer = review.offer
    offered = (offer.sign_in_id, offer.app_id, offer.app_name, offer.audience, offer.binding_message)
    asked = (begun.sign_in_id, wanted.app_id, wanted.app_name, wanted.audience or wanted.app_id, wanted.binding_message)
    if offered != asked:
        raise _mismatch("does not offer what was asked for")


def _check_certificate(review: Review, enrolment: Enrolment) -> None:
    if review.offer.proof_key != hashlib.sha256(enrolment.certificate_chain[0]).digest():
        raise _mismatch("offers a session to another certificate than this device's")


def _mismatch(what: str) -> EvidenceError:
    return EvidenceError(
        Reason.STATEMENT_MISMATCH,
        f"The server {what}.",
        fix="Nothing was signed. Tell your administrator.",
    )
