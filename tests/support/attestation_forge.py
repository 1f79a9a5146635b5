"""A forge of attestation: throw-away authorities, leaf certificates and statements, good unless a test bends one thing.

An `Authority` issues certificates, `signed_by` makes a statement, `registration` all of it. Keys are made once per
process: they are throw-away, and RSA keys take their time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keyvouch.attestation import TrustAnchor, TrustStore, verify_registration
from keyvouch.cose import Algorithm
from keyvouch.errors import KeyvouchError, Reason
from keyvouch.webauthn import AttestationObject
from support.forge import AAGUID, UP_UV, Forge, PrivateKey, new_key, sign

AAGUID_OID = x509.ObjectIdentifier("1.3.6.1.4.1.45724.1.1.4")
BEGIN, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2044, 1, 1, tzinfo=UTC)
CA, NOT_CA = x509.BasicConstraints(ca=True, path_length=None), x509.BasicConstraints(ca=False, path_length=None)

Extensions: TypeAlias = Iterable[tuple[x509.ExtensionType, bool]]
AnyPrivateKey: TypeAlias = PrivateKey | ed448.Ed448PrivateKey
StatementMaker: TypeAlias = Callable[[bytes, bytes], Mapping[str, object]]


@cache
def key_for(algorithm: Algorithm, _name: str = "") -> PrivateKey:
    """One throw-away key per algorithm and name."""
    return new_key(algorithm)


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A name of these attributes, which are not judged."""
    return x509.Name([x509.NameAttribute(oid, value, _validate=False) for oid, value in attributes])


MODEL = (
    (NameOID.COUNTRY_NAME, "SE"),
    (NameOID.ORGANIZATION_NAME, "Forge"),
    (NameOID.ORGANIZATIONAL_UNIT_NAME, "Authenticator Attestation"),
    (NameOID.COMMON_NAME, "Forged Authenticator"),
)
"""The subject of a packed attestation certificate."""


def tlv(tag: int, content: bytes) -> bytes:
    """DER of one element with a tag of one byte."""
    size = len(content)
    length = (
        bytes([size]) if size < 0x80 else bytes([0x81, size]) if size < 0x100 else b"\x82" + size.to_bytes(2, "big")
    )
    return bytes([tag]) + length + content


def octet_string(content: bytes) -> bytes:
    """DER of an octet string."""
    return tlv(4, content)


def unrecognized(oid: str | x509.ObjectIdentifier, der: bytes) -> x509.UnrecognizedExtension:
    """An extension the library does not know."""
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid) if isinstance(oid, str) else oid, der)


def aaguid_extension(aaguid: bytes = AAGUID) -> x509.UnrecognizedExtension:
    """id-fido-gen-ce-aaguid."""
    return unrecognized(AAGUID_OID, octet_string(aaguid))


@dataclass(frozen=True)
class Authority:
    """A name and a key that sign certificates; `certificate` is the one for this key."""

    subject: x509.Name
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def root(cls, common_name: str = "Forged Root") -> Authority:
        """A self-signed root."""
        subject, key = name((NameOID.COMMON_NAME, common_name)), ec.generate_private_key(ec.SECP256R1())
        return cls(subject, key, _certificate(subject, subject, key, key, [(CA, True)]))

    def subordinate(self, common_name: str = "Forged Intermediate", *, extensions: Extensions = ()) -> Authority:
        """An authority under this one."""
        subject, key = name((NameOID.COMMON_NAME, common_name)), ec.generate_private_key(ec.SECP256R1())
        return Authority(subject, key, _certificate(subject, self.subject, key, self.key, [(CA, True), *extensions]))

    def issue(
        self,
        key: AnyPrivateKey,
        extensions: Extensions,
        subject: x509.Name | None = None,
    ) -> x509.Certificate:
        """A leaf certificate for the public part of `key`, with exactly these extensions."""
        return _certificate(name(*MODEL) if subject is None else subject, self.subject, key, self.key, extensions)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: AnyPrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    extensions: Extensions,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), 4711, BEGIN, END)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, hashes.SHA256())


ROOT = Authority.root()
"""The root that `TRUST` trusts."""


def anchor(certificate: x509.Certificate = ROOT.certificate, **changes: Any) -> TrustAnchor:
    """A trust anchor named `forge`."""
    members: dict[str, Any] = {"name": "forge", "certificate": certificate}
    return TrustAnchor(**members | changes)


TRUST = TrustStore([anchor()])


def signed_by(
    key: AnyPrivateKey,
    algorithm: int,
    chain: Sequence[x509.Certificate | bytes],
    **changes: object,
) -> StatementMaker:
    """A statement of alg, sig by `key` and x5c; a change to None drops the member, any other replaces it."""

    def make(data: bytes, client_data_hash: bytes) -> dict[str, object]:
        statement: dict[str, object] = {
            "alg": int(algorithm),
            "sig": _sign(key, algorithm, data + client_data_hash),
            "x5c": encoded(chain),
        }
        return {member: value for member, value in (statement | changes).items() if value is not None}

    return make


def _sign(key: AnyPrivateKey, algorithm: int, message: bytes) -> bytes:
    if isinstance(key, ed448.Ed448PrivateKey):
        return key.sign(message)
    return sign(key, Algorithm(algorithm), message)


def registration(
    forge: Forge,
    format: str,  # noqa: A002
    make: StatementMaker,
    *,
    flags: int = UP_UV,
    **changes: Any,
) -> dict[str, Any]:
    """Arguments of `verify_registration` that trust `ROOT`; `make` gets authenticator data and client data hash.

    `changes` replace arguments after signing.
    """
    blank = forge.registration(format=format, statement={}, flags=flags)
    data = AttestationObject(blank["attestation_object"]).authenticator_data
    statement = make(data, hashlib.sha256(blank["client_data"]).digest())
    return forge.registration(format=format, statement=statement, flags=flags, **{"anchors": TRUST} | changes)


def verdict(arguments: Mapping[str, Any]) -> Reason | None:
    """The reason for which a registration is refused, None if it is good."""
    try:
        verify_registration(**arguments)
    except KeyvouchError as error:
        return error.reason
    return None


def encoded(certificates: Sequence[x509.Certificate | bytes]) -> list[bytes]:
    """The certificates as x5c lists them."""
    return [item if isinstance(item, bytes) else item.public_bytes(Encoding.DER) for item in certificates]


CERTIFIED_KEYS: Mapping[str, tuple[x509.ExtensionType, bool]] = {
    "application": (unrecognized("1.3.6.1.4.1.11129.2.1.17", b"\x30\x00"), False),
    "apple": (unrecognized("1.2.840.113635.100.8.2", b"\x30\x00"), False),
    "slot": (unrecognized("1.3.6.1.4.1.41482.3.8", b"\x02\x01"), False),
    "tpm": (x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.3")]), False),
}
"""What the certificates of keys have that makers certify and that sign for whoever may use them."""
