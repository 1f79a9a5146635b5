"""What a registration takes, point by point, for a person whose registration was refused (PS11)."""

from __future__ import annotations

from typing import Final

from keyvouch.errors import KeyvouchError
from keyvouch_agent.prompts.inert import inert

__all__ = ["prerequisite_lines"]

_WORDS: Final = {
    "approval.enabled": "policy allows approval with a device",
    "approval.targets": "policy names you for it",
    "security_key.enabled": "policy allows sign-in with a security key",
    "security_key.targets": "policy names you for that",
    "device_room": "there is room for another device, or one that you have goes",
    "device_endpoint": "this device reaches the server's device listener",
}


def prerequisite_lines(error: KeyvouchError) -> list[str]:
    """One line for each that the refusal names: whether it is met, and if not, the reason."""
    said = [one.split("=", 1) for one in error.metadata.get("prerequisites", "").split(",") if "=" in one]
    if not said:
        return []
    return ["What it takes:", *(_line(name, state) for name, state in said)]


def _line(name: str, state: str) -> str:
    words = _WORDS.get(name, inert(name))
    return f"  yes  {words}" if state == "ok" else f"  no   {words} ({inert(state)})"
