"""The user of a provider, scripted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from keyvouch_agent.ports import Pin, PresenceContext


@dataclass
class ScriptedInteraction:
    """Types `pin`, sets `new_pin` when asked for a first one, and confirms as told. None cancels."""

    pin: str | None = "123456"
    new_pin: str | None = None
    confirms: bool | type[Exception] = True
    last_try: bool = False
    on_confirm: Callable[[], None] = lambda: None
    asked: list[object] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def request_pin(self, retries_left: int | None, min_length: int) -> Pin | None:
        self.asked.append(("pin", retries_left, min_length))
        return self._typed(self.pin)

    def request_new_pin(self, min_length: int) -> Pin | None:
        self.asked.append(("new pin", min_length))
        return self._typed(self.new_pin)

    def confirm_presence(self, context: PresenceContext) -> bool:
        self.asked.append(context)
        self.on_confirm()
        if isinstance(self.confirms, bool):
            return self.confirms
        raise self.confirms

    def allows_last_try(self) -> bool:
        return self.last_try

    def touch_needed(self) -> None:
        self.asked.append("touch")

    def tell(self, text: str) -> None:
        self.told.append(text)

    def _typed(self, text: str | None) -> Pin | None:
        if text is None:
            return None
        self.pins.append(Pin(text))
        return self.pins[-1]
