"""The card a person decides on: every field of the offer on a line of its own, under labels of ours.

Tenant, user and server have a fixed width and stand in brackets, so no text can pretend to be a field.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from keyvouch_agent.pin_standing import tries_left
from keyvouch_agent.prompts.inert import fixed, inert

__all__ = ["number_choices", "number_question", "pin_line", "prompt_card", "utc"]

_IDENTITY_WIDTH = 40
_LATEST = 253402300799  # the last second of the year 9999


def prompt_card(prompt: Mapping[str, object], pin: Mapping[str, object] | None = None) -> str:
    """The card as text of several lines. `pin` adds where the PIN stands."""

    def field(name: str) -> str:
        return str(prompt.get(name, ""))

    def identity(name: str) -> str:
        return f"[{fixed(field(name), _IDENTITY_WIDTH)}]"

    key = inert(field("key"))
    rows = [
        ("Tenant", identity("tenant")),
        ("User", identity("username")),
        ("Server", identity("server")),
        ("App", f"{inert(field('app_name'), longest=60)}  (id {inert(field('app_id'), longest=60)})"),
        ("For", inert(field("audience"))),
        ("From", _origin(field("place"), field("address"))),
        ("When", f"{utc(prompt.get('issued_at'))}, open for {field('seconds_left')} s"),
        ("Message", inert(field("binding_message"), longest=160) or "(none)"),
        ("Key", key if pin is None else f"{key}; {pin_line(pin)}"),
        ("Prompt", inert(field("prompt_id"))),
    ]
    return "\n".join(["Sign-in request", *(f"  {label:<8} {value}" for label, value in rows)])


def number_question(prompt: Mapping[str, object]) -> str:
    """What is asked for the number: to type it or, in the legacy choice, to pick it."""
    choices = number_choices(prompt)
    if choices:
        return f"Which of {', '.join(choices)} is shown where you sign in? "
    return f"Number shown where you sign in ({prompt.get('number_digits')} digits): "


def number_choices(prompt: Mapping[str, object]) -> list[str]:
    """The numbers to pick from; empty where the number is typed."""
    choices = prompt.get("number_choices")
    return [inert(str(one), longest=8) for one in choices] if isinstance(choices, list) else []


def pin_line(pin: Mapping[str, object]) -> str:
    """A few words on where the PIN stands."""
    if not pin.get("connected", True):
        return "not connected: connect it before you answer"
    if not pin.get("asks_pin", True):
        return "its PIN is typed on the reader" if pin.get("provider") == "smartcard" else "verifies you itself"
    if not pin.get("pin_is_set"):
        return "no PIN set"
    left = pin.get("retries_left")
    if not isinstance(left, int):
        return "PIN set"
    return tries_left(left, "PIN ") if left else "PIN blocked"


def utc(instant: object) -> str:
    """Seconds since the epoch as a date and time in UTC."""
    if not isinstance(instant, int) or not 0 <= instant <= _LATEST:
        return "unknown"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(instant))


def _origin(place: str, address: str) -> str:
    known = [inert(part, longest=60) for part in (place, address) if part]
    return ", ".join(known) or "unknown place"
