"""A forge of X.509 certificates: good ones by default, and with everything about them replaceable.

`root`, `intermediate` and `leaf` make what their names say; keyword arguments replace one part. What the builder of
`cryptography` refuses to make is made by `resign`: take a certificate apart, change its parts, sign it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keyvouch.attestation.trust import TrustAnchor

INSTANT = datetime(2026, 8, 1, 12, tzinfo=UTC)
NOT_BEFORE = INSTANT - timedelta(days=30)
NOT_AFTER = INSTANT + timedelta(days=300)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
Extension = tuple[x509.ExtensionType, bool]

CERT_SIGN = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
DIGITAL_SIGNATURE = x509.KeyUsage(True, False, False, False, False, False, False, False, False)

AUTHORITY: Mapping[str, Any] = {"ca": True, "key_usage": CERT_SIGN}
END_ENTITY: Mapping[str, Any] = {"ca": False, "key_usage": DIGITAL_SIGNATURE}


@dataclass(frozen=True)
class Issued:
    """A certificate and the key that it is for, which may issue others."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def anchor(self) -> TrustAnchor:
        return TrustAnchor("anchor", self.certificate)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """Return an RSA key, one for each length in a run: they take long to make."""
    return rsa.generate_private_key(65537, bits)


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def issue(
    name: str | x509.Name,
    issuer: Issued | None,
    *,
    key: PrivateKey | None = None,
    public_key: Any = None,
    issuer_name: x509.Name | None = None,
    ca: bool | None = None,
    path_length: int | None = None,
    key_usage: x509.KeyUsage | None = None,
    extensions: Sequence[Extension] = (),
    not_before: datetime = NOT_BEFORE,
    not_after: datetime = NOT_AFTER,
    hash: Any = None,  # noqa: A002
    padding: Any = None,
) -> Issued:
    """Issue a certificate; without an issuer it is self-signed. `ca` None leaves basicConstraints out."""
    key = key or new_key()
    subject = named(name) if isinstance(name, str) else name
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name or (issuer.certificate.subject if issuer else subject))
        .public_key(public_key or key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    if isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return Issued(builder.sign(signer, None), key)
    return Issued(builder.sign(signer, hash or hashes.SHA256(), rsa_padding=padding), key)


def root(name: str | x509.Name = "Root", /, **changes: Any) -> Issued:
    """Issue a self-signed root."""
    return issue(name, None, **dict(AUTHORITY) | changes)


def intermediate(issuer: Issued, name: str | x509.Name = "Intermediate", /, **changes: Any) -> Issued:
    """Issue an intermediate that may issue leaves."""
    return issue(name, issuer, **dict(AUTHORITY) | changes)


def leaf(issuer: Issued, name: str | x509.Name = "Leaf", /, **changes: Any) -> Issued:
    """Issue the certificate of an authenticator."""
    return issue(name, issuer, **dict(END_ENTITY) | changes)


def element(tag: int, *parts: bytes) -> bytes:
    """Write one DER element."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def elements(content: bytes) -> list[bytes]:
    """Split DER content into its elements, each with tag and length. For well-formed DER of our own only."""
    found = []
    while content:
        size = content[1] & 0x7F if content[1] & 0x80 else 0
        length = int.from_bytes(content[2 : 2 + size], "big") if size else content[1]
        end = 2 + size + length
        found.append(content[:end])
        content = content[end:]
    return found


def inside(encoded: bytes) -> bytes:
    """Return the content of one DER element."""
    return encoded[2 + (encoded[1] & 0x7F if encoded[1] & 0x80 else 0) :]


def resign(
    issued: Issued, issuer: Issued, change: Callable[[list[bytes]], list[bytes]], *, algorithm: bytes = b""
) -> Issued:
    """Change the fields of a certificate, each an encoded element, and sign it again by ECDSA with SHA-256.

    The fields are, by index: version, serial number, signature, issuer, validity, subject, key, extensions.
    `algorithm` replaces what the certificate says outside of them of its signature.
    """
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    _, said, _ = elements(inside(issued.der))
    tbs = element(0x30, *change(elements(inside(issued.certificate.tbs_certificate_bytes))))
    signature = element(0x03, b"\x00", issuer.key.sign(tbs, ec.ECDSA(hashes.SHA256())))
    return Issued(x509.load_der_x509_certificate(element(0x30, tbs, algorithm or said, signature)), issued.key)
