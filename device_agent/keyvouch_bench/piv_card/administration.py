"""The commands about objects, and those that only the holder of the card management key has.

GET DATA and PUT DATA are those of SP 800-73-4 part 2, sections 3.1.2 and 3.3.1, the others are Yubico's.
"""

from __future__ import annotations

from typing import Final

from keyvouch_agent.transports.iso7816 import CommandApdu
from keyvouch_bench.piv_card import tlv
from keyvouch_bench.piv_card.identifiers import (
    MANAGEMENT_KEY,
    OBJECTS,
    READ_WITH_PIN,
    ManagementAlgorithm,
    Object,
    RefusedError,
    Status,
)
from keyvouch_bench.piv_card.objects import discovery
from keyvouch_bench.piv_card.session import Chip

__all__ = ["get_data", "get_serial", "get_version", "put_data", "reset", "set_management_key"]

_CURRENT_FILE: Final = (0x3F, 0xFF)
_TAG_LIST: Final = 0x5C
_DATA: Final = 0x53
_LARGEST_OBJECT: Final = 3052
_EVERY_TIME: Final = (0xFF, 0xFE)
"""P2 of SET MANAGEMENT KEY: without touch, and with it."""


def get_data(chip: Chip, command: CommandApdu) -> bytes:
    """Section 3.1.2. An object that is read after the PIN only does not show without it whether it exists."""
    if (command.p1, command.p2) != _CURRENT_FILE:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    tag = _tag(tlv.single(command.data, _TAG_LIST))
    if tag == Object.DISCOVERY:
        return discovery()
    if tag in READ_WITH_PIN and not chip.session.pin_verified:
        raise RefusedError(Status.SECURITY_STATUS_NOT_SATISFIED)
    value = chip.state.objects.get(tag)
    if value is None:
        raise RefusedError(Status.NOT_FOUND)
    return tlv.build(_DATA, value)


def put_data(chip: Chip, command: CommandApdu) -> bytes:
    """Section 3.3.1. Nothing in the place of contents removes the object."""
    if (command.p1, command.p2) != _CURRENT_FILE:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    chip.require_administrator()
    elements = tlv.parse(command.data)
    if list(elements) != [_TAG_LIST, _DATA]:
        raise RefusedError(Status.INCORRECT_DATA)
    tag, value = _tag(elements[_TAG_LIST]), elements[_DATA]
    if tag == Object.DISCOVERY:
        raise RefusedError(Status.INCORRECT_DATA)
    if tag not in OBJECTS:
        raise RefusedError(Status.NOT_FOUND)
    if len(value) > _LARGEST_OBJECT:
        raise RefusedError(Status.NO_SPACE)
    if value:
        chip.state.objects[tag] = value
    else:
        chip.state.objects.pop(tag, None)
    return b""


def get_version(chip: Chip, command: CommandApdu) -> bytes:
    """The firmware version, three bytes."""
    _require_plain(command)
    return bytes(chip.state.firmware)


def get_serial(chip: Chip, command: CommandApdu) -> bytes:
    """The serial number, four bytes."""
    _require_plain(command)
    return chip.state.serial.to_bytes(4, "big")


def set_management_key(chip: Chip, command: CommandApdu) -> bytes:
    """Another card management key: its algorithm, the reference 9B, length and key."""
    if command.p1 != _EVERY_TIME[0] or command.p2 not in _EVERY_TIME:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    chip.require_administrator()
    header, key = command.data[:3], command.data[3:]
    if len(header) < 3 or header[0] not in set(ManagementAlgorithm) or header[1] != MANAGEMENT_KEY:
        raise RefusedError(Status.INCORRECT_DATA)
    algorithm = ManagementAlgorithm(header[0])
    if not header[2] == len(key) == algorithm.key_length:
        raise RefusedError(Status.INCORRECT_DATA)
    chip.state.management_algorithm, chip.state.management_key = algorithm, key
    return b""


def reset(chip: Chip, command: CommandApdu) -> bytes:
    """Everything back to how the maker left it. Only a card whose PIN and PUK are blocked does that."""
    _require_plain(command)
    if not (chip.state.pin.blocked and chip.state.puk.blocked):
        raise RefusedError(Status.CONDITIONS_NOT_SATISFIED)
    chip.state.wipe()
    chip.session.pin_forgotten()
    chip.session.administrator = False
    return b""


def _tag(written: bytes) -> int:
    if len(written) not in (1, 3):
        raise RefusedError(Status.INCORRECT_DATA)
    return int.from_bytes(written, "big")


def _require_plain(command: CommandApdu) -> None:
    if command.p1 or command.p2:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    if command.data:
        raise RefusedError(Status.WRONG_LENGTH)
