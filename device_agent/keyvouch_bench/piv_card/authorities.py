"""The certificate authorities of a bench: who vouches for a batch of cards, and who issues cards to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from keyvouch.errors import Reason, UnavailableError

__all__ = ["BEGIN", "END", "Authority", "common_name"]

BEGIN: Final = datetime(2020, 1, 1, tzinfo=UTC)
END: Final = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Extensions = Sequence[tuple[x509.ExtensionType, bool]]
"""Each with whether it is critical."""


def common_name(text: str) -> x509.Name:
    """A name of one part."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True, slots=True)
class Authority:
    """A key, and the certificate that says it may sign others."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    certificate: x509.Certificate

    @classmethod
    def root(cls, name: str) -> Authority:
        """A new one that nobody vouches for."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject, extensions = common_name(name), authority_extensions(1)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = _builder(subject, subject, key.public_key(), [*extensions, (identifier, False)])
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def kept(cls, path: Path, name: str) -> Authority:
        """The one in that file; a new one is made and put there if there is none."""
        if not path.exists():
            made = cls.root(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            private = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(private + made.pem)
            return made
        try:
            written = path.read_bytes()
            key, certificate = load_pem_private_key(written, None), x509.load_pem_x509_certificate(written)
        except (OSError, ValueError) as error:
            raise _broken(path, str(error)) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise _broken(path, "key and certificate do not belong together")
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        subject: x509.Name,
        key: PublicKey,
        extensions: Extensions,
        *,
        serial: int | None = None,
        identified: bool = True,
    ) -> x509.Certificate:
        """A certificate for that key; with the identifiers of both keys unless that is declined."""
        added = list(extensions)
        if identified:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key())  # type: ignore[arg-type]
            added += [(x509.SubjectKeyIdentifier.from_public_key(key), False), (issuer, False)]
        builder = _builder(subject, self.certificate.subject, key, added, serial)
        return builder.sign(self.key, hashes.SHA256())


def authority_extensions(path_length: int) -> Extensions:
    """What an authority's certificate states of itself (RFC 5280, sections 4.2.1.3 and 4.2.1.9)."""
    usage = key_usage(key_cert_sign=True, crl_sign=True)
    return [(x509.BasicConstraints(ca=True, path_length=path_length), True), (usage, True)]


def key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_encipherment: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    """The extension, with nothing allowed that is not named."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, extensions: Extensions, serial: int | None = None
) -> x509.CertificateBuilder:
    number = x509.random_serial_number() if serial is None else serial
    builder = x509.CertificateBuilder(issuer, subject, key, number, BEGIN, END)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


def _broken(path: Path, why: str) -> UnavailableError:
    return UnavailableError(
        Reason.CONFIGURATION, f"{path} holds no authority of a bench: {why}.", fix="Remove it: a new one is made."
    )
