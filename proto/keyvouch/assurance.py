"""Assurance: what is proved about a key, in three components that a policy can compare.

    protection     where the private key lives     software | hardware, tpm, secure_element, smartcard, tee
    verification   who checks the PIN or finger    none < software_gated < hardware_gated
    provenance     who vouches for the key         unattested < self < certified < attested (both by a named anchor)

Assurance is derived from verified evidence alone. The honest rule: without an attestation chain to a trusted
anchor nothing is proved about the place of a key, so its protection is `software`, whatever it says of itself.

`certified` is an organisation's word: its certificate says whose key it is. Of the place of the key it says nothing by
itself; what an administrator has configured that the organisation promises of such keys counts in its name.

The hardware kinds have no order among them: a requirement asks for any hardware or for none.
What is not here: deriving it (`keyvouch.attestation`), and which assurance an application needs; that is policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from functools import total_ordering
from typing import Final, Self, TypeVar

from keyvouch.errors import MalformedError, Reason, UsageError

__all__ = [
    "Assurance",
    "AssuranceRequirement",
    "Protection",
    "Provenance",
    "RequiredProtection",
    "Verification",
]


@total_ordering
class _Ordered(Enum):
    """An enum whose members rise in the order of their definition."""

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        members = list(type(self))
        return members.index(self) < members.index(other)


@unique
class Protection(Enum):
    """Where the private key lives."""

    SOFTWARE = "software"
    TPM = "tpm"
    SECURE_ELEMENT = "secure_element"
    SMARTCARD = "smartcard"
    TEE = "tee"
    """A trusted execution environment: an isolated part of the main processor, such as Android's."""
    HARDWARE = "hardware"
    """Hardware of a kind that nobody named."""

    @property
    def is_hardware(self) -> bool:
        """Whether the key cannot leave a piece of hardware."""
        return self is not Protection.SOFTWARE


@unique
class RequiredProtection(Enum):
    """What a policy may ask of the place of a key."""

    ANY = "any"
    HARDWARE = "hardware"


@unique
class Verification(_Ordered):
    """What checks the user's PIN or biometric before the key is used."""

    NONE = "none"
    SOFTWARE_GATED = "software_gated"
    HARDWARE_GATED = "hardware_gated"


@unique
class Provenance(_Ordered):
    """Who vouches for the key: nobody, only the key itself, an organisation for its owner, or an attestation chain."""

    UNATTESTED = "unattested"
    SELF = "self"
    CERTIFIED = "certified"
    """An organisation certified whose key it is (`keyvouch.attestation.card_certificate`)."""
    ATTESTED = "attested"

    @property
    def is_anchored(self) -> bool:
        """Whether it comes with the name of a trust anchor."""
        return self in (Provenance.CERTIFIED, Provenance.ATTESTED)


