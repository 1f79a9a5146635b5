"""Lost or replaced? Which devices of a person go when a new one comes (PS19).

The person is asked once the new key is there; where there is no room for it unless one goes, before anybody types a
PIN. Whoever says it beforehand is not asked. Not here: terminals, and the removal itself, which is the server's in the
same transaction in which the new device comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from keyvouch.errors import NotFoundError, Reason, RefusedError
from keyvouch_agent.agent_ports import Departing, DeviceFate, PresentDevice

__all__ = ["ChooseDeparting", "check_room", "departing_of", "joined", "kept", "named", "named_beforehand", "too_many"]

ChooseDeparting: TypeAlias = Callable[[Sequence[PresentDevice], int], Awaitable[Sequence[Departing]]]
"""Asks a person which of these devices are lost or replaced; as many as the number says have to go at least."""


def named_beforehand(
    present: Sequence[PresentDevice], *, lost: Sequence[str], replaced: Sequence[str]
) -> tuple[Departing, ...]:
    """The devices that were named, each by its id or its name; a lost one is lost, whatever else it is called.

    Raises `NotFoundError(DEVICE_UNKNOWN)` for one that the person does not have, and for a name that several have.
    """
    fates = {_one(present, name).device_id: DeviceFate.REPLACED for name in replaced}
    fates |= {_one(present, name).device_id: DeviceFate.LOST for name in lost}
    return tuple(Departing(device_id, fate) for device_id, fate in fates.items())


def _one(present: Sequence[PresentDevice], name: str) -> PresentDevice:
    found = [d for d in present if name == d.device_id] or [d for d in present if name == d.display_name]
    if len(found) == 1:
        return found[0]
    said = "several devices" if found else "no device"
    raise NotFoundError(
        Reason.DEVICE_UNKNOWN,
        f"You have {said} called {name}, so nothing was registered.",
        fix=f"Name one of these by its id: {named(present)}" if present else "Leave the option out.",
    )


def joined(*parts: Sequence[Departing]) -> tuple[Departing, ...]:
    """Several lists as one with each device once; what was said first counts."""
    fates: dict[str, DeviceFate] = {}
    for one in (one for part in parts for one in part):
        fates.setdefault(one.device_id, one.fate)
    return tuple(Departing(device_id, fate) for device_id, fate in fates.items())


def staying(present: Sequence[PresentDevice], departing: Sequence[Departing]) -> list[PresentDevice]:
    """Those that nobody said anything of."""
    going = {one.device_id for one in departing}
    return [device for device in present if device.device_id not in going]


def too_many(present: Sequence[PresentDevice], departing: Sequence[Departing], allowed: int) -> int:
    """How many more have to go; `allowed` of 0 means that the server says nothing of it."""
    return max(0, len(staying(present, departing)) - allowed + 1) if allowed else 0


def check_room(present: Sequence[PresentDevice], departing: Sequence[Departing], allowed: int) -> None:
    """KI5: the server would refuse it in the end. Raises `RefusedError(DEVICE_LIMIT)`."""
    if not too_many(present, departing, allowed):
        return
    left = staying(present, departing)
    raise RefusedError(
        Reason.DEVICE_LIMIT,
        f"You have {len(left)} devices and policy allows {allowed}; there is no room for another one.",
        fix=f"Say which one goes, with --replaces or --lost: {named(left)}",
        metadata={"limit": str(allowed)},
    )


def kept(departing: Sequence[Departing]) -> tuple[bytes, ...]:
    """As the ledger keeps them."""
    return tuple(f"{one.fate.value} {one.device_id}".encode() for one in departing)


def departing_of(records: Sequence[bytes]) -> tuple[Departing, ...]:
    """Out of the ledger."""
    said = [record.decode().split(" ", 1) for record in records]
    return tuple(Departing(device_id, DeviceFate(fate)) for fate, device_id in said)


def named(devices: Sequence[PresentDevice]) -> str:
    """Devices as people know them."""
    return ", ".join(f"{device.display_name} ({device.device_id})" for device in devices)
