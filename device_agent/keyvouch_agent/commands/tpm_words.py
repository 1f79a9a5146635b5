"""The TPM in words, the same for `doctor` and `tpm status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvouch_agent.tpm_report import AccountReport
from keyvouch_agent.vaults.tpm.connection import TpmAccess

if TYPE_CHECKING:  # they load libtss2
    from keyvouch_agent.vaults.tpm.profile import LockoutState, TpmProfile
    from keyvouch_agent.vaults.tpm.survey import FoundCertificate

__all__ = [
    "EMULATED",
    "certificate_words",
    "describe_tpm",
    "firmware_of",
    "key_words",
    "lockout_words",
    "maker_of",
    "reached",
]

_ORIGINS = {"agent.toml": "from agent.toml", "TSS2_TCTI": "from $TSS2_TCTI", "default": "the usual place"}


def reached(access: TpmAccess) -> str:
    """How the agent reaches the TPM, who says so, and whether others can use it at the same time."""
    through = "through a resource manager" if access.managed else "without a resource manager"
    return f"{access.configuration} ({_ORIGINS[access.origin]}), {through}"


def maker_of(profile: TpmProfile) -> str:
    """The maker's name, or its number where nobody registered it."""
    from keyvouch.attestation.tpm_vendors import find_vendor  # noqa: PLC0415

    vendor = find_vendor(profile.manufacturer)
    return vendor.name if vendor else f"unregistered maker {profile.manufacturer}"


def describe_tpm(profile: TpmProfile) -> str:
    """Maker, model and firmware."""
    vendor = " ".join(profile.vendor.split()) or "no vendor string"
    return f"{maker_of(profile)}, {vendor}, firmware {firmware_of(profile)}"


EMULATED = "this TPM is an emulated one: its keys are in software, and it protects nothing from its host"


def firmware_of(profile: TpmProfile) -> str:
    """The version as its maker writes it."""
    from keyvouch.attestation.tpm_firmware import firmware_text  # noqa: PLC0415

    return firmware_text(profile.manufacturer, profile.firmware_version)


def certificate_words(found: FoundCertificate) -> str:
    """Whose certificate it is, and for which key."""
    if found.trouble:
        return f"{found.place}: {found.trouble}"
    maker = found.maker or f"unregistered maker {found.manufacturer or 'without a name'}"
    form = "" if found.is_der else "; it is not quite DER, which Keyvouch reads and other programs may not"
    return f"{found.place}: {found.key}, by {maker}, model {found.model or 'not named'}{form}"


def lockout_words(lockout: LockoutState) -> str:
    """How the TPM's own dictionary attack protection stands."""
    counted = f"{lockout.counter} of {lockout.limit} wrong passwords counted"
    if lockout.in_lockout:
        return f"the TPM is in lockout after wrong passwords of its owner's keys ({counted})"
    return f"no lockout ({counted})"


def key_words(account: AccountReport) -> str:
    """A key that can be used, and its PIN."""
    standing = account.standing
    assert standing is not None
    source = " by the agent's own count, for the owner's password hides the TPM's" if standing.remembered else ""
    return f"usable, {standing.tries_left} of {standing.limit} PIN tries left{source}"
