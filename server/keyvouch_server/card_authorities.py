"""The authorities whose certificates say whose key it is, and their revocation lists.

`read_settings` reads the tables `[[card_authorities]]` of the configuration (the format is drawn in
`keyvouch_server.config`), `CardFiles` the files they name: certificates once, when the server starts, revocation lists
also later, whenever one of them was replaced. A file that cannot be used keeps the server from starting; a list that
cannot be used later is told in the log, and the one before it counts until its own end. After that nobody signs in by a
certificate of that authority.

What is not here: judging certificates (`keyvouch.attestation.card_certificate`), and any network: lists are put here by
others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from keyvouch.assurance import Protection, Verification
from keyvouch.attestation.card_certificate import CardAuthority, NameMatch
from keyvouch.attestation.certificate_profile import PathRule, read_profile
from keyvouch.attestation.metadata_revocation import MAX_CRL, RevocationList, parse_crl
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch_server.domain.names import name_key
from keyvouch_server.ports import CardTrust

__all__ = ["CardFiles", "CardSettings", "read_settings"]

_REQUIRED: Final = frozenset({"name", "file", "match"})
_OPTIONAL: Final = frozenset({"tenant", "protection", "verification", "crls", "required_eku", "required_policies"})
_log = logging.getLogger("keyvouch.server")
_Choice = TypeVar("_Choice", bound=Enum)
_Stamp = tuple[int, int, int]
"""What tells two files at one place apart: inode, size, and the nanosecond of the last change."""


@dataclass(frozen=True, slots=True)
class CardSettings:
    """One table `[[card_authorities]]`."""

    name: str
    file: Path
    match: NameMatch
    tenant: str = ""
    protection: Protection = Protection.SOFTWARE
    verification: Verification = Verification.SOFTWARE_GATED
    crls: tuple[Path, ...] = ()
    purposes: frozenset[ObjectIdentifier] = frozenset()
    policies: frozenset[ObjectIdentifier] = frozenset()

    @property
    def promises_hardware(self) -> bool:
        """Whether keys that it certified count for more than keys in software."""
        return self.protection.is_hardware or self.verification is Verification.HARDWARE_GATED


def read_settings(tables: object, *, folder: Path) -> tuple[CardSettings, ...]:
    """Read the tables, None where there are none; relative paths start at `folder`.

    Raises `KeyvouchError(CONFIGURATION)` for anything that is not exactly of the format.
    """
    if tables is None:
        return ()
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise _broken("card_authorities must be tables, [[card_authorities]]")
    found = tuple(_read(table, folder) for table in tables)
    if len({one.name for one in found}) != len(found):
        raise _broken("two tables [[card_authorities]] have one name")
    return found


def _read(table: Mapping[str, Any], folder: Path) -> CardSettings:
    unknown, missing = table.keys() - _REQUIRED - _OPTIONAL, _REQUIRED - table.keys()
    if unknown or missing:
        names = ", ".join(sorted(unknown or missing))
        raise _broken(f"card_authorities: {'unknown' if unknown else 'missing'} settings: {names}")
    return CardSettings(
        _text(table, "name"),
        folder / _text(table, "file"),
        _choice(NameMatch, table, "match"),
        _tenant(table),
        _choice(Protection, {"protection": Protection.SOFTWARE.value, **table}, "protection"),
        _choice(Verification, {"verification": Verification.SOFTWARE_GATED.value, **table}, "verification"),
        tuple(folder / name for name in _texts(table, "crls")),
        _identifiers(table, "required_eku"),
        _identifiers(table, "required_policies"),
    )


def _tenant(table: Mapping[str, Any]) -> str:
    """What names nobody is an error: it would be for all tenants."""
    if "tenant" not in table:
        return ""
    name = _text(table, "tenant")
    if not name_key(name):
        raise _broken("card_authorities: tenant is the name of a tenant")
    return name


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table[name]
    if not isinstance(value, str) or not value:
        raise _broken(f"card_authorities: {name} is a text that is not empty")
    return value


def _texts(table: Mapping[str, Any], name: str) -> list[str]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise _broken(f"card_authorities: {name} is a list of texts")
    return value


def _choice(kind: type[_Choice], table: Mapping[str, Any], name: str) -> _Choice:
    try:
        return kind(table[name])
    except ValueError:
        raise _broken(f"card_authorities: {name} is one of {', '.join(str(one.value) for one in kind)}") from None


def _identifiers(table: Mapping[str, Any], name: str) -> frozenset[ObjectIdentifier]:
    try:
        return frozenset(ObjectIdentifier(text) for text in _texts(table, name))
    except ValueError:
        raise _broken(f"card_authorities: {name} are object identifiers like 1.3.6.1.4.1.311.20.2.2") from None


class CardFiles:
    """The files of all authorities. `trust` is what the server works with; `refresh` keeps it up to date."""

    def __init__(self, settings: tuple[CardSettings, ...], *, instant: datetime, taken: Collection[str] = ()) -> None:
        """Read all files. `taken` are names of other anchors: one name means one thing.

        Raises `KeyvouchError(CONFIGURATION)`, naming the file.
        """
        doubled = {one.name for one in settings} & set(taken)
        if doubled:
            raise _broken(f"{min(doubled)} is the name of a trust anchor and of a card authority")
        self._stamps = {path: _stamp(path) for one in settings for path in one.crls}
        self._lists = {path: _revocation_list(path) for path in self._stamps}
        self._authorities = [(name_key(one.tenant), _authority(one, instant), one.crls) for one in settings]
        for path, found in self._lists.items():
            if found.next_update is None or not found.this_update <= instant <= found.next_update:
                _log.warning("card authorities: the revocation list %s is not current", path)
        self.trust = CardTrust()
        self._put_together()

    @property
    def may_change(self) -> bool:
        """Whether there is anything to refresh."""
        return bool(self._stamps)

    def refresh(self) -> None:
        """Read revocation lists that were replaced. Never raises: one that cannot be used is told in the log, once."""
        changed = False
        for path, known in self._stamps.items():
            stamp = _stamp(path)
            if stamp == known:
                continue
            self._stamps[path] = stamp
            try:
                self._lists[path] = _revocation_list(path)
            except KeyvouchError as error:
                _log.warning("card authorities: %s The list before it counts.", error.message)
                continue
            changed = True
            _log.info("card authorities: the revocation list %s was read again", path)
        if changed:
            self._put_together()

    def _put_together(self) -> None:
        self.trust.authorities = tuple(
            (tenant, replace(authority, revocation=tuple(self._lists[path] for path in crls)))
            for tenant, authority, crls in self._authorities
        )


def _authority(settings: CardSettings, instant: datetime) -> CardAuthority:
    certificates = _certificates(settings.file)
    for certificate in certificates:
        _check_may_certify(settings, certificate, instant)
    if settings.promises_hardware and not (settings.purposes or settings.policies):
        _log.warning(
            "card authority %s: its promise counts for every certificate it issues for signatures, also for keys that "
            "are on no card; name required_eku or required_policies.",
            settings.name,
        )
    return CardAuthority(
        settings.name,
        tuple(TrustAnchor(settings.name, certificate) for certificate in certificates),
        settings.match,
        protection=settings.protection,
        verification=settings.verification,
        purposes=settings.purposes,
        policies=settings.policies,
    )


def _check_may_certify(settings: CardSettings, certificate: x509.Certificate, instant: datetime) -> None:
    """Refuse a certificate under which no path could ever be valid; tell of one whose time is not now."""
    try:
        profile = read_profile(certificate)
        profile.check_subject()
        profile.check_may_issue(())
        profile.check_validity(instant)
    except EvidenceError as error:
        if error.metadata.get("detail") != PathRule.VALIDITY:
            raise _broken(f"a certificate in {settings.file} cannot certify anybody: {error.message}") from None
        _log.warning("card authority %s: %s", settings.name, error.message)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_bytes(path))
    except ValueError as error:
        raise _broken(f"{path} holds no certificates in PEM: {error}") from None


def _revocation_list(path: Path) -> RevocationList:
    try:
        return parse_crl(_bytes(path))
    except MalformedError:
        raise _broken(f"{path} is no revocation list, DER or PEM") from None


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _bytes(path: Path) -> bytes:
    """Of a file that is longer than any revocation list may be, one byte more than that."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_CRL + 1)
    except OSError as error:
        raise _broken(f"{path} cannot be read: {error.strerror}") from None


def _broken(why: str) -> KeyvouchError:
    return KeyvouchError(
        Reason.CONFIGURATION,
        f"The authorities for smartcards cannot be used: {why.rstrip('.')}.",
        fix="Correct keyvouch.toml or the file it names.",
    )
