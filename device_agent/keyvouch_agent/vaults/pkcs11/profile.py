"""What an account is on: which token, whose keys, and what they can sign.

It is found out once, while the card is in the reader and before any PIN, and kept in the account's record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pkcs11 import TokenFlag
from pkcs11.exceptions import PKCS11Error

from keyvouch.cose import Algorithm, CoseKey
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.vaults.pkcs11 import piv
from keyvouch_agent.vaults.pkcs11.failures import key_not_fit, unsupported
from keyvouch_agent.vaults.pkcs11.keys import CertifiedKey, certified_keys
from keyvouch_agent.vaults.pkcs11.library import PresentToken, TokenLibrary
from keyvouch_agent.vaults.pkcs11.session import TokenSession, choose_token, told_of
from keyvouch_agent.vaults.pkcs11.signing import supported
from keyvouch_agent.vaults.pkcs11.uri import TokenName, TokenUri

__all__ = ["ExistingKey", "TokenProfile", "survey"]

_ORGANISATION = (
    "Get it issued by your organisation, or make one with the card's own tool: a key and a certificate in slot 9A, as "
    "with ykman piv keys generate 9a and ykman piv certificates generate 9a."
)


@dataclass(frozen=True, slots=True)
class ExistingKey:
    """A key that the token has a certificate for, and that is used instead of making one."""

    id: bytes
    certificate: bytes
    public_key: bytes
    """COSE_Key."""

    @property
    def slot(self) -> int | None:
        """Which slot it is in, on a PIV card."""
        return piv.PIV_SLOTS.get(self.id)


@dataclass(frozen=True, slots=True)
class TokenProfile:
    """The token of an account. `module` is the path it was found through."""

    name: TokenName
    module: str
    algorithms: tuple[int, ...]
    existing: ExistingKey | None
    """None where the token makes the keys itself."""

    @property
    def is_piv(self) -> bool:
        """Whether it is a PIV card."""
        return piv.is_piv(self.name.manufacturer)


def survey(library: TokenLibrary, wanted: TokenUri) -> TokenProfile:
    """Choose a token, and on it a key if the URI names one or the token is a PIV card.

    Raises `DeviceError`: AUTHENTICATOR_NOT_CONNECTED, UNSUPPORTED for a token that has no key to use and makes none. A
    card that was pulled while it was read looks like such a one: so it is looked at a second time, afresh.
    """
    try:
        return _survey(library, wanted)
    except DeviceError as error:
        if error.reason is not Reason.UNSUPPORTED or not library.renew_idle():
            raise
    return _survey(library, wanted)


def _survey(library: TokenLibrary, wanted: TokenUri) -> TokenProfile:
    token = choose_token(library, wanted)
    if piv.is_piv(token.name.manufacturer) or wanted.names_key:
        key = _choose_key(library, token, wanted)
        existing = ExistingKey(key.id, key.certificate, bytes(key.public_key))
        return TokenProfile(token.name, str(library.path), (int(key.algorithm),), existing)
    return TokenProfile(token.name, str(library.path), tuple(map(int, _can_make(library, token))), None)


def _choose_key(library: TokenLibrary, token: PresentToken, wanted: TokenUri) -> CertifiedKey:
    is_piv = piv.is_piv(token.name.manufacturer)
    found = [key for key in _certified(library, token) if _is_meant(key, wanted)]
    if is_piv:
        slots = [id_ for id_ in piv.PIV_SLOTS if any(key.id == id_ for key in found)]
        if found and not slots:
            raise key_not_fit("only slots 9A and 9C hold keys that sign behind the PIN")
        found = [key for key in found if slots and key.id == slots[0]]
    can_sign = set(_supported(library, token, making=False))
    usable = [key for key in found if key.algorithm in can_sign]
    if len(usable) == 1:
        return usable[0]
    if not usable:
        raise DeviceError(
            Reason.UNSUPPORTED,
            f"The card {token.name} has no key with a certificate that can be used here.",
            fix=_ORGANISATION if is_piv else "Correct object and id in the URI, and see pkcs11-tool --list-objects.",
        )
    raise DeviceError(
        Reason.UNSUPPORTED,
        f"The card {token.name} has {len(usable)} keys that may be meant.",
        fix='Name one: [smartcard] token = "pkcs11:...;id=%01" in agent.toml.',
    )


def _certified(library: TokenLibrary, token: PresentToken) -> list[CertifiedKey]:
    with _session(library, token) as session:
        return session.do(lambda opened: list(certified_keys(opened)))


def _session(library: TokenLibrary, token: PresentToken) -> TokenSession:
    try:
        return TokenSession(library, token.name)
    except PKCS11Error as error:
        raise told_of(library, token.name, error) from error


def _is_meant(key: CertifiedKey, wanted: TokenUri) -> bool:
    return wanted.id in (None, key.id) and wanted.object in (None, key.label)


def _can_make(library: TokenLibrary, token: PresentToken) -> tuple[Algorithm, ...]:
    if token.flags & TokenFlag.WRITE_PROTECTED:
        raise unsupported(f"The token {token.name} is write protected, and no existing key was named.")
    found = _supported(library, token, making=True)
    if not found:
        raise unsupported(f"The token {token.name} makes no keys that can be used, and no existing key was named.")
    return found


def _supported(library: TokenLibrary, token: PresentToken, *, making: bool) -> tuple[Algorithm, ...]:
    try:
        with library.exclusively():
            return supported(token.token.slot, token.mechanisms, making=making)
    except PKCS11Error as error:
        raise told_of(library, token.name, error) from error


def attestation_of(library: TokenLibrary, profile: TokenProfile, token: PresentToken) -> tuple[bytes, ...]:
    """The card's attestation of the account's key; empty where there is none."""
    existing: Any = profile.existing
    if not profile.is_piv or existing is None or existing.slot is None:
        return ()
    with library.exclusively():
        return piv.attestation(token.reader, existing.slot, CoseKey(existing.public_key))
