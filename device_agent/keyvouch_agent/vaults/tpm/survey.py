"""What a person may want to know of a TPM, gathered over one connection with few commands and without any secret.

    with access.open(as_it_is=True) as tpm:
        found = survey(tpm)

The connection should be one that left there what others have loaded, so that it can be counted. Nothing here proves
anything, and nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from tpm2_pytss import TPM2_CAP

from keyvouch.attestation.ber import to_der
from keyvouch.attestation.endorsement import EndorsementCertificate
from keyvouch.attestation.tpm_vendors import find_vendor
from keyvouch.errors import DeviceError, KeyvouchError
from keyvouch_agent.vaults.tpm.connection import WITHHELD, Tpm
from keyvouch_agent.vaults.tpm.endorsement import certificate_from_file, certificate_places, issuers, read_nv
from keyvouch_agent.vaults.tpm.parent import PERSISTENT
from keyvouch_agent.vaults.tpm.profile import LockoutState, TpmProfile, nv_handles, read_lockout, read_profile

__all__ = ["FoundCertificate", "TpmSurvey", "survey"]

_OBJECTS: Final = (0x8000_0000,)
_SESSIONS: Final = (0x0200_0000, 0x0300_0000)
"""Beginnings of handles: transient objects; sessions in the TPM, and those saved outside it (Part 2 section 7.2)."""
_MOST: Final = 254


@dataclass(frozen=True, slots=True)
class FoundCertificate:
    """A certificate of an endorsement key: where it was, and what it says. `trouble` is why it cannot be read."""

    place: str
    key: str = ""
    """`RSA-2048`, `P-256`."""
    manufacturer: str = ""
    """As the certificate has it, `id:49465800`."""
    maker: str = ""
    """The registered name, empty where nobody registered it."""
    model: str = ""
    is_der: bool = True
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class TpmSurvey:
    """One look. `objects` and `sessions` are loaded now; behind a resource manager only one's own are seen."""

    profile: TpmProfile
    lockout: LockoutState
    certificates: tuple[FoundCertificate, ...]
    issuers: int
    nv_indices: int
    objects: int
    sessions: int
    has_root_key: bool
    """Whether the owner keeps a storage root key at 0x81000001."""


def survey(tpm: Tpm) -> TpmSurvey:
    """Look. Some ten commands, and three for each certificate in NV memory."""
    objects, sessions = _count(tpm, _OBJECTS), _count(tpm, _SESSIONS)
    taken = nv_handles(tpm)
    return TpmSurvey(
        profile=read_profile(tpm),
        lockout=read_lockout(tpm),
        certificates=_certificates(tpm, taken),
        issuers=len(issuers(tpm, taken)),
        nv_indices=len(taken),
        objects=objects,
        sessions=sessions,
        has_root_key=PERSISTENT in _handles(tpm, PERSISTENT),
    )


def _certificates(tpm: Tpm, taken: frozenset[int]) -> tuple[FoundCertificate, ...]:
    """The one in the file first, as registration prefers it."""
    found = [_read(f"0x{handle:08X}", read_nv(tpm, handle)) for handle in certificate_places(taken)]
    path = tpm.settings.endorsement_certificate
    if not path:
        return tuple(found)
    if path == WITHHELD:
        return tuple(replace(one, trouble=one.trouble or "agent.toml withholds it from servers") for one in found)
    try:
        return (_read(path, certificate_from_file(path)), *found)
    except DeviceError as error:
        return (FoundCertificate(path, trouble=error.message), *found)


def _read(place: str, data: bytes) -> FoundCertificate:
    try:
        certificate = EndorsementCertificate.parse(data)
    except KeyvouchError as error:
        return FoundCertificate(place, trouble=error.message)
    vendor = find_vendor(certificate.manufacturer or "")
    return FoundCertificate(
        place,
        key=_kind(certificate.key),
        manufacturer=certificate.manufacturer or "",
        maker=vendor.name if vendor else "",
        model=certificate.model or "",
        is_der=_is_der(certificate.encoding),
    )


def _kind(key: Any) -> str:
    if isinstance(key, rsa.RSAPublicNumbers):
        return f"RSA-{key.n.bit_length()}"
    return f"P-{key.curve.key_size}"


def _is_der(encoding: bytes) -> bool:
    try:
        return to_der(encoding) == encoding
    except ValueError:
        return False


def _count(tpm: Tpm, beginnings: tuple[int, ...]) -> int:
    return sum(len(_handles(tpm, first)) for first in beginnings)


def _handles(tpm: Tpm, first: int) -> list[int]:
    found = tpm.do(tpm.esapi.get_capability, TPM2_CAP.HANDLES, first, _MOST)[1]
    return [int(handle) for handle in found.data.handles]
