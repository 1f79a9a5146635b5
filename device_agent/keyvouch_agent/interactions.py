"""The person as a key provider needs her, when everything has been said before: the PIN given with the decision."""

from __future__ import annotations

from collections.abc import Callable

from keyvouch_agent.ports import Pin, PresenceContext

__all__ = ["GivenPin"]


class GivenPin:
    """`ProviderInteraction` for a PIN that was typed already and a decision that was made already.

    The PIN is given once: a provider that asks again after a wrong one must not burn a second try with it. Where no
    PIN is set yet, it becomes the first one if `may_set` says so. An empty one is none: the authenticator verifies its
    user itself. `tell` gets what the person is to do with a security key; it is called from the provider's thread.
    """

    def __init__(
        self,
        pin: Pin,
        *,
        may_set: bool = False,
        last_try: bool = False,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._text: str | None = pin.reveal() or None
        self._may_set = may_set
        self._last_try = last_try
        self._tell = tell
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

    def allows_last_try(self) -> bool:
        """What was said with the PIN."""
        return self._last_try

    def touch_needed(self) -> None:
        """Pass it on: whoever gave the PIN may not see the key blink."""
        self._tell("Touch the security key now.")

    def tell(self, text: str) -> None:
        """Pass it on."""
        self._tell(text)
