"""Status codes of CTAP 2.1 (section 8.2), and the exception that carries one.

All codes of the table are here. Those that this authenticator never answers stand in `NEVER_ANSWERED`, each with the
reason; every other one is the answer to some request. `CommandError` never leaves the package: the engine turns it
into a status byte. What is *not* here: the ranges for extensions and vendors, and CTAP1/U2F (`u2f`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, unique
from types import MappingProxyType

__all__ = ["NEVER_ANSWERED", "CommandError", "Status"]


@unique
class Status(IntEnum):
    """Section 8.2, status codes. The prefixes `CTAP1_ERR_` and `CTAP2_ERR_` are left out."""

    SUCCESS = 0x00
    INVALID_COMMAND = 0x01
    INVALID_PARAMETER = 0x02
    INVALID_LENGTH = 0x03
    INVALID_SEQ = 0x04
    TIMEOUT = 0x05
    CHANNEL_BUSY = 0x06
    LOCK_REQUIRED = 0x0A
    INVALID_CHANNEL = 0x0B
    CBOR_UNEXPECTED_TYPE = 0x11
    INVALID_CBOR = 0x12
    MISSING_PARAMETER = 0x14
    LIMIT_EXCEEDED = 0x15
    FP_DATABASE_FULL = 0x17
    LARGE_BLOB_STORAGE_FULL = 0x18
    CREDENTIAL_EXCLUDED = 0x19
    PROCESSING = 0x21
    INVALID_CREDENTIAL = 0x22
    USER_ACTION_PENDING = 0x23
    OPERATION_PENDING = 0x24
    NO_OPERATIONS = 0x25
    UNSUPPORTED_ALGORITHM = 0x26
    OPERATION_DENIED = 0x27
    KEY_STORE_FULL = 0x28
    UNSUPPORTED_OPTION = 0x2B
    INVALID_OPTION = 0x2C
    KEEPALIVE_CANCEL = 0x2D
    NO_CREDENTIALS = 0x2E
    USER_ACTION_TIMEOUT = 0x2F
    NOT_ALLOWED = 0x30
    PIN_INVALID = 0x31
    PIN_BLOCKED = 0x32
    PIN_AUTH_INVALID = 0x33
    PIN_AUTH_BLOCKED = 0x34
    PIN_NOT_SET = 0x35
    PUAT_REQUIRED = 0x36
    PIN_POLICY_VIOLATION = 0x37
    REQUEST_TOO_LARGE = 0x39
    ACTION_TIMEOUT = 0x3A
    UP_REQUIRED = 0x3B
    UV_BLOCKED = 0x3C
    INTEGRITY_FAILURE = 0x3D
    INVALID_SUBCOMMAND = 0x3E
    UV_INVALID = 0x3F
    UNAUTHORIZED_PERMISSION = 0x40
    OTHER = 0x7F


_OF_TRANSPORTS = "Transports answer it, before the engine sees a request."
_ONE_CALL = "A command is one call that ends with its outcome; keep-alive messages tell of the time between."
_NO_STEP = "No step of a command in section 6 answers it."

NEVER_ANSWERED: Mapping[Status, str] = MappingProxyType(
    {
        Status.TIMEOUT: _OF_TRANSPORTS,
        Status.LOCK_REQUIRED: _OF_TRANSPORTS,
        Status.INVALID_CHANNEL: _OF_TRANSPORTS,
        Status.FP_DATABASE_FULL: "There are no fingerprints: a user is verified by a PIN.",
        Status.PROCESSING: _ONE_CALL,
        Status.USER_ACTION_PENDING: _ONE_CALL,
        Status.OPERATION_PENDING: _ONE_CALL,
        Status.NO_OPERATIONS: _ONE_CALL,
        Status.INVALID_CREDENTIAL: _NO_STEP,
        Status.ACTION_TIMEOUT: _NO_STEP,
        Status.UP_REQUIRED: _NO_STEP,
    }
)
"""The codes that the engine has no use for, and why."""


class CommandError(Exception):
    """A command ends with this status and has changed nothing the specification does not ask for."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status
