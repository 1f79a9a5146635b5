"""Lost or replaced? The question on a terminal, once the new key is there (PS19).

Names of devices are the server's words, so they are shown inert.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from keyvouch.errors import MalformedError, Reason
from keyvouch_agent.agent_ports import Departing, DeviceFate, PresentDevice
from keyvouch_agent.commands.asking import LateTerminal
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.prompts.tty_lines import TtyLines

__all__ = ["DepartingQuestion"]

_FATES: Final = {
    **dict.fromkeys(("l", "lost"), DeviceFate.LOST),
    **dict.fromkeys(("r", "replaced"), DeviceFate.REPLACED),
}


class DepartingQuestion:
    """Asks on the terminal it is given, late."""

    def __init__(self, terminal: LateTerminal) -> None:
        self._terminal = terminal

    async def ask(self, devices: Sequence[PresentDevice], needed: int) -> tuple[Departing, ...]:
        """The devices the person names, with what became of each; at least `needed` of them.

        Raises `MalformedError(USER_CANCELLED)` at the end of the input.
        """
        lines = self._terminal.get()
        lines.show("You also have:")
        for number, device in enumerate(devices, 1):
            lines.show(f"  {number}  {_described(device)}")
        if needed:
            lines.show(f"There is no room for another device: {needed} of these must go.")
        going: dict[str, DeviceFate] = {}
        while len(going) < len(devices):
            chosen = await _number(lines, devices, is_first=not going, may_stop=len(going) >= needed)
            if chosen is None:
                break
            going[chosen.device_id] = await _fate(lines, chosen)
        if going:
            lines.show("They go with their sessions in the moment in which this device is registered.")
        return tuple(Departing(device_id, fate) for device_id, fate in going.items())


async def _number(
    lines: TtyLines, devices: Sequence[PresentDevice], *, is_first: bool, may_stop: bool
) -> PresentDevice | None:
    """Which one; None for no other."""
    question = "Is one of them lost or replaced?" if is_first else "Another one?"
    way_out = ", or Enter for none" if may_stop else ""
    while True:
        typed = _given(await lines.ask(f"{question} Its number{way_out}: "))
        if not typed and may_stop:
            return None
        if typed.isascii() and typed.isdigit() and 0 < int(typed) <= len(devices):
            return devices[int(typed) - 1]
        lines.show(f"Type a number from 1 to {len(devices)}{way_out}.")


async def _fate(lines: TtyLines, device: PresentDevice) -> DeviceFate:
    while True:
        typed = _given(await lines.ask(f"{inert(device.display_name)}: lost, or replaced by this device? [l/r]: "))
        if typed in _FATES:
            return _FATES[typed]
        lines.show("Type l for lost, of which the administrators are told, or r for replaced.")


def _given(typed: str | None) -> str:
    if typed is None:
        raise MalformedError(
            Reason.USER_CANCELLED, "Nothing was typed, so nothing was registered.", fix="Run the command again."
        )
    return typed.strip().lower()


def _described(device: PresentDevice) -> str:
    used = "never used"
    if device.last_used_at:
        used = f"last used {datetime.fromtimestamp(device.last_used_at, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{inert(device.display_name)} ({device.provider or 'unknown'}, {used}, {inert(device.device_id)})"
