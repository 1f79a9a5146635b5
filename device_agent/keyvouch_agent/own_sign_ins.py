"""Sign-ins for apps on this device that wait for the person's PIN: begun, shown, not yet completed.

They are kept in memory only, for as long as the server would take their answer: one that is lost is begun again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from keyvouch.errors import ConflictError, NotFoundError, Reason
from keyvouch_agent.ceremonies.same_device import OpenSignIn, SameDeviceCeremony
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.ports import ProviderInteraction
from keyvouch_agent.session_ports import AppRequest
from keyvouch_agent.views import Document, prompt_document, session_document

__all__ = ["OwnSignIns"]

MAX_OPEN: Final = 8


class OwnSignIns:
    """Those of one enrolment. `server_now` is the server's time in seconds since the epoch."""

    def __init__(
        self, ceremony: SameDeviceCeremony, *, current: Callable[[], Enrolment], server_now: Callable[[], float]
    ) -> None:
        self._ceremony = ceremony
        self._current = current
        self._server_now = server_now
        self._open: dict[str, OpenSignIn] = {}

    def holds(self, prompt_id: str) -> bool:
        """Whether this is one of them."""
        return prompt_id in self._open

    async def begin(self, wanted: AppRequest) -> Document:
        """Begin one; returns what the person is to be shown. Raises as `SameDeviceCeremony.begin` does."""
        self._forget_expired()
        if len(self._open) >= MAX_OPEN:
            raise _too_many()
        opened = await self._ceremony.begin(wanted)
        self._open[opened.begun.prompt_id] = opened
        return prompt_document(opened.review, self._current(), server_now=self._server_now())

    async def complete(self, prompt_id: str, interaction: ProviderInteraction) -> Document:
        """Approve one with the PIN; returns the session.

        Raises as `SameDeviceCeremony.complete` does; after a wrong PIN another try is open.
        """
        opened = self._open.pop(prompt_id, None)
        if opened is None:
            raise _unknown()
        try:
            session = await self._ceremony.complete(opened, interaction)
        except BaseException:
            self._open[prompt_id] = opened
            raise
        return session_document(session)

    def _forget_expired(self) -> None:
        now = self._server_now()
        self._open = {name: opened for name, opened in self._open.items() if opened.review.expires_at > now}


def _too_many() -> ConflictError:
    return ConflictError(
        Reason.THROTTLED,
        f"{MAX_OPEN} sign-ins of this device wait for a PIN already.",
        fix="Answer them, or wait two minutes until they have expired.",
    )


def _unknown() -> NotFoundError:
    return NotFoundError(
        Reason.PROMPT_UNKNOWN,
        "There is no such sign-in: it was completed, is being completed or has expired.",
        fix="Run `keyvouch-agent sign-in` again.",
    )
