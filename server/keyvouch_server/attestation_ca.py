"""The server's attestation authority: certificates of attestation keys, for TPMs that a maker vouches for.

WebAuthn's format `tpm` wants a chain above the attestation key, and a TPM comes with none: an authority that has seen
the endorsement key certificate issues one (the "privacy CA" of the TCG). A certificate of this authority is worth
something only together with proof that its key was activated; so it leaves the server sealed for one TPM
(`keyvouch.attestation.activation_certificate`), and the authority is an anchor in that one registration only.

Profile: WebAuthn Level 3 section 8.3.1, over RFC 5280. What is not here: the judgement that a certificate may be issued
(`use_cases.tpm_preparation`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyvouch.attestation.tpm_public import TpmPublicKey
from keyvouch.attestation.tpm_registration import TPM_AAGUID
from keyvouch_server.ports import Clock, EndorsedTpm

CERTIFICATE_DAYS: Final = 7
"""How long a certificate is good: one registration, with its retries. Each new key of a device gets a fresh one."""
AUTHORITY_DAYS: Final = 3650

_SKEW = timedelta(minutes=5)
_MANUFACTURER, _MODEL, _VERSION = (x509.ObjectIdentifier(f"2.23.133.2.{n}") for n in (1, 2, 3))
_AIK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.3")
_AAGUID = x509.ObjectIdentifier("1.3.6.1.4.1.45724.1.1.4")
_OCTET_STRING = 0x04


class AttestationAuthority:
    """Issues certificates for attestation keys under a key of its own."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return self._certificate

    def certify(self, key: TpmPublicKey, tpm: EndorsedTpm) -> bytes:
        """A certificate (DER) for the attestation key of `tpm`, good from 5 minutes ago for 7 days from now."""
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_AIK_CERTIFICATE]), critical=False)
            .add_extension(_name_of(tpm), critical=True)  # critical because there is no subject (RFC 5280 4.2.1.6)
            .add_extension(x509.UnrecognizedExtension(_AAGUID, _octets(TPM_AAGUID)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )


def authority_certificate(key: ec.EllipticCurvePrivateKey, now: int) -> x509.Certificate:
    """A self-signed certificate for the authority's key, good for ten years from `now`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Keyvouch attestation")])
    start = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name_of(tpm: EndorsedTpm) -> x509.SubjectAlternativeName:
    """Maker, model and version as the endorsement key certificate states them, each a relative name of its own."""
    values = ((_MANUFACTURER, tpm.manufacturer), (_MODEL, tpm.model), (_VERSION, tpm.version))
    attributes = [x509.RelativeDistinguishedName([x509.NameAttribute(oid, value)]) for oid, value in values]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(attributes))])


def _octets(content: bytes) -> bytes:
    return bytes([_OCTET_STRING, len(content)]) + content


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Either it signs attestations, or certificates."""
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