@dataclass(frozen=True, slots=True)
class Assurance:
    """What is proved about one key. `anchor` names the trust anchor, and is empty without one."""

    protection: Protection
    verification: Verification
    provenance: Provenance
    anchor: str = ""

    def __post_init__(self) -> None:
        anchored = self.provenance.is_anchored
        if anchored != bool(self.anchor):
            raise UsageError("An attested or certified key has a named anchor, every other key has none.")
        claims_hardware = self.protection.is_hardware or self.verification is Verification.HARDWARE_GATED
        if claims_hardware and not anchored:
            raise UsageError("Nothing about hardware is proved without a trusted attestation chain.")

    def in_ceremony(self, *, user_verified: bool) -> Assurance:
        """Return what one signature of this key proves: without user verification the PIN counts for nothing."""
        if user_verified:
            return self
        return Assurance(self.protection, Verification.NONE, self.provenance, self.anchor)

    def satisfies(self, required: AssuranceRequirement) -> bool:
        """Whether every component is at least the required one. A comparison, not a verification."""
        return not self.shortfalls(required)

    def shortfalls(self, required: AssuranceRequirement) -> tuple[str, ...]:
        """Name the components that are below `required`: `protection`, `verification`, `provenance`, `anchor`."""
        wants_hardware = required.protection is RequiredProtection.HARDWARE
        below = {
            "protection": wants_hardware and not self.protection.is_hardware,
            "verification": self.verification < required.verification,
            "provenance": self.provenance < required.provenance,
            "anchor": bool(required.anchors) and self.anchor not in required.anchors,
        }
        return tuple(name for name, is_below in below.items() if is_below)

    def to_dict(self) -> dict[str, str]:
        """Return four strings, fit for JSON and for `from_dict`."""
        return {
            "protection": self.protection.value,
            "verification": self.verification.value,
            "provenance": self.provenance.value,
            "anchor": self.anchor,
        }

    def text(self) -> str:
        """Return the one-line form `protection/verification/provenance[/anchor]`, fit for tokens and for `parse`."""
        return "/".join([*list(self.to_dict().values())[:3], *([self.anchor] if self.anchor else [])])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` wrote. Raises `MalformedError` with `FIELD_INVALID` for anything else."""
        return cls.from_dict({**_split(text), "anchor": "".join(text.split("/", 3)[3:])})

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_dict` wrote. Raises `MalformedError` with `FIELD_INVALID` for anything else."""
        _check_names(data, ("protection", "verification", "provenance", "anchor"))
        anchor = data["anchor"]
        if not isinstance(anchor, str):
            raise _malformed("anchor")
        try:
            return cls(
                _member(Protection, data, "protection"),
                _member(Verification, data, "verification"),
                _member(Provenance, data, "provenance"),
                anchor,
            )
        except UsageError as error:
            raise MalformedError(Reason.FIELD_INVALID, error.message, fix=_FIX) from None


NO_ANCHOR: Final = "(none)"
"""The name of no trust anchor."""


@dataclass(frozen=True, slots=True)
class AssuranceRequirement:
    """The least a policy accepts. `anchors`, where not empty, are the only trust anchors that count."""

    protection: RequiredProtection = RequiredProtection.ANY
    verification: Verification = Verification.NONE
    provenance: Provenance = Provenance.UNATTESTED
    anchors: frozenset[str] = frozenset()

    def together_with(self, other: AssuranceRequirement) -> AssuranceRequirement:
        """The requirement that asks for both.

        Where both name anchors and have none in common, it names `NO_ANCHOR`, and no key satisfies it.
        """
        anchors = self.anchors | other.anchors
        if self.anchors and other.anchors:
            anchors = self.anchors & other.anchors or frozenset({NO_ANCHOR})
        wants_hardware = RequiredProtection.HARDWARE in (self.protection, other.protection)
        return AssuranceRequirement(
            RequiredProtection.HARDWARE if wants_hardware else RequiredProtection.ANY,
            max(self.verification, other.verification),
            max(self.provenance, other.provenance),
            anchors,
        )

    def to_dict(self) -> dict[str, object]:
        """Return strings and a sorted list, fit for JSON and for `from_dict`."""
        return {
            "protection": self.protection.value,
            "verification": self.verification.value,
            "provenance": self.provenance.value,
            "anchors": sorted(self.anchors),
        }

    def text(self) -> str:
        """Return the one-line form `protection/verification/provenance[/anchor,anchor]`, fit for `parse`.

        In the names of anchors a comma is written `%2C` and a percent sign `%25`.
        """
        parts = [self.protection.value, self.verification.value, self.provenance.value]
        names = [name.replace("%", "%25").replace(",", "%2C") for name in sorted(self.anchors)]
        return "/".join([*parts, *([",".join(names)] if names else [])])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `text` wrote. Raises `MalformedError` with `FIELD_INVALID` for anything else."""
        rest = "".join(text.split("/", 3)[3:])
        names = [name.replace("%2C", ",").replace("%25", "%") for name in rest.split(",")] if rest else []
        return cls.from_dict({**_split(text), "anchors": names})

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_dict` wrote. Raises `MalformedError` with `FIELD_INVALID` for anything else."""
        _check_names(data, ("protection", "verification", "provenance", "anchors"))
        anchors = data["anchors"]
        if not isinstance(anchors, list) or not all(isinstance(name, str) and name for name in anchors):
            raise _malformed("anchors")
        return cls(
            _member(RequiredProtection, data, "protection"),
            _member(Verification, data, "verification"),
            _member(Provenance, data, "provenance"),
            frozenset(anchors),
        )


_FIX = "Store and send assurances only as they were written."
_Member = TypeVar("_Member", bound=Enum)


def _check_names(data: Mapping[str, object], names: tuple[str, ...]) -> None:
    if data.keys() != set(names):
        raise MalformedError(Reason.FIELD_INVALID, f"An assurance has exactly the members {names}.", fix=_FIX)


def _member(kind: type[_Member], data: Mapping[str, object], name: str) -> _Member:
    try:
        return kind(data[name])
    except ValueError:
        raise _malformed(name) from None


def _split(text: str) -> dict[str, str]:
    """The first three components of a one-line form."""
    parts = text.split("/", 3)
    if len(parts) < 3 or (len(parts) == 4 and not parts[3]):
        raise MalformedError(Reason.FIELD_INVALID, "An assurance is written as three words with slashes.", fix=_FIX)
    return dict(zip(("protection", "verification", "provenance"), parts, strict=False))


def _malformed(name: str) -> MalformedError:
    return MalformedError(Reason.FIELD_INVALID, f"The {name} of an assurance has no known value.", fix=_FIX)
