"""The numbers of a PIV card: slots, algorithms, objects, policies, instructions and status words.

Sources: NIST SP 800-73-4 part 1 (data model) and part 2 (commands), NIST SP 800-78-4 (algorithms), and for the
instructions from F7 on Yubico's "PIV extensions".
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, unique
from typing import Final

__all__ = [
    "AID",
    "ATTESTATION_SLOT",
    "CERTIFICATE_OBJECTS",
    "MANAGEMENT_KEY",
    "OBJECTS",
    "RETIRED_SLOTS",
    "USER_SLOTS",
    "Instruction",
    "KeyAlgorithm",
    "ManagementAlgorithm",
    "Object",
    "Origin",
    "PinPolicy",
    "RefusedError",
    "Status",
    "TouchPolicy",
    "default_pin_policy",
]

AID: Final = bytes.fromhex("A000000308000010000100")
"""Part 1, section 2.2: the PIV card application, version 1.0."""

AUTHENTICATION: Final = 0x9A
SIGNATURE: Final = 0x9C
KEY_MANAGEMENT: Final = 0x9D
CARD_AUTHENTICATION: Final = 0x9E
RETIRED_SLOTS: Final = tuple(range(0x82, 0x96))
"""Part 1, table 4b: twenty slots for key management keys of the past."""
USER_SLOTS: Final = (AUTHENTICATION, SIGNATURE, KEY_MANAGEMENT, CARD_AUTHENTICATION, *RETIRED_SLOTS)
ATTESTATION_SLOT: Final = 0xF9
MANAGEMENT_KEY: Final = 0x9B
PIN: Final = 0x80
PUK: Final = 0x81


@unique
class Object(IntEnum):
    """Tags of data objects (part 1, table 3); the last ones are Yubico's."""

    DISCOVERY = 0x7E
    CARD_AUTHENTICATION_CERTIFICATE = 0x5FC101
    CHUID = 0x5FC102
    FINGERPRINTS = 0x5FC103
    AUTHENTICATION_CERTIFICATE = 0x5FC105
    SECURITY = 0x5FC106
    CCC = 0x5FC107
    FACIAL_IMAGE = 0x5FC108
    PRINTED = 0x5FC109
    SIGNATURE_CERTIFICATE = 0x5FC10A
    KEY_MANAGEMENT_CERTIFICATE = 0x5FC10B
    KEY_HISTORY = 0x5FC10C
    RETIRED_CERTIFICATE_1 = 0x5FC10D
    IRIS_IMAGES = 0x5FC121
    ADMIN_DATA = 0x5FFF00
    ATTESTATION_CERTIFICATE = 0x5FFF01


CERTIFICATE_OBJECTS: Final[Mapping[int, int]] = {
    AUTHENTICATION: Object.AUTHENTICATION_CERTIFICATE,
    SIGNATURE: Object.SIGNATURE_CERTIFICATE,
    KEY_MANAGEMENT: Object.KEY_MANAGEMENT_CERTIFICATE,
    CARD_AUTHENTICATION: Object.CARD_AUTHENTICATION_CERTIFICATE,
    ATTESTATION_SLOT: Object.ATTESTATION_CERTIFICATE,
    **{slot: Object.RETIRED_CERTIFICATE_1 + number for number, slot in enumerate(RETIRED_SLOTS)},
}
"""Where the certificate of a slot is."""

OBJECTS: Final = frozenset({*Object, *CERTIFICATE_OBJECTS.values()})
"""All that can be on the card."""

READ_WITH_PIN: Final = frozenset({Object.FINGERPRINTS, Object.FACIAL_IMAGE, Object.PRINTED, Object.IRIS_IMAGES})
"""Part 1, table 2: objects that are read after the PIN only."""


@unique
class KeyAlgorithm(IntEnum):
    """SP 800-78-4, table 6-2, of the keys in slots. RSA with 1024 bits is no more."""

    RSA_2048 = 0x07
    P256 = 0x11
    P384 = 0x14


@unique
class ManagementAlgorithm(IntEnum):
    """SP 800-78-4, table 6-2, of the card management key. Identifier 00 means the first of them too."""

    TDES = 0x03
    AES_128 = 0x08
    AES_192 = 0x0A
    AES_256 = 0x0C

    @property
    def key_length(self) -> int:
        """In bytes."""
        return {0x08: 16, 0x0C: 32}.get(self, 24)

    @property
    def block_length(self) -> int:
        """In bytes: that of a challenge, and of a witness."""
        return 8 if self is ManagementAlgorithm.TDES else 16


@unique
class PinPolicy(IntEnum):
    """When a key wants the PIN."""

    NEVER = 1
    ONCE = 2
    ALWAYS = 3


@unique
class TouchPolicy(IntEnum):
    """When a key wants a touch."""

    NEVER = 1
    ALWAYS = 2
    CACHED = 3


@unique
class Origin(IntEnum):
    """Where a key was made; only one that the card made is attested."""

    GENERATED = 1
    IMPORTED = 2


def default_pin_policy(slot: int) -> PinPolicy:
    """Part 1, table 4b: the access rules of the keys."""
    return {SIGNATURE: PinPolicy.ALWAYS, CARD_AUTHENTICATION: PinPolicy.NEVER}.get(slot, PinPolicy.ONCE)


@unique
class Instruction(IntEnum):
    """The instruction byte."""

    VERIFY = 0x20
    CHANGE_REFERENCE_DATA = 0x24
    RESET_RETRY_COUNTER = 0x2C
    GENERATE_ASYMMETRIC_KEY_PAIR = 0x47
    GENERAL_AUTHENTICATE = 0x87
    SELECT = 0xA4
    GET_RESPONSE = 0xC0
    GET_DATA = 0xCB
    PUT_DATA = 0xDB
    GET_METADATA = 0xF7
    GET_SERIAL = 0xF8
    ATTEST = 0xF9
    SET_RETRIES = 0xFA
    RESET = 0xFB
    GET_VERSION = 0xFD
    IMPORT_KEY = 0xFE
    SET_MANAGEMENT_KEY = 0xFF


@unique
class Status(IntEnum):
    """SW1-SW2 (part 2, table 1). The last digit of `TRIES_LEFT` says how many."""

    SUCCESS = 0x9000
    TRIES_LEFT = 0x63C0
    WRONG_LENGTH = 0x6700
    SECURITY_STATUS_NOT_SATISFIED = 0x6982
    BLOCKED = 0x6983
    CONDITIONS_NOT_SATISFIED = 0x6985
    INCORRECT_DATA = 0x6A80
    NOT_FOUND = 0x6A82
    NO_SPACE = 0x6A84
    INCORRECT_PARAMETERS = 0x6A86
    REFERENCE_NOT_FOUND = 0x6A88
    INSTRUCTION_NOT_SUPPORTED = 0x6D00
    CLASS_NOT_SUPPORTED = 0x6E00


class RefusedError(Exception):
    """A command that is answered with this status word and nothing else. It never leaves the card."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04X}")
        self.status = status
