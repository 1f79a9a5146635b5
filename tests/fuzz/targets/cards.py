"""The certificate that an organisation issued for a user's key.

A changed certificate is no longer signed by its issuer. So it is tried twice, as those of authenticators are: below its
authority, and alone with itself as the anchor, where everything that is read after path validation is reached too.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from keyvouch.attestation import TrustAnchor
from keyvouch.attestation.card_certificate import (
    USER_PRINCIPAL_NAME,
    CardAuthority,
    NameMatch,
    verify_card_certificate,
)
from keyvouch.attestation.certificates import parse_certificate
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, MalformedError

from .target import Shape, Target

__all__ = ["TARGETS", "badges"]

_START = datetime(2026, 1, 1, tzinfo=UTC)
_KEY = ec.derive_private_key(2, ec.SECP256R1()).public_key()
_ISSUER = Ed25519PrivateKey.from_private_bytes(bytes(32))
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Badges")])
_UPN = "ada@corp.example"
_POLICY = ObjectIdentifier("1.2.3.4")


def _certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
    builder = x509.CertificateBuilder(_NAME, subject, key, 7, _START, _START.replace(year=2036))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(_ISSUER, None).public_bytes(Encoding.DER)


_AUTHORITY = parse_certificate(
    x509.CertificateBuilder(_NAME, _NAME, _ISSUER.public_key(), 1, _START, _START.replace(year=2036))
    .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    .sign(_ISSUER, None)
    .public_bytes(Encoding.DER)
)


def badges() -> list[bytes]:
    """Good certificates, one with each kind of name and one with all of them."""
    upn = x509.OtherName(USER_PRINCIPAL_NAME, b"\x0c\x10" + _UPN.encode())
    mail, uri = x509.RFC822Name(_UPN), x509.UniformResourceIdentifier(_UPN)
    rest = (
        x509.KeyUsage(True, False, False, False, False, False, False, False, False),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.CertificatePolicies([x509.PolicyInformation(_POLICY, None)]),
    )
    person = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _UPN)])
    named = [x509.SubjectAlternativeName(names) for names in ([upn, mail, uri], [upn], [mail], [uri])]
    return [_certificate(person, _KEY, *rest, names) for names in named] + [_certificate(person, _KEY, *rest)]


def _verify(data: bytes, anchor: x509.Certificate) -> None:
    for match in NameMatch:
        anchors = (TrustAnchor("card", anchor),)
        with contextlib.suppress(EvidenceError):
            verify_card_certificate(
                [data],
                public_key=CoseKey.from_public_key(_KEY),
                username=_UPN,
                authorities=[CardAuthority("card", anchors, match, policies=frozenset({_POLICY}))],
                instant=_START,
            )


def _act(data: bytes) -> None:
    _verify(data, _AUTHORITY)
    with contextlib.suppress(MalformedError):
        _verify(data, parse_certificate(data))


TARGETS = (Target("card-certificate", _act, Shape.DER, nests=True),)
