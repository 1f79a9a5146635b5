"""From what a TPM answers to the one `DeviceError` that tells a person what to do.

A response code carries its error and, for some, which parameter, handle or session it is about (TPM 2.0 Library, Part
2 section 6.6). One table for every command; where a code means something else for a command, the caller passes what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

from keyvouch.errors import DeviceError, Reason

__all__ = ["BUSY", "REENROL", "Code", "Words", "code_of", "device_error"]


@unique
class Code(IntEnum):
    """Response codes without what they are about. Those below 0x100 are of format one."""

    VALUE = 0x084
    HANDLE = 0x08B
    AUTH_FAIL = 0x08E
    SIZE = 0x095
    POLICY_FAIL = 0x09D
    INTEGRITY = 0x09F
    BAD_AUTH = 0x0A2
    BINDING = 0x0A5
    FAILURE = 0x101
    AUTH_UNAVAILABLE = 0x12F
    NV_AUTHORIZATION = 0x149
    NV_UNINITIALIZED = 0x14A
    NV_SPACE = 0x14B
    NV_DEFINED = 0x14C
    OBJECT_MEMORY = 0x902
    SESSION_MEMORY = 0x903
    MEMORY = 0x904
    SESSION_HANDLES = 0x905
    OBJECT_HANDLES = 0x906
    YIELDED = 0x908
    CANCELLED = 0x909
    TESTING = 0x90A
    NV_RATE = 0x920
    LOCKOUT = 0x921
    RETRY = 0x922
    NV_UNAVAILABLE = 0x923


BUSY: Final = frozenset((Code.YIELDED, Code.TESTING, Code.NV_RATE, Code.RETRY, Code.NV_UNAVAILABLE))
"""Codes after which the same command may be sent again (Part 2 section 6.6.3, warnings)."""

_FORMAT_ONE: Final = 0x080
_LAYER: Final = 0xFF_0000
_TPM_LAYERS: Final = frozenset((0x00_0000, 0x0B_0000, 0x0C_0000))
"""The TPM, and resource managers that answer in its words (TCG TSS 2.0 Overview, section 4.2)."""


@dataclass(frozen=True, slots=True)
class Words:
    """What an error means to a person."""

    reason: Reason
    message: str
    fix: str

    def error(self, rc: int = 0) -> DeviceError:
        """The error, with the response code in its metadata where there is one."""
        told = {"tpm_rc": f"0x{rc:x}"} if rc else {}
        return DeviceError(self.reason, self.message, fix=self.fix, metadata=told)


REENROL: Final = "Get an access pass and run `keyvouch-agent enroll --replace`: the TPM proves that it is the same one."
"""The way back from a key that is lost, anchored in the endorsement key."""

_MEMORY = Words(
    Reason.TPM_MEMORY,
    "The TPM has no room for another object: other programs keep theirs loaded.",
    "End the programs that use the TPM without a resource manager, or use /dev/tpmrm0; then try again.",
)
_TABLE: Final[Mapping[Code, Words]] = {
    Code.HANDLE: Words(
        Reason.DEVICE_KEY_LOST,
        "The TPM does not hold what belongs to this account any more.",
        REENROL,
    ),
    Code.INTEGRITY: Words(
        Reason.TPM_CLEARED,
        "The TPM was cleared, or this is another TPM: it does not know the keys of this account any more.",
        REENROL,
    ),
    Code.FAILURE: Words(
        Reason.TPM_FAILED,
        "The TPM is in failure mode.",
        "Restart the computer. If it happens again, the chip is broken: use another key provider.",
    ),
    Code.LOCKOUT: Words(
        Reason.TPM_LOCKOUT,
        "The TPM is in lockout after wrong passwords of its owner's keys. Keyvouch's keys do not cause that.",
        "Wait, or reset it with `keyvouch-agent tpm unlock`.",
    ),
    Code.NV_SPACE: Words(
        Reason.KEY_STORE_FULL,
        "The TPM's memory is full: there is no room for the counter of the PIN.",
        "Remove what is not needed: `keyvouch-agent tpm status` shows Keyvouch's part of it.",
    ),
    Code.OBJECT_MEMORY: _MEMORY,
    Code.SESSION_MEMORY: _MEMORY,
    Code.MEMORY: _MEMORY,
    Code.SESSION_HANDLES: _MEMORY,
    Code.OBJECT_HANDLES: _MEMORY,
}
_BUSY = Words(Reason.TPM_BUSY, "The TPM is busy with something else.", "Try again in a moment.")
_AUTH = Words(
    Reason.TPM_OWNER_AUTH,
    "The TPM's owner has set a password, which is needed for this.",
    "Put it into a file and name that in the agent's agent.toml: [tpm] owner_auth_file, endorsement_auth_file.",
)
_IO = Words(
    Reason.TPM_UNAVAILABLE,
    "The TPM does not answer: the connection to it broke off.",
    "Run `keyvouch-agent doctor`: it says how the agent reaches the TPM and what is in the way.",
)
_RESTARTED = Words(
    Reason.TPM_UNAVAILABLE,
    "The TPM was restarted or cleared in the middle of this: what was loaded in it is gone.",
    "Try again: if a key is lost, it will say so then.",
)
_GONE: Final = frozenset((*range(0x910, 0x917), *range(0x918, 0x91F)))
"""TPM_RC_REFERENCE_H0 to _H6 and _S0 to _S6: an object or session of the command is not loaded."""
_UNKNOWN = Words(
    Reason.TPM_FAILED,
    "The TPM refused a command for a reason that was not expected.",
    "Try again. If it goes on, run `keyvouch-agent doctor` and tell your administrator the code.",
)


def code_of(rc: int) -> int:
    """The error alone: without layer, and for format one without parameter, handle or session."""
    if rc & _LAYER not in _TPM_LAYERS:
        return -1
    code = rc & 0xFFFF
    return code & 0x0BF if code & _FORMAT_ONE else code & 0xFFF


def device_error(rc: int, meanings: Mapping[Code, Words]) -> DeviceError:
    """Put a response code into words; `meanings` go before the table."""
    code = code_of(rc)
    if code < 0:
        return _IO.error(rc)
    words = meanings.get(Code(code)) if code in set(Code) else None
    if words is None and code in (Code.AUTH_FAIL, Code.BAD_AUTH):
        words = _AUTH
    if words is None and code in BUSY:
        words = _BUSY
    if words is None and code in _GONE:
        words = _RESTARTED
    return (words or (_TABLE.get(Code(code)) if code in set(Code) else None) or _UNKNOWN).error(rc)
