"""The server's own certificate authority: device certificates, and the listener certificate in development.

Its key is the server's identity key: `ServerId` is the SHA-256 of that key, agents pin it at enrolment, and the
device listener presents a certificate under it. X.509 profiles follow RFC 5280; the device's identity stands in
a URI subject alternative name, `keyvouch:device:<tenant id>:<device id>`, and nowhere else.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyvouch.errors import Reason, UnauthenticatedError
from keyvouch.ids import DeviceId, ServerId, TenantId
from keyvouch.proofs import sign_proof
from keyvouch.statement import Purpose
from keyvouch_server.ports import Clock

DEVICE_DAYS: Final = 30
LISTENER_DAYS: Final = 90
AUTHORITY_DAYS: Final = 3650
_SKEW = timedelta(minutes=5)
_URI = "keyvouch:device:"
_OWN_PURPOSES: Final = frozenset({Purpose.AUDIT_CHECKPOINT, Purpose.RECEIPT})


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who a device certificate says its holder is, and the key it is bound to (DER SubjectPublicKeyInfo)."""

    tenant_id: TenantId
    device_id: DeviceId
    channel_key: bytes


class DeviceAuthority:
    """Issues certificates under the identity key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @property
    def server_id(self) -> ServerId:
        """SHA-256 of the identity key's DER SubjectPublicKeyInfo."""
        return ServerId(hashlib.sha256(_spki(self._key.public_key())).digest())

    @property
    def public_key(self) -> bytes:
        """The identity key's DER SubjectPublicKeyInfo."""
        return _spki(self._key.public_key())

    def sign(self, purpose: Purpose, statement: bytes) -> bytes:
        """The identity key's signature under what the server itself says, and under nothing else."""
        if purpose not in _OWN_PURPOSES:
            raise ValueError(f"the identity key signs nothing for {purpose}")
        return sign_proof(self._key, purpose, statement)

    @property
    def root_der(self) -> bytes:
        """The authority's own certificate in DER."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def root_pem(self) -> bytes:
        """The authority's own certificate in PEM, which clients and agents trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def device_chain(self, device: DeviceId, tenant: TenantId, channel_key: bytes) -> tuple[bytes, ...]:
        """DER chain for a device's channel key: its certificate, then the authority's."""
        public = serialization.load_der_public_key(channel_key)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise TypeError("channel keys are EC keys")
        builder = (
            self._leaf(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)]), public, DEVICE_DAYS)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{_URI}{tenant}:{device}")]),
                critical=False,
            )
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.DER), self.root_der

    def listener_certificate(self, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """A fresh key and certificate for a listener: PEM private key (PKCS#8), PEM chain."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._leaf(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])]), key.public_key(), LISTENER_DAYS)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hosts]), critical=False)
        )
        chain = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + self.root_pem
        return private_pem(key), chain

    def _leaf(self, subject: x509.Name, public: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )


def found_authority(now: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A new identity key with its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Keyvouch identity")])
    start = datetime.fromtimestamp(now, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def identify(certificate_pem: bytes) -> DeviceIdentity:
    """Read a client certificate that TLS has verified against the authority.

    Raises `UnauthenticatedError(CERTIFICATE_REQUIRED)` when it does not name exactly one device.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        public = certificate.public_key()
    except (ValueError, x509.ExtensionNotFound):
        raise _not_a_device() from None
    parts = uris[0].removeprefix(_URI).split(":") if len(uris) == 1 and uris[0].startswith(_URI) else []
    if len(parts) != 2 or not isinstance(public, ec.EllipticCurvePublicKey):
        raise _not_a_device()
    return DeviceIdentity(TenantId(parts[0]), DeviceId(parts[1]), _spki(public))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 PEM of a private key, unencrypted: for files only their owner can read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _not_a_device() -> UnauthenticatedError:
    return UnauthenticatedError(
        Reason.CERTIFICATE_REQUIRED,
        "The client certificate does not name a registered device.",
        fix="Enrol the device and use the certificate it was given.",
    )
