"""What a TPM is and can do, by its own word (TPM2_GetCapability; Part 2 sections 6.12, 6.13 and 10.8).

Read when it is needed and cheap. Nothing here is proof of anything: it decides which keys are asked for, and what a
person is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tpm2_pytss import TPM2_ALG, TPM2_CAP, TPM2_PT, TPMA_PERMANENT

from keyvouch.cose import Algorithm
from keyvouch_agent.vaults.tpm.answers import listed, senseless
from keyvouch_agent.vaults.tpm.connection import Tpm
from keyvouch_agent.vaults.tpm.templates import KINDS, KeyKind

__all__ = ["LockoutState", "TpmProfile", "nv_handles", "read_lockout", "read_profile"]

_VENDOR_STRING: Final = range(0x106, 0x10A)
_FIRMWARE: Final = (0x10B, 0x10C)
"""TPM_PT_VENDOR_STRING_1 to _4 and TPM_PT_FIRMWARE_VERSION_1 and _2, which tpm2-pytss does not name."""
_FIRST_NV_INDEX: Final = 0x0100_0000
_SOFTWARE: Final = ("SW", "Simulator", "swtpm")
"""Beginnings of the vendor strings of emulators: the reference code and what is built on it."""


@dataclass(frozen=True, slots=True)
class TpmProfile:
    """A TPM's identity and abilities. `manufacturer` is `id:XXXXXXXX`, `firmware_version` as in its attestations."""

    manufacturer: str
    vendor: str
    firmware_version: int
    kinds: tuple[KeyKind, ...]
    """Keys the agent can make in it, best first."""

    @property
    def algorithms(self) -> tuple[int, ...]:
        """COSE algorithms of these keys."""
        return tuple(int(kind.algorithm) for kind in self.kinds)

    @property
    def name(self) -> str:
        """For people."""
        return "Emulated TPM (keys in software)" if self.is_emulated else "Trusted Platform Module"

    @property
    def has_curves(self) -> bool:
        """Whether it makes any keys on curves."""
        return any(kind.curve is not None for kind in self.kinds)

    @property
    def is_emulated(self) -> bool:
        """Whether it says that it is a program."""
        return self.vendor.startswith(_SOFTWARE)


@dataclass(frozen=True, slots=True)
class LockoutState:
    """The TPM-wide lockout, which belongs to its owner: wrong passwords counted, how many it takes.

    One is forgotten every `interval` seconds. After a wrong password of the lockout itself there are `recovery` seconds
    in which it takes none.
    """

    counter: int
    limit: int
    interval: int
    recovery: int
    in_lockout: bool
    owner_auth_set: bool
    endorsement_auth_set: bool
    lockout_auth_set: bool


def read_profile(tpm: Tpm) -> TpmProfile:
    """Ask a TPM what it is. Three commands."""
    fixed = _properties(tpm, TPM2_PT.FIXED)
    if not {int(TPM2_PT.MANUFACTURER), *_VENDOR_STRING[:1], *_FIRMWARE} <= fixed.keys():
        raise senseless("a description of itself without its maker")
    words = [fixed.get(number, 0) for number in _VENDOR_STRING]
    high, low = (fixed.get(number, 0) for number in _FIRMWARE)
    return TpmProfile(
        manufacturer=f"id:{fixed.get(TPM2_PT.MANUFACTURER, 0):08X}",
        vendor=b"".join(word.to_bytes(4, "big") for word in words).decode("ascii", "replace").strip("\0 "),
        firmware_version=high << 32 | low,
        kinds=_kinds(tpm),
    )


def read_lockout(tpm: Tpm) -> LockoutState:
    """Ask for the state of the TPM's own dictionary attack protection (Part 1 section 19.8). One command."""
    variable = _properties(tpm, TPM2_PT.VAR)
    permanent = variable.get(TPM2_PT.PERMANENT, 0)
    return LockoutState(
        counter=variable.get(TPM2_PT.LOCKOUT_COUNTER, 0),
        limit=variable.get(TPM2_PT.MAX_AUTH_FAIL, 0),
        interval=variable.get(TPM2_PT.LOCKOUT_INTERVAL, 0),
        recovery=variable.get(TPM2_PT.LOCKOUT_RECOVERY, 0),
        in_lockout=bool(permanent & TPMA_PERMANENT.INLOCKOUT),
        owner_auth_set=bool(permanent & TPMA_PERMANENT.OWNERAUTHSET),
        endorsement_auth_set=bool(permanent & TPMA_PERMANENT.ENDORSEMENTAUTHSET),
        lockout_auth_set=bool(permanent & TPMA_PERMANENT.LOCKOUTAUTHSET),
    )


def nv_handles(tpm: Tpm) -> frozenset[int]:
    """Handles of every NV index that is defined."""
    return frozenset(listed(tpm, TPM2_CAP.HANDLES, _FIRST_NV_INDEX))


def _kinds(tpm: Tpm) -> tuple[KeyKind, ...]:
    algorithms = set(listed(tpm, TPM2_CAP.ALGS, 0))
    if TPM2_ALG.SHA256 not in algorithms or not algorithms & {int(TPM2_ALG.RSA), int(TPM2_ALG.ECC)}:
        raise senseless("a list of algorithms without those that every TPM has")
    curves = set(listed(tpm, TPM2_CAP.ECC_CURVES, 0)) if TPM2_ALG.ECC in algorithms else set()
    if TPM2_ALG.ECC in algorithms and not curves:
        raise senseless("no curves, though it knows algorithms on them")
    return tuple(kind for kind in KINDS.values() if _has(kind, algorithms, curves))


def _has(kind: KeyKind, algorithms: set[int], curves: set[int]) -> bool:
    if kind.hash not in algorithms or kind.signature not in algorithms:
        return False
    return TPM2_ALG.RSA in algorithms if kind.algorithm is Algorithm.RS256 else kind.curve in curves


def _properties(tpm: Tpm, first: int) -> Mapping[int, int]:
    return listed(tpm, TPM2_CAP.TPM_PROPERTIES, first)
