"""An organisation that certifies its people's keys: badges that are good, and every one that is not.

`badge` issues the certificate of a key for `ada`; keyword arguments replace one part. Not here: cards
(`keyvouch_bench.piv_card`); these keys are in memory, and a certificate does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from keyvouch.attestation.card_certificate import (
    USER_PRINCIPAL_NAME,
    CardAuthority,
    NameMatch,
    VerifiedCardCertificate,
    verify_card_certificate,
)
from keyvouch.attestation.metadata_revocation import RevocationList, parse_crl
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, Reason
from support.certificate_forge import INSTANT, Extension, Issued, PrivateKey, element, intermediate, leaf, new_key, root

DAY = timedelta(days=1)

ORGANISATION = root("Example Organisation")
BADGES = intermediate(ORGANISATION, "Example Badges")
KEY = new_key()
UPN = "ada@corp.example"

LOGON = ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")
"""Smart card logon, as Windows asks for it."""
HARDWARE_POLICY = ObjectIdentifier("1.2.3.4.1")


def utf8(text: str | bytes) -> bytes:
    """A UTF8String in DER."""
    return element(0x0C, text.encode() if isinstance(text, str) else text)


def upn(*names: str | bytes) -> Extension:
    """subjectAltName with UPNs; bytes are put in as they are, as the DER of the value."""
    values = [utf8(name) if isinstance(name, str) else name for name in names]
    return x509.SubjectAlternativeName([x509.OtherName(USER_PRINCIPAL_NAME, value) for value in values]), False


def names(*of: x509.GeneralName) -> Extension:
    """subjectAltName."""
    return x509.SubjectAlternativeName(list(of)), False


def purposes(*of: ObjectIdentifier) -> Extension:
    """extKeyUsage."""
    return x509.ExtendedKeyUsage(list(of)), False


def policies(*of: ObjectIdentifier) -> Extension:
    """certificatePolicies."""
    return x509.CertificatePolicies([x509.PolicyInformation(one, None) for one in of]), False


def badge(
    issuer: Issued = BADGES,
    /,
    *,
    key: PrivateKey = KEY,
    name: str | x509.Name = "Ada",
    named: Extension | None = None,
    more: Sequence[Extension] = (),
    **changes: Any,
) -> Issued:
    """The certificate of a key for a person; `named` is its subjectAltName."""
    extensions = [upn(UPN) if named is None else named, purposes(LOGON, ExtendedKeyUsageOID.CLIENT_AUTH), *more]
    return leaf(issuer, name, key=key, **{"extensions": extensions, **changes})


def nameless(name: str = "Ada", **changes: Any) -> Issued:
    """A badge without subjectAltName."""
    return badge(name=name, extensions=[purposes(LOGON)], **changes)


def crl(issuer: Issued, *revoked: Issued, age: timedelta = DAY, life: timedelta = 7 * DAY) -> RevocationList:
    """A revocation list of `issuer`."""
    return parse_crl(crl_der(issuer, *revoked, age=age, life=life))


def crl_der(
    issuer: Issued, *revoked: Issued, age: timedelta = DAY, life: timedelta = 7 * DAY, instant: Any = INSTANT
) -> bytes:
    """The same in DER; `instant` is that of the test."""
    begin = instant - age
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, begin, begin + life)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder(one.certificate.serial_number, begin)
        builder = builder.add_revoked_certificate(entry.build())
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def authority(*certificates: Issued, **changes: Any) -> CardAuthority:
    """The organisation's authority; keyword arguments replace one part."""
    members: dict[str, Any] = {
        "name": "Example Badges",
        "anchors": tuple(one.anchor for one in certificates or (ORGANISATION,)),
        "match": NameMatch.UPN,
    }
    return CardAuthority(**members | changes)


def verify(
    *certificates: Issued, username: str = UPN, key: PrivateKey = KEY, **changes: Any
) -> VerifiedCardCertificate:
    """`verify_card_certificate` over these certificates, by default a good badge with what belongs above it."""
    given = certificates or (GOOD, BADGES)
    return verify_ders([one.der for one in given], username=username, key=key, **changes)


def verify_ders(
    certificates: Sequence[bytes], *, username: str = UPN, key: PrivateKey = KEY, **changes: Any
) -> VerifiedCardCertificate:
    """The same over whatever it is."""
    arguments: dict[str, Any] = {
        "public_key": CoseKey.from_public_key(key.public_key()),
        "username": username,
        "authorities": [authority()],
        "instant": INSTANT,
    }
    return verify_card_certificate(certificates, **arguments | changes)


def refused(*certificates: Issued, reason: Reason = Reason.CARD_CERTIFICATE, **changes: Any) -> str:
    """The detail for which certificates are refused."""
    with pytest.raises(EvidenceError) as caught:
        verify(*certificates, **changes)
    assert caught.value.reason is reason
    assert caught.value.fix
    assert caught.value.message.endswith(".")
    return caught.value.metadata.get("detail", "")


GOOD = badge()
