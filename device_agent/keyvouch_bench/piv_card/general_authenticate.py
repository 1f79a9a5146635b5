"""GENERAL AUTHENTICATE: what the keys compute, and the proof of the card management key (SP 800-73-4 part 2, 3.2.4).

The management key is shown in one of two ways, each of two commands right after one another: the client encrypts the
card's challenge, or it decrypts the card's witness and has a challenge of its own encrypted in return.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyvouch_agent.transports.iso7816 import CommandApdu
from keyvouch_bench.piv_card import tlv
from keyvouch_bench.piv_card.identifiers import (
    KEY_MANAGEMENT,
    MANAGEMENT_KEY,
    RETIRED_SLOTS,
    USER_SLOTS,
    KeyAlgorithm,
    ManagementAlgorithm,
    PinPolicy,
    RefusedError,
    Status,
    TouchPolicy,
)
from keyvouch_bench.piv_card.keys import CardKey
from keyvouch_bench.piv_card.session import Chip, Pending

__all__ = ["general_authenticate"]

_TEMPLATE: Final = 0x7C
_WITNESS: Final = 0x80
_CHALLENGE: Final = 0x81
_RESPONSE: Final = 0x82
_EXPONENTIATION: Final = 0x85
_DEFAULT_ALGORITHM: Final = 0x00

_AGREEING_SLOTS: Final = frozenset({KEY_MANAGEMENT, *RETIRED_SLOTS})


def general_authenticate(chip: Chip, command: CommandApdu) -> bytes:
    """P1 is the algorithm, P2 the key."""
    if command.p2 == MANAGEMENT_KEY:
        return _prove_management_key(chip, command)
    if command.p2 not in USER_SLOTS or command.p1 not in set(KeyAlgorithm):
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    key = chip.state.keys.get(command.p2)
    if key is None:
        raise RefusedError(Status.REFERENCE_NOT_FOUND)
    if key.algorithm != command.p1:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    _require_holder(chip, key)
    elements = _elements(command)
    if elements.pop(_RESPONSE, b"") or len(elements) != 1:  # an empty one asks for the response
        raise RefusedError(Status.INCORRECT_DATA)
    if _EXPONENTIATION in elements and command.p2 in _AGREEING_SLOTS:
        return _answer(_RESPONSE, key.agree(elements[_EXPONENTIATION]))
    if _CHALLENGE in elements:
        return _answer(_RESPONSE, key.respond(elements[_CHALLENGE]))
    raise RefusedError(Status.INCORRECT_DATA)


def _require_holder(chip: Chip, key: CardKey) -> None:
    session = chip.session
    allowed = {
        PinPolicy.NEVER: True,
        PinPolicy.ONCE: session.pin_verified,
        PinPolicy.ALWAYS: session.pin_verified and session.just_verified,
    }
    if not allowed[key.pin_policy]:
        raise RefusedError(Status.SECURITY_STATUS_NOT_SATISFIED)
    if key.touch_policy is not TouchPolicy.NEVER and not chip.touched():
        raise RefusedError(Status.SECURITY_STATUS_NOT_SATISFIED)


def _prove_management_key(chip: Chip, command: CommandApdu) -> bytes:
    algorithm = chip.state.management_algorithm
    named = ManagementAlgorithm.TDES if command.p1 == _DEFAULT_ALGORITHM else command.p1
    if named != algorithm:
        raise RefusedError(Status.INCORRECT_PARAMETERS)
    match _elements(command):  # 80 witness, 81 challenge, 82 response; an empty one is asked for
        case {0x80: b"", **rest} if not rest:
            witness = chip.entropy(algorithm.block_length)
            chip.session.next_pending = Pending(witness, is_witness=True)
            return _answer(_WITNESS, _encrypt(chip, witness))
        case {0x81: b"", **rest} if not rest:
            challenge = chip.entropy(algorithm.block_length)
            chip.session.next_pending = Pending(challenge, is_witness=False)
            return _answer(_CHALLENGE, challenge)
        case {0x80: witness, 0x81: challenge, **rest} if not rest or rest == {_RESPONSE: b""}:
            if len(challenge) != algorithm.block_length:
                raise RefusedError(Status.INCORRECT_DATA)
            _check(chip, witness, of_witness=True)
            return _answer(_RESPONSE, _encrypt(chip, challenge))
        case {0x82: response, **rest} if not rest:
            _check(chip, response, of_witness=False)
            return b""
        case _:
            raise RefusedError(Status.INCORRECT_DATA)


def _check(chip: Chip, given: bytes, *, of_witness: bool) -> None:
    pending = chip.session.pending
    if pending is None or pending.is_witness is not of_witness:
        raise RefusedError(Status.CONDITIONS_NOT_SATISFIED)
    wanted = pending.value if of_witness else _encrypt(chip, pending.value)
    if not hmac.compare_digest(wanted, given):
        chip.session.administrator = False
        raise RefusedError(Status.SECURITY_STATUS_NOT_SATISFIED)
    chip.session.administrator = True


def _encrypt(chip: Chip, block: bytes) -> bytes:
    state = chip.state
    triple = state.management_algorithm is ManagementAlgorithm.TDES
    key = TripleDES(state.management_key) if triple else algorithms.AES(state.management_key)
    return Cipher(key, modes.ECB()).encryptor().update(block)  # noqa: S305 - one random block: it is what the card does


def _elements(command: CommandApdu) -> dict[int, bytes]:
    return tlv.parse(tlv.single(command.data, _TEMPLATE))


def _answer(tag: int, value: bytes) -> bytes:
    return tlv.build(_TEMPLATE, tlv.build(tag, value))
