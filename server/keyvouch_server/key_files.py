"""The key files of a data directory: made once, read at every start, seen by their owner only.

identity.key, ca.pem                   the server's identity and its device authority
token.key                              signs access tokens
pepper.key                             keys hashes and derived secrets
attestation.key, attestation-ca.pem    the authority that certifies attestation keys of TPMs
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch_server.attestation_ca import AttestationAuthority, authority_certificate
from keyvouch_server.config import broken
from keyvouch_server.device_authority import DeviceAuthority, found_authority, private_pem
from keyvouch_server.keyring import Keyring
from keyvouch_server.ports import Clock

__all__ = ["make_keys", "read_keys", "write_new"]

_IDENTITY_KEY, _CA, _TOKEN_KEY, _PEPPER = "identity.key", "ca.pem", "token.key", "pepper.key"
_ATTESTATION_KEY, _ATTESTATION_CA = "attestation.key", "attestation-ca.pem"
_PRIVATE: Final = (_IDENTITY_KEY, _TOKEN_KEY, _PEPPER, _ATTESTATION_KEY)


def make_keys(data: Path, now: int) -> None:
    """Make the keys of a new server; `read_keys` makes those of the attestation authority."""
    key, certificate = found_authority(now)
    write_new(data / _IDENTITY_KEY, private_pem(key))
    write_new(data / _CA, certificate.public_bytes(serialization.Encoding.PEM))
    write_new(data / _TOKEN_KEY, private_pem(ec.generate_private_key(ec.SECP256R1())))
    write_new(data / _PEPPER, secrets.token_bytes(32))


def read_keys(data: Path, clock: Clock) -> tuple[DeviceAuthority, Keyring]:
    """Read all keys. Raises `KeyvouchError(CONFIGURATION)` where one is missing, unreadable or not private."""
    _check_private(data)
    try:
        certificate = x509.load_pem_x509_certificate((data / _CA).read_bytes())
        pepper = (data / _PEPPER).read_bytes()
    except (OSError, ValueError) as error:
        raise broken(f"the keys in {data} cannot be read: {error}", "Restore them from your backup.") from None
    authority = DeviceAuthority(_read_key(data / _IDENTITY_KEY), certificate, clock)
    return authority, Keyring(_read_key(data / _TOKEN_KEY), pepper, authority, _attestation_authority(data, clock))


def write_new(path: Path, content: bytes) -> None:
    """A new file that only its owner can read, on disk before this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)


def _write_whole(path: Path, content: bytes) -> None:
    """The same for a server that is in use already: a crash leaves the whole file, or none."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_new(fresh, content)
    fresh.replace(path)


def _check_private(data: Path) -> None:
    """Secrets that others can read are secrets no more."""
    for path in (data, *(data / name for name in _PRIVATE)):
        if path.exists() and path.stat().st_mode & 0o077:
            raise broken(f"others can read {path}", f"Run: chmod go-rwx {path}")


def _attestation_authority(data: Path, clock: Clock) -> AttestationAuthority:
    """The authority for attestation keys; it is made where there is none yet: by `init`, or after an older release."""
    key_file, certificate_file = data / _ATTESTATION_KEY, data / _ATTESTATION_CA
    if not key_file.exists() and not certificate_file.exists():
        _write_whole(key_file, private_pem(ec.generate_private_key(ec.SECP256R1())))
    key = _read_key(key_file)
    if not certificate_file.exists():
        pem = authority_certificate(key, clock.now()).public_bytes(serialization.Encoding.PEM)
        _write_whole(certificate_file, pem)
    return AttestationAuthority(key, _read_certificate(certificate_file), clock)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise broken(f"{path} cannot be read: {error}", "Restore it from your backup.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise broken(f"{path} is not an EC key", "Restore it from your backup.")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise broken(f"{path} cannot be read: {error}", "Restore it from your backup.") from None
