"""The makers of TPMs whose endorsement key certificates are believed: those in the wheel, and an administrator's.

A folder of PEM files is a store. A certification authority that signed itself becomes an anchor, named `tpm-ek:` and
the name of its file. All other certificates only help to build paths: an intermediate whose root is not there vouches
for nothing, and one that merely bears the name of its issuer is an intermediate. `trust/README.md` lists what is in
the wheel and where it comes from.

What is not here: judging endorsement key certificates (`keyvouch.attestation.endorsement`), and fetching anything.
"""

from __future__ import annotations

import base64
import binascii
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from cryptography import x509

from keyvouch.assurance import Protection
from keyvouch.attestation.certificate_profile import UNREADABLE
from keyvouch.attestation.endorsement import (
    EK_FORMAT,
    EndorsementCertificate,
    check_self_signed,
    read_anchor_certificate,
)
from keyvouch.attestation.trust import TrustAnchor, TrustStore
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch_server.ports import EkTrust

__all__ = ["EkTrust", "TpmSettings", "load_ek_trust", "load_settings", "makers", "read_settings"]

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_BEGIN: Final = b"-----BEGIN "
_MANUFACTURER: Final = re.compile(r"id:[0-9A-F]{8}")
_MEMBERS: Final = frozenset({"endorsement_trust", "unregistered_manufacturers"})


@dataclass(frozen=True, slots=True)
class TpmSettings:
    """The table `[tpm]`: a folder of further makers' certificates, and makers that nobody registered."""

    folder: Path | None = None
    manufacturers: frozenset[str] = frozenset()


def read_settings(table: object, *, folder: Path) -> TpmSettings:
    """Read the table, None where there is none; a relative path starts at `folder`.

    Raises `KeyvouchError(CONFIGURATION)` for anything that is not exactly of the format (`keyvouch_server.config`).
    """
    if table is None:
        return TpmSettings()
    if not isinstance(table, dict) or not table.keys() <= _MEMBERS:
        raise _misconfigured(f"[tpm] is one table, with {' and '.join(sorted(_MEMBERS))}")
    name, makers_ = table.get("endorsement_trust", ""), table.get("unregistered_manufacturers", [])
    if not isinstance(name, str):
        raise _misconfigured("endorsement_trust is the name of a folder")
    if not isinstance(makers_, list) or not all(isinstance(m, str) and _MANUFACTURER.fullmatch(m) for m in makers_):
        raise _misconfigured("unregistered_manufacturers is a list of makers, each written like id:00001014")
    return TpmSettings(folder / name if name else None, frozenset(makers_))


def load_settings(settings: TpmSettings) -> EkTrust:
    """Read the certificates in the wheel and those of the settings. Raises `KeyvouchError(CONFIGURATION)`."""
    folders = (makers(), settings.folder) if settings.folder else (makers(),)
    return replace(load_ek_trust(*folders), manufacturers=settings.manufacturers)


def makers() -> Traversable:
    """Return the folder of makers' certificates that is part of the program."""
    return files("keyvouch_server").joinpath("trust")


def load_ek_trust(*folders: Traversable) -> EkTrust:
    """Read all files `*.pem` of the folders. Raises `KeyvouchError(CONFIGURATION)`, naming the file.

    Names in certificates of Google are longer than X.520 allows, of which `cryptography` warns when it reads them. The
    names are read here and kept, so that nobody is warned later. Filters of warnings belong to all threads: call this
    while the program starts.
    """
    anchors: list[TrustAnchor] = []
    intermediates: list[x509.Certificate] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for file in (file for folder in folders for file in _pem_files(folder)):
            for certificate, is_root in _certificates(file):
                if is_root:
                    anchors.append(_anchor(file, certificate))
                else:
                    intermediates.append(certificate)
    return EkTrust(TrustStore(anchors), tuple(intermediates))


def _pem_files(folder: Traversable) -> list[Traversable]:
    try:
        return sorted((file for file in folder.iterdir() if file.name.endswith(".pem")), key=lambda file: file.name)
    except OSError as error:
        raise _broken(f"{folder} cannot be read: {error.strerror}") from None


def _anchor(file: Traversable, certificate: x509.Certificate) -> TrustAnchor:
    name = f"{EK_FORMAT}:{file.name.removesuffix('.pem')}"
    return TrustAnchor(name, certificate, formats=frozenset({EK_FORMAT}), protection=Protection.TPM)


def _certificates(file: Traversable) -> Iterator[tuple[x509.Certificate, bool]]:
    """The certificates of a file, and whether each is a root. The tolerant reader is for roots that are not DER."""
    try:
        text = file.read_bytes()
        blocks = _PEM.findall(text)
        ders = [base64.b64decode(b"".join(block.split()), validate=True) for block in blocks]
        read = [(read_anchor_certificate(der), EndorsementCertificate.parse(der)) for der in ders]
    except OSError as error:
        raise _broken(f"{file} cannot be read: {error.strerror}") from None
    except (binascii.Error, MalformedError) as error:
        raise _broken(f"{file} is no file of certificates in PEM: {error}") from None
    if not read:
        raise _broken(f"{file} holds no certificate in PEM")
    if len(read) != text.count(_BEGIN):
        raise _broken(f"{file} holds a block that is no certificate in PEM")
    for certificate, fields in read:
        _read_names(certificate)
        yield certificate, _is_root(fields)


def _read_names(certificate: x509.Certificate) -> None:
    """Make `cryptography` read the names, which it keeps. Names that it cannot read are refused in a path."""
    with suppress(*UNREADABLE):
        certificate.subject, certificate.issuer  # noqa: B018


def _is_root(fields: EndorsementCertificate) -> bool:
    """Whether it is an authority that signed itself. Where it came from is what makes it one to trust."""
    try:
        check_self_signed(fields)
    except EvidenceError:
        return False
    return bool(fields.is_ca)


def _misconfigured(why: str) -> KeyvouchError:
    return KeyvouchError(
        Reason.CONFIGURATION, f"The server cannot start: {why}.", fix="Correct the table [tpm] in keyvouch.toml."
    )


def _broken(why: str) -> KeyvouchError:
    return KeyvouchError(
        Reason.CONFIGURATION,
        f"The certificates of makers of TPMs cannot be used: {why}.",
        fix="Correct the file, or take it out of the folder.",
    )
