"""The commands about PIN and PUK: VERIFY, CHANGE REFERENCE DATA, RESET RETRY COUNTER (SP 800-73-4 part 2, section 3.2).

A refused command changes nothing but the tries, and the status of the PIN when a wrong one was given.
"""

from __future__ import annotations

from typing import Final

from keyvouch_agent.transports.iso7816 import CommandApdu
from keyvouch_bench.piv_card.identifiers import PIN, PUK, RefusedError, Status
from keyvouch_bench.piv_card.reference_data import (
    DEFAULT_PIN,
    DEFAULT_PUK,
    LENGTH,
    MOST_TRIES,
    ReferenceData,
    pin_is_well_formed,
)
from keyvouch_bench.piv_card.session import Chip

__all__ = ["change_reference_data", "reset_retry_counter", "set_retries", "verify"]

_LOG_OUT: Final = 0xFF


def verify(chip: Chip, command: CommandApdu) -> bytes:
    """Section 3.2.1. Without data it tells the tries, with P1 FF it logs out.

    Of the two answers that section 2.4.3 allows to eight bytes that cannot be a PIN, this card gives the one that
    counts as a try.
    """
    if command.p2 != PIN:
        raise RefusedError(Status.REFERENCE_NOT_FOUND)
    if command.p1 not in (0, _LOG_OUT) or (command.p1 == _LOG_OUT and command.data):
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    if command.p1 == _LOG_OUT:
        chip.session.pin_forgotten()
        return b""
    if not command.data:
        return _tell(chip)
    if len(command.data) != LENGTH:
        raise RefusedError(Status.INCORRECT_DATA)
    _compare(chip, chip.state.pin, command.data)
    chip.session.pin_accepted()
    return b""


def change_reference_data(chip: Chip, command: CommandApdu) -> bytes:
    """Section 3.2.2: the PIN against the old one, or the PUK."""
    if command.p1:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    secret = _secret(chip, command.p2)
    old, new = _two(command.data)
    _compare(chip, secret, old, acceptable=command.p2 == PUK or pin_is_well_formed(new))
    if command.p2 == PIN:
        chip.session.pin_accepted()
    secret.replace(new)
    return b""


def reset_retry_counter(chip: Chip, command: CommandApdu) -> bytes:
    """Section 3.2.3: a new PIN against the PUK. Whether the PIN was given before stays as it is."""
    if command.p1:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    if command.p2 != PIN:
        raise RefusedError(Status.REFERENCE_NOT_FOUND)
    puk, new = _two(command.data)
    _compare(chip, chip.state.puk, puk, acceptable=pin_is_well_formed(new))
    chip.state.pin.replace(new)
    return b""


def set_retries(chip: Chip, command: CommandApdu) -> bytes:
    """Yubico's SET PIN RETRIES: P1 for the PIN, P2 for the PUK. Both become what the maker had set."""
    chip.require_administrator()
    if not chip.session.pin_verified:
        raise RefusedError(Status.SECURITY_STATUS_NOT_SATISFIED)
    if command.data:
        raise RefusedError(Status.WRONG_LENGTH)
    if not (0 < command.p1 <= MOST_TRIES and 0 < command.p2 <= MOST_TRIES):
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    chip.state.pin = ReferenceData.fresh(DEFAULT_PIN, command.p1)
    chip.state.puk = ReferenceData.fresh(DEFAULT_PUK, command.p2)
    chip.session.pin_forgotten()
    return b""


def _tell(chip: Chip) -> bytes:
    if chip.session.pin_verified:
        return b""
    left = chip.state.pin.left
    raise RefusedError(Status.TRIES_LEFT + left if left else Status.BLOCKED)


def _compare(chip: Chip, secret: ReferenceData, value: bytes, *, acceptable: bool = True) -> None:
    """A try that failed, be it of the PUK, ends the status of the PIN; one that did not count does not."""
    before = secret.left
    try:
        secret.compare(value, acceptable=acceptable)
    except RefusedError:
        if secret.left < before:
            chip.session.pin_forgotten()
        raise


def _secret(chip: Chip, reference: int) -> ReferenceData:
    if reference == PIN:
        return chip.state.pin
    if reference == PUK:
        return chip.state.puk
    raise RefusedError(Status.REFERENCE_NOT_FOUND)


def _two(data: bytes) -> tuple[bytes, bytes]:
    if len(data) != 2 * LENGTH:
        raise RefusedError(Status.INCORRECT_DATA)
    return data[:LENGTH], data[LENGTH:]
