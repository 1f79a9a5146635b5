"""A forge of endorsement key certificates, written element by element so that any of them can be bent before signing.

The authorities above are ordinary certificates. Nothing of the product's reading is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection
from keyvouch.attestation.trust import TrustAnchor, TrustStore
from support.tpm_forge import ec_key, rsa_key

INSTANT = datetime(2026, 8, 1, tzinfo=UTC)
START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
RSA_SHA256 = bytes.fromhex("06092a864886f70d01010b0500")
KEY_USAGE, ALTERNATIVE_NAME, CONSTRAINTS, PURPOSES = "551d0f", "551d11", "551d13", "551d25"


def tlv(tag: int, content: bytes, *, length_bytes: int = 0) -> bytes:
    """An element; its length has that many bytes in the long form, or the shortest form."""
    size = len(content)
    if not length_bytes and size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes(length_bytes or (size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*parts: bytes) -> bytes:
    """A SEQUENCE."""
    return tlv(0x30, b"".join(parts))


def attribute(oid: str, text: str | bytes, tag: int = 0x0C) -> bytes:
    """An AttributeTypeAndValue; `oid` is the content in hexadecimal."""
    content = text.encode() if isinstance(text, str) else text
    return sequence(tlv(0x06, bytes.fromhex(oid)), tlv(tag, content))


def alternative_name(*attributes: bytes) -> bytes:
    """GeneralNames with one directory name, every attribute in a set of its own."""
    return sequence(tlv(0xA4, sequence(*(tlv(0x31, one) for one in attributes))))


TCG = {"manufacturer": "6781050201", "model": "6781050202", "version": "6781050203"}


def tcg_name(manufacturer: str = "id:494E5443", model: str = "Example", version: str = "id:00020008") -> bytes:
    """A subject alternative name as the profile wants it."""
    values = {"manufacturer": manufacturer, "model": model, "version": version}
    return alternative_name(*(attribute(TCG[name], value) for name, value in values.items()))


def extension(oid: str, value: bytes, critical: bytes = b"\x01\x01\xff") -> bytes:
    """An Extension; `critical` is the whole BOOLEAN element, or nothing."""
    return sequence(tlv(0x06, bytes.fromhex(oid)), critical, tlv(0x04, value))


def good_extensions(key: PublicKey) -> dict[str, bytes]:
    """The extensions of a good certificate, by their object identifiers."""
    usage = "03020520" if isinstance(key, rsa.RSAPublicKey) else "03020308"
    return {
        CONSTRAINTS: extension(CONSTRAINTS, bytes.fromhex("3000")),
        KEY_USAGE: extension(KEY_USAGE, bytes.fromhex(usage)),
        PURPOSES: extension(PURPOSES, bytes.fromhex("300706056781050801"), b""),
        ALTERNATIVE_NAME: extension(ALTERNATIVE_NAME, tcg_name()),
    }


@dataclass(frozen=True)
class EkAuthority:
    """A certification authority and its private key."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def name(self) -> bytes:
        """The subject in DER."""
        return self.certificate.subject.public_bytes()

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    def sign(self, message: bytes, digest: hashes.HashAlgorithm | None = None) -> bytes:
        """Sign with SHA-256, or another digest."""
        chosen = digest or hashes.SHA256()
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(message, padding.PKCS1v15(), chosen)
        return self.key.sign(message, ec.ECDSA(chosen))


def authority(
    text: str,
    issuer: EkAuthority | None = None,
    *,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    end: datetime = END,
    extensions: tuple[x509.ExtensionType, ...] | None = None,
) -> EkAuthority:
    """Make an authority; without an issuer a root. `extensions` replace the usual critical ones."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    parent = issuer.certificate.subject if issuer else name
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(parent).public_key(own.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(START).not_valid_after(end)
    for one in (x509.BasicConstraints(ca=True, path_length=None),) if extensions is None else extensions:
        builder = builder.add_extension(one, critical=True)
    return EkAuthority(own, builder.sign(issuer.key if issuer else own, hashes.SHA256()))


@cache
def root() -> EkAuthority:
    """The root."""
    return authority("EK Root")


@cache
def intermediate() -> EkAuthority:
    """An intermediate under the root."""
    return authority("EK Intermediate", root())


def store(*authorities: EkAuthority) -> TrustStore:
    """Anchors of these authorities, or of the root."""
    return TrustStore(
        TrustAnchor(f"anchor-{n}", one.certificate, formats=frozenset({"tpm-ek"}), protection=Protection.TPM)
        for n, one in enumerate(authorities or (root(),))
    )


def key_info(key: PublicKey) -> bytes:
    """The SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed_part(public_key: PublicKey, signer: EkAuthority, /, **parts: Any) -> bytes:
    """A TBSCertificate. `parts` replace elements by name; `extensions` is a mapping, `without` an extension less."""
    extensions = good_extensions(public_key) | parts.pop("extensions", {})
    for oid in parts.pop("without", ()):
        del extensions[oid]
    elements: dict[str, bytes] = {
        "version": bytes.fromhex("a003020102"),
        "serial": bytes.fromhex("020101"),
        "algorithm": sequence(ECDSA_SHA256 if isinstance(signer.key, ec.EllipticCurvePrivateKey) else RSA_SHA256),
        "issuer": signer.name,
        "validity": sequence(tlv(0x17, b"200101000000Z"), tlv(0x18, b"99991231235959Z")),
        "subject": sequence(),
        "key": key_info(public_key),
        "extensions": tlv(0xA3, sequence(*extensions.values())),
    }
    return sequence(*(elements | parts).values())


def certificate(
    public_key: PublicKey | None = None,
    *,
    signer: EkAuthority | None = None,
    change: Callable[[bytes], bytes] = bytes,
    digest: hashes.HashAlgorithm | None = None,
    outer_algorithm: bytes | None = None,
    signature: bytes | None = None,
    **parts: Any,
) -> bytes:
    """A certificate, good unless something is bent. `change` is done to the signed part before it is signed."""
    parent = signer or intermediate()
    part = change(signed_part(public_key or ek(), parent, **parts))
    kind = ECDSA_SHA256 if isinstance(parent.key, ec.EllipticCurvePrivateKey) else RSA_SHA256
    algorithm = parts.get("algorithm", sequence(kind)) if outer_algorithm is None else outer_algorithm
    made = b"\x00" + parent.sign(part, digest) if signature is None else signature
    return sequence(part, algorithm, tlv(0x03, made))


def ek() -> PublicKey:
    """The elliptic curve endorsement key of most tests."""
    return ec_key(7).public_key()


def rsa_ek() -> PublicKey:
    """The RSA one."""
    return rsa_key(7).public_key()


def stretched(data: bytes, *, shuffled: bool = True) -> bytes:
    """The same elements in BER: every length with a needless byte, the sets in descending order."""
    return b"".join(_stretch(data, shuffled))


def _stretch(data: bytes, shuffled: bool) -> list[bytes]:
    elements, at = [], 0
    while at < len(data):
        tag, size, start = data[at], data[at + 1], at + 2
        if size >= 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[at + 2 : start], "big")
        content, at = data[start : start + size], start + size
        if tag & 0x20:
            inner = _stretch(content, shuffled)
            content = b"".join(sorted(inner, reverse=True) if shuffled and tag == 0x31 else inner)
        elements.append(tlv(tag, content, length_bytes=3))
    return elements
