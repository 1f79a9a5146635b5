"""What vouches for authenticators on this server: certificates an administrator pinned, and a FIDO metadata file.

`read_settings` reads the tables of the configuration (the format is drawn in `keyvouch_server.config`), `load` the
files they name. Both are done when the server starts; a file that cannot be used keeps it from starting, because a
server that silently forgets an anchor refuses people, and one that forgets a revocation lets them in.

What is not here: verification (`keyvouch.attestation`), and any network: the metadata file is put here by others.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography import x509

from keyvouch.assurance import Protection, Verification
from keyvouch.attestation import Distrust, TrustAnchor, TrustStore
from keyvouch.attestation.certificate_profile import PathRule, read_profile
from keyvouch.attestation.formats import FORMATS
from keyvouch.attestation.metadata import Metadata, model_name
from keyvouch.attestation.metadata_anchors import distrust, trust_anchors
from keyvouch.attestation.metadata_blob import verify_metadata_blob
from keyvouch.attestation.metadata_policy import MetadataPolicy
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason

__all__ = ["MetadataFile", "PinnedRoots", "TrustSettings", "load", "read_settings"]

SIGNER: Final = "mds.fidoalliance.org"
"""The name in the certificate that signs the metadata of the FIDO Alliance."""

GRACE_DAYS: Final = 30
"""How long metadata is believed after the day it should have been renewed, where nothing else is said."""

_CHAINED: Final = FORMATS.keys() - {"none"}
_WITHOUT_MODEL: Final = frozenset({"fido-u2f", "piv"})

NUMBER_FILE: Final = "metadata.number"
"""Holds the number of the newest metadata that was believed."""

_PINNED: Final = frozenset({"name", "file", "formats", "protection", "verification", "aaguids"})
_METADATA: Final = frozenset({"blob", "root", "signer", "crls", "grace_days"})
_log = logging.getLogger("keyvouch.server")
_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True, slots=True)
class PinnedRoots:
    """One table `[[trust_anchors]]`: the certificates in one file, and what they may vouch for."""

    name: str
    file: Path
    formats: frozenset[str]
    protection: Protection
    verification: Verification
    aaguids: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class MetadataFile:
    """The table `[metadata]`: a metadata BLOB, the root of its signature, and the name of who signs.

    With `crls`, each certificate of the signature needs one that does not revoke it.
    """

    blob: Path
    root: Path
    signer: str
    crls: tuple[Path, ...]
    grace: timedelta


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """Everything the configuration says about trust."""

    pinned: tuple[PinnedRoots, ...] = ()
    metadata: MetadataFile | None = None


def read_settings(pinned: object, metadata: object, *, folder: Path) -> TrustSettings:
    """Read the two tables, None where there is none; relative paths start at `folder`.

    Raises `KeyvouchError(CONFIGURATION)` for anything that is not exactly of the format.
    """
    tables = [] if pinned is None else pinned
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise _broken("trust_anchors must be tables, [[trust_anchors]]")
    roots = tuple(_read_pinned(table, folder) for table in tables)
    if metadata is None:
        return TrustSettings(roots)
    return TrustSettings(roots, _read_metadata(metadata, folder))


def load(settings: TrustSettings, *, instant: datetime, folder: Path) -> TrustStore:
    """Read the files and put their anchors together. Raises `KeyvouchError(CONFIGURATION)`, naming the file.

    The number of the newest metadata is kept in `folder`: older metadata, which knows less of what was revoked, is
    refused from then on.
    """
    pinned = [anchor for one in settings.pinned for anchor in _load_pinned(one, instant)]
    if settings.metadata is None:
        return TrustStore(pinned)
    metadata, policy = _load_metadata(settings.metadata, instant, folder / NUMBER_FILE), MetadataPolicy()
    known = trust_anchors(metadata, policy=policy, instant=instant)
    refused = distrust(metadata, policy=policy, instant=instant)
    _report(metadata, known, refused)
    return TrustStore([*pinned, *known], refused)


# The tables


def _read_pinned(table: Mapping[str, Any], folder: Path) -> PinnedRoots:
    _check_members("trust_anchors", table, _PINNED, required={"name", "file", "formats"})
    name, file = _text(table, "name"), _text(table, "file")
    formats = _texts(table, "formats")
    if not formats or not formats <= _CHAINED:
        raise _broken(f"trust anchor {name}: formats are one or several of {', '.join(sorted(_CHAINED))}")
    try:
        aaguids = frozenset(uuid.UUID(text).bytes for text in _texts(table, "aaguids"))
    except ValueError:
        raise _broken(f"trust anchor {name}: an AAGUID is written like 2fc0579f-8113-47ea-b116-bb5a8db9202a") from None
    if aaguids and formats <= _WITHOUT_MODEL:
        raise _broken(f"trust anchor {name}: authenticators of these formats have no AAGUID to be known by")
    protection = _choice(Protection, table, "protection", Protection.SOFTWARE)
    verification = _choice(Verification, table, "verification", Verification.SOFTWARE_GATED)
    return PinnedRoots(name, folder / file, formats, protection, verification, aaguids)


def _read_metadata(table: object, folder: Path) -> MetadataFile:
    if not isinstance(table, dict):
        raise _broken("metadata must be one table, [metadata]")
    _check_members("metadata", table, _METADATA, required={"blob", "root"})
    days = table.get("grace_days", GRACE_DAYS)
    if type(days) is not int or not 0 <= days <= 3650:
        raise _broken("metadata: grace_days is a number of days")
    return MetadataFile(
        folder / _text(table, "blob"),
        folder / _text(table, "root"),
        _text({"signer": SIGNER, **table}, "signer"),
        tuple(folder / name for name in sorted(_texts(table, "crls"))),
        timedelta(days=days),
    )


def _check_members(what: str, table: Mapping[str, Any], known: frozenset[str], *, required: set[str]) -> None:
    unknown, missing = table.keys() - known, required - table.keys()
    if unknown or missing:
        names = ", ".join(sorted(unknown or missing))
        raise _broken(f"{what}: {'unknown' if unknown else 'missing'} settings: {names}")


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table[name]
    if not isinstance(value, str) or not value:
        raise _broken(f"{name} is a text that is not empty")
    return value


def _texts(table: Mapping[str, Any], name: str) -> frozenset[str]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _broken(f"{name} is a list of texts")
    return frozenset(value)


def _choice(kind: type[_Choice], table: Mapping[str, Any], name: str, default: _Choice) -> _Choice:
    try:
        return kind(table.get(name, default.value))
    except ValueError:
        raise _broken(f"{name} is one of {', '.join(str(one.value) for one in kind)}") from None


# The files


def _load_pinned(pinned: PinnedRoots, instant: datetime) -> list[TrustAnchor]:
    certificates = _certificates(pinned.file)
    for certificate in certificates:
        _check_may_vouch(pinned, certificate, instant)
    return [
        TrustAnchor(
            pinned.name,
            certificate,
            formats=pinned.formats,
            aaguids=pinned.aaguids,
            protection=pinned.protection,
            verification=pinned.verification,
        )
        for certificate in certificates
    ]


def _check_may_vouch(pinned: PinnedRoots, certificate: x509.Certificate, instant: datetime) -> None:
    """Refuse a certificate under which no path could ever be valid; tell of one whose time is not now."""
    try:
        profile = read_profile(certificate)
        profile.check_subject()
        profile.check_validity(instant)
    except EvidenceError as error:
        if error.metadata.get("detail") != PathRule.VALIDITY:
            raise _broken(f"a certificate in {pinned.file} cannot vouch for anything: {error.message}") from None
        _log.warning("trust anchor %s: %s", pinned.name, error.message)


def _load_metadata(file: MetadataFile, instant: datetime, number: Path) -> Metadata:
    metadata = _verified(file, instant, _kept_number(number))
    _keep_number(number, metadata.number)
    return metadata


def _kept_number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise _broken(
            f"{path} does not hold a number", "Remove it, if you know which metadata is the newest."
        ) from None


def _keep_number(path: Path, number: int) -> None:
    """Write the number at once or not at all."""
    fresh = path.with_suffix(".new")
    try:
        fresh.write_text(f"{number}\n", "ascii")
        fresh.replace(path)
    except OSError as error:
        raise _broken(f"{path} cannot be written: {error.strerror}") from None


def _verified(file: MetadataFile, instant: datetime, newest: int | None) -> Metadata:
    roots = [TrustAnchor("metadata", certificate) for certificate in _certificates(file.root)]
    try:
        return verify_metadata_blob(
            _bytes(file.blob).rstrip(b"\r\n"),  # what an editor adds
            anchors=roots,
            instant=instant,
            expected_name=file.signer,
            minimum_number=newest,
            grace=file.grace,
            crls=[_bytes(path) for path in file.crls],
            require_crls=bool(file.crls),
        )
    except (MalformedError, EvidenceError) as error:
        raise _broken(f"the metadata in {file.blob} cannot be used: {error.message}", error.fix) from None


def _report(metadata: Metadata, known: Sequence[TrustAnchor], refused: Distrust) -> None:
    models = len({anchor.name for anchor in known})
    _log.info("metadata number %d: %d models trusted, next update %s", metadata.number, models, metadata.next_update)
    for model, why in refused.models.items():
        _log.info("metadata: %s is not accepted: %s", model_name(model), why)
    for entry in metadata.rejected:
        _log.warning("metadata: entry %d (%s) is not believed: %s", entry.position, entry.model, entry.why)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_bytes(path))
    except ValueError as error:
        raise _broken(f"{path} holds no certificates in PEM: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _broken(f"{path} cannot be read: {error.strerror}") from None


def _broken(why: str, fix: str = "Correct keyvouch.toml or the file it names.") -> KeyvouchError:
    return KeyvouchError(Reason.CONFIGURATION, f"The server cannot start: {why.rstrip('.')}.", fix=fix)
