"""The device channel's certificates: how an enrolled device proves itself to the server, and the server to it.

Not here: the key they are for (`channel_keys`), where they are kept (`ledger`), the channel itself (`rpc`), dates
(the TLS library judges them at every connection).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from keyvouch.errors import EvidenceError, Reason
from keyvouch.ids import ServerId

__all__ = ["VerifiedChain", "verify_chain"]

RENEW_AFTER = 2 / 3
"""Part of a certificate's life after which the agent asks for the next one."""

MAX_CHAIN = 4


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A device certificate chain that names this device's channel key and ends in the server's identity key."""

    certificates: tuple[bytes, ...]
    not_before: float
    not_after: float

    @property
    def renew_at(self) -> float:
        """When two thirds of the device certificate's life are over, seconds since the epoch."""
        return self.not_before + (self.not_after - self.not_before) * RENEW_AFTER

    @property
    def pem(self) -> bytes:
        """The chain in PEM, the device's certificate first."""
        return b"".join(_pem(der) for der in self.certificates)

    @property
    def authority_pem(self) -> bytes:
        """The device certificate authority's certificate in PEM: the only anchor of the device channel."""
        return _pem(self.certificates[-1])


def verify_chain(certificates: Sequence[bytes], *, server_id: ServerId, channel_key: bytes) -> VerifiedChain:
    """Verify the certificate chain the server answered a registration or a renewal with.

    Checks, in this order: two to four DER certificates; the first is for `channel_key` (DER SubjectPublicKeyInfo);
    SHA-256 of the last one's SubjectPublicKeyInfo is `server_id`; each is issued and signed by the next, which is a
    certificate authority; the last by itself.

    Raises `EvidenceError` with TRUST_CHAIN, CHANNEL_KEY or WRONG_SERVER.
    """
    chain = [_load(der) for der in certificates]
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise _refuse(Reason.TRUST_CHAIN, "it does not have two to four certificates")
    if not hmac.compare_digest(_spki(chain[0]), channel_key):
        raise _refuse(Reason.CHANNEL_KEY, "its first certificate is for another key than this device's")
    if not hmac.compare_digest(hashlib.sha256(_spki(chain[-1])).digest(), server_id):
        raise _refuse(Reason.WRONG_SERVER, "it does not end in the identity key of the server")
    for subject, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        _verify_issued(subject, issuer)
    return VerifiedChain(
        tuple(bytes(der) for der in certificates),
        chain[0].not_valid_before_utc.timestamp(),
        chain[0].not_valid_after_utc.timestamp(),
    )


def _verify_issued(subject: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, UnsupportedAlgorithm):
        raise _refuse(Reason.TRUST_CHAIN, "a certificate in it is not signed by the next one") from None
    if not constraints.ca:
        raise _refuse(Reason.TRUST_CHAIN, "an issuer in it is no certificate authority")


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise _refuse(Reason.TRUST_CHAIN, "a part of it is not a certificate") from None


def _spki(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, UnsupportedAlgorithm):
        raise _refuse(Reason.TRUST_CHAIN, "a certificate in it holds a key of an unknown kind") from None


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def _refuse(reason: Reason, why: str) -> EvidenceError:
    return EvidenceError(
        reason,
        f"The certificate chain of the server was refused: {why}.",
        fix="Nothing was enrolled or replaced with it. Tell your administrator.",
    )
