"""The person as a key provider needs her, when everything has been said before: the PIN given with the decision."""

from __future__ import annotations

from keyvouch_agent.ports import Pin, PresenceContext

__all__ = ["GivenPin"]


class GivenPin:
    """`ProviderInteraction` for a PIN that was typed already and a decision that was made already.

    The PIN is given once: a provider that asks again after a wrong one must not burn a second try with it. Where no
    PIN is set yet, it becomes the first one if `may_set` says so.
    """

    def __init__(self, pin: Pin, *, may_set: bool = False) -> None:
        self._text: str | None = pin.reveal()
        self._may_set = may_set
        pin.close()

    def request_pin(self, retries_left: int | None, min_length: int) -> Pin | None:  # noqa: ARG002
        """Hand the PIN over, once."""
        text, self._text = self._text, None
        return Pin(text) if text is not None else None

    def request_new_pin(self, min_length: int) -> Pin | None:  # noqa: ARG002
        """Hand the PIN over as the first one, where that was asked for."""
        return Pin(self._text) if self._may_set and self._text is not None else None

    def confirm_presence(self, context: PresenceContext) -> bool:  # noqa: ARG002
        """The decision was the confirmation."""
        return True

    def touch_needed(self) -> None:
        """Whoever gave the PIN stands before the device and sees it blink."""
