"""Certificates of the listeners, which change while the server runs.

    OwnCertificate    issued by the server's authority, made anew at two thirds of its life
    FileCertificate   the operator's own, read again when its files change

A listener asks `renewed` before each handshake, so both are quick when nothing has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from keyvouch.errors import KeyvouchError
from keyvouch_server.config import broken
from keyvouch_server.device_authority import LISTENER_DAYS, DeviceAuthority
from keyvouch_server.ports import Clock, KeyPair

RENEW_SECONDS: Final = LISTENER_DAYS * 86400 * 2 // 3

_log = logging.getLogger("keyvouch.server")


class OwnCertificate:
    """Issued by the server's own authority for `hosts`."""

    def __init__(self, authority: DeviceAuthority, hosts: Sequence[str], clock: Clock) -> None:
        self._authority = authority
        self._hosts = tuple(hosts)
        self._clock = clock
        self._made_at = 0

    def load(self) -> KeyPair:
        """See `ports.CertificateSource`."""
        self._made_at = self._clock.now()
        return KeyPair(*self._authority.listener_certificate(self._hosts))

    def renewed(self) -> KeyPair | None:
        """See `ports.CertificateSource`."""
        return self.load() if self._clock.now() - self._made_at >= RENEW_SECONDS else None


class FileCertificate:
    """The operator's files: a PEM key and a PEM chain that belong together."""

    def __init__(self, key: Path, chain: Path) -> None:
        self._paths = (key, chain)
        self._seen: tuple[int, ...] = ()

    def load(self) -> KeyPair:
        """See `ports.CertificateSource`."""
        try:
            self._seen = self._changed_at()
            pair = KeyPair(*(path.read_bytes() for path in self._paths))
            public = serialization.load_pem_private_key(pair.key, password=None).public_key()
            matches = x509.load_pem_x509_certificates(pair.chain)[0].public_key() == public
        except (OSError, ValueError, TypeError) as error:
            raise broken(f"the public listener's certificate cannot be read: {error}", "Correct the paths.") from None
        if not matches:
            raise broken("the public listener's key does not belong to its certificate", "Correct the paths.")
        return pair

    def renewed(self) -> KeyPair | None:
        """See `ports.CertificateSource`. Files that cannot be used are told in the log; the old certificate stays."""
        try:
            return self.load() if self._changed_at() != self._seen else None
        except (OSError, KeyvouchError) as error:
            _log.warning("certificate: %s", error)
            return None

    def _changed_at(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in self._paths)
