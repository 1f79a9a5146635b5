"""The commands that fill slots, and those that tell of them: GENERATE ASYMMETRIC KEY PAIR (SP 800-73-4 part 2, 3.3.2),
and Yubico's IMPORT KEY, ATTEST and GET METADATA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from keyvouch_agent.transports.iso7816 import CommandApdu
from keyvouch_bench.piv_card import attestation, identifiers, tlv
from keyvouch_bench.piv_card.identifiers import (
    ATTESTATION_SLOT,
    USER_SLOTS,
    KeyAlgorithm,
    Origin,
    PinPolicy,
    RefusedError,
    Status,
    TouchPolicy,
    default_pin_policy,
)
from keyvouch_bench.piv_card.keys import CardKey, generate, import_key
from keyvouch_bench.piv_card.reference_data import DEFAULT_PIN, DEFAULT_PUK, ReferenceData, padded
from keyvouch_bench.piv_card.session import Chip
from keyvouch_bench.piv_card.state import DEFAULT_MANAGEMENT_KEY

__all__ = ["attest", "generate_key_pair", "get_metadata", "import_private_key"]

_CONTROL: Final = 0xAC
_ALGORITHM: Final = 0x80
_EXPONENT: Final = 0x81
_PIN_POLICY: Final = 0xAA
_TOUCH_POLICY: Final = 0xAB
_PUBLIC_KEY: Final = 0x7F49
_SERIAL_BYTES: Final = 16


def generate_key_pair(chip: Chip, command: CommandApdu) -> bytes:
    """P2 is the slot. The answer is the public key; what was in the slot is gone."""
    if command.p1 or command.p2 not in (*USER_SLOTS, ATTESTATION_SLOT):
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    chip.require_administrator()
    elements = tlv.parse(tlv.single(command.data, _CONTROL))
    algorithm = elements.pop(_ALGORITHM, b"")
    elements.pop(_EXPONENT, b"")  # there is only one
    policies = _policies(command.p2, elements)
    if len(algorithm) != 1 or algorithm[0] not in set(KeyAlgorithm) or elements:
        raise RefusedError(Status.INCORRECT_DATA)
    key = CardKey(generate(KeyAlgorithm(algorithm[0])), Origin.GENERATED, *policies)
    chip.state.keys[command.p2] = key
    return tlv.build(_PUBLIC_KEY, key.public_template)


def import_private_key(chip: Chip, command: CommandApdu) -> bytes:
    """P1 is the algorithm, P2 the slot."""
    if command.p1 not in set(KeyAlgorithm) or command.p2 not in (*USER_SLOTS, ATTESTATION_SLOT):
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    chip.require_administrator()
    elements = tlv.parse(command.data)
    policies = _policies(command.p2, elements)
    private = import_key(KeyAlgorithm(command.p1), elements)
    chip.state.keys[command.p2] = CardKey(private, Origin.IMPORTED, *policies)
    return b""


def attest(chip: Chip, command: CommandApdu) -> bytes:
    """P1 is the slot."""
    if command.p1 not in USER_SLOTS or command.p2:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    if command.data:
        raise RefusedError(Status.WRONG_LENGTH)
    serial = int.from_bytes(chip.entropy(_SERIAL_BYTES), "big") >> 1 or 1
    return attestation.attest(chip.state, command.p1, serial)


def get_metadata(chip: Chip, command: CommandApdu) -> bytes:
    """P2 is a slot, the PIN, the PUK or the card management key."""
    if command.p1:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    if command.data:
        raise RefusedError(Status.WRONG_LENGTH)
    state = chip.state
    told: Mapping[int, bytes]
    match command.p2:
        case identifiers.MANAGEMENT_KEY:
            is_default = state.management_key == DEFAULT_MANAGEMENT_KEY
            told = {1: bytes([state.management_algorithm]), 2: bytes([0, TouchPolicy.NEVER]), 5: bytes([is_default])}
        case identifiers.PIN:
            told = _of_secret(state.pin, DEFAULT_PIN)
        case identifiers.PUK:
            told = _of_secret(state.puk, DEFAULT_PUK)
        case slot:
            told = _of_key(state.keys.get(slot))
    return b"".join(tlv.build(tag, value) for tag, value in told.items())


def _of_secret(secret: ReferenceData, default: str) -> Mapping[int, bytes]:
    return {1: b"\xff", 5: bytes([secret.value == padded(default)]), 6: bytes([secret.tries, secret.left])}


def _of_key(key: CardKey | None) -> Mapping[int, bytes]:
    if key is None:
        raise RefusedError(Status.REFERENCE_NOT_FOUND)
    policies = bytes([key.pin_policy, key.touch_policy])
    return {1: bytes([key.algorithm]), 2: policies, 3: bytes([key.origin]), 4: key.public_template}


def _policies(slot: int, elements: dict[int, bytes]) -> tuple[PinPolicy, TouchPolicy]:
    """Take the policies out of the elements; one that is not there, or 0, is that of the slot."""
    pin, touch = (elements.pop(tag, b"\0") for tag in (_PIN_POLICY, _TOUCH_POLICY))
    if len(pin) != 1 or len(touch) != 1 or pin[0] > PinPolicy.ALWAYS or touch[0] > TouchPolicy.CACHED:
        raise RefusedError(Status.INCORRECT_DATA)
    return (
        PinPolicy(pin[0]) if pin[0] else default_pin_policy(slot),
        TouchPolicy(touch[0]) if touch[0] else TouchPolicy.NEVER,
    )
