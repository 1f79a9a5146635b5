"""A forge of FIDO metadata: a throw-away root, a signer, BLOBs with entries, and CRLs; good unless a test bends it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keyvouch import base64url
from keyvouch.attestation import TrustAnchor
from keyvouch.attestation.metadata import Metadata
from keyvouch.attestation.metadata_blob import verify_metadata_blob
from keyvouch.errors import EvidenceError, MalformedError, Reason

SignerKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Extensions: TypeAlias = Iterable[tuple[x509.ExtensionType, bool]]

INSTANT = datetime(2026, 8, 1, 12, tzinfo=UTC)
BEGIN, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2044, 1, 1, tzinfo=UTC)
SIGNER_NAME = "mds.example"
CA, NOT_CA = x509.BasicConstraints(ca=True, path_length=None), x509.BasicConstraints(ca=False, path_length=None)
AAGUID_TEXT = "2fc0579f-8113-47ea-b116-bb5a8db9202a"
AAGUID = bytes.fromhex(AAGUID_TEXT.replace("-", ""))


def key_usage(*purposes: str) -> x509.KeyUsage:
    """A key usage of these purposes alone."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in purposes for name in names})


def named(common_name: str) -> x509.Name:
    """A name of a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@cache
def p256_key(_name: str = "") -> ec.EllipticCurvePrivateKey:
    """One throw-away key per name."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """The throw-away RSA key."""
    return rsa.generate_private_key(65537, 2048)


@dataclass(frozen=True)
class Holder:
    """A key and its certificate."""

    key: SignerKey
    certificate: x509.Certificate

    def issue(
        self,
        common_name: str,
        extensions: Extensions = ((NOT_CA, True),),
        *,
        key: Any = None,
        begin: datetime = BEGIN,
        end: datetime = END,
    ) -> Holder:
        """A certificate under this one, by default that of an end entity, with a key named after it."""
        own = key or p256_key(common_name)
        return Holder(own, certificate(common_name, own, self.key, self.certificate.subject, extensions, begin, end))

    def crl(self, *revoked: x509.Certificate, hash_algorithm: Any = None, **changes: Any) -> bytes:
        """A CRL of this holder in DER. Changes: `begin`, `end`, `issuer`, `extensions`, `reasons`, `key`."""
        builder = x509.CertificateRevocationListBuilder(
            changes.get("issuer", self.certificate.subject),
            changes.get("begin", INSTANT - timedelta(days=1)),
            changes.get("end", INSTANT + timedelta(days=1)),
            extensions=[x509.Extension(e.oid, critical, e) for e, critical in changes.get("extensions", ())],
        )
        reasons = [x509.Extension(e.oid, False, e) for e in changes.get("reasons", ())]
        for item in revoked:
            of_item = x509.RevokedCertificateBuilder(item.serial_number, INSTANT - timedelta(days=2), reasons)
            builder = builder.add_revoked_certificate(of_item.build())
        signed = builder.sign(changes.get("key", self.key), hash_algorithm or hashes.SHA256())
        return signed.public_bytes(Encoding.DER)


def certificate(
    common_name: str,
    key: Any,
    signer: SignerKey,
    issuer: x509.Name,
    extensions: Extensions,
    begin: datetime = BEGIN,
    end: datetime = END,
) -> x509.Certificate:
    """A certificate with exactly these extensions."""
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(issuer, named(common_name), key.public_key(), serial, begin, end)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, hashes.SHA256())


def new_root(common_name: str) -> Holder:
    """A self-signed root."""
    key = p256_key(common_name)
    return Holder(key, certificate(common_name, key, key, named(common_name), [(CA, True)]))


def renewed(root: Holder) -> x509.Certificate:
    """Another edition of a root: the same name and key, later dates."""
    name, key = root.certificate.subject, root.key
    builder = x509.CertificateBuilder(name, name, key.public_key(), 9, BEGIN + timedelta(days=365), END)
    return builder.add_extension(CA, True).sign(key, hashes.SHA256())


ROOT = new_root("Metadata Root")
"""The root that `ANCHOR` trusts, for BLOBs."""
ANCHOR = TrustAnchor("metadata", ROOT.certificate)
INTERMEDIATE = ROOT.issue("Metadata Intermediate", [(CA, True)])
SIGNER = INTERMEDIATE.issue(SIGNER_NAME)
MAKER = new_root("Maker Root")
"""The attestation root of `entry`."""


def der64(item: x509.Certificate | bytes) -> str:
    """Base64 as headers and entries hold certificates."""
    return base64.b64encode(item if isinstance(item, bytes) else item.public_bytes(Encoding.DER)).decode()


def without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    """The members that are not None."""
    return {name: value for name, value in members.items() if value is not None}


def statement(**changes: Any) -> dict[str, Any]:
    """A FIDO2 statement; a change to None drops the member, any other replaces it."""
    members = {
        "description": "Example Key",
        "protocolFamily": "fido2",
        "authenticatorVersion": 5,
        "attestationTypes": ["basic_full"],
        "keyProtection": ["hardware", "secure_element"],
        "matcherProtection": ["on_chip"],
        "userVerificationDetails": [
            [{"userVerificationMethod": "none"}],
            [{"userVerificationMethod": "presence_internal"}, {"userVerificationMethod": "passcode_external"}],
        ],
        "attestationRootCertificates": [der64(MAKER.certificate)],
    }
    return without_none(members | changes)


def report(status: str = "FIDO_CERTIFIED_L1", **changes: Any) -> dict[str, Any]:
    """A status report."""
    return {"status": status, "effectiveDate": "2025-01-01"} | changes


def entry(**changes: Any) -> dict[str, Any]:
    """An entry of a FIDO2 authenticator; a change to None drops the member, any other replaces it."""
    members = {
        "aaguid": AAGUID_TEXT,
        "metadataStatement": statement(),
        "statusReports": [report()],
        "timeOfLastStatusChange": "2025-01-01",
    }
    return without_none(members | changes)


def u2f_entry(*key_ids: str, **changes: Any) -> dict[str, Any]:
    """An entry of a U2F authenticator."""
    members = {
        "aaguid": None,
        "attestationCertificateKeyIdentifiers": list(key_ids),
        "metadataStatement": statement(protocolFamily="u2f"),
    }
    return entry(**members | changes)


def payload(*entries: Any, **changes: Any) -> dict[str, Any]:
    """A payload; a change to None drops the member, any other replaces it."""
    members = {"legalHeader": "Terms", "no": 15, "nextUpdate": "2026-09-01", "entries": list(entries or [entry()])}
    return without_none(members | changes)


def blob(
    content: Mapping[str, Any] | bytes | None = None,
    *,
    signer: Holder = SIGNER,
    chain: Sequence[x509.Certificate | bytes] | None = None,
    algorithm: str = "ES256",
    header: Mapping[str, Any] | bytes | None = None,
    key: Any = None,
) -> bytes:
    """A BLOB, signed over whatever is in it. `header` changes members of it (None drops one) or is all of it."""
    certificates = (signer.certificate, INTERMEDIATE.certificate) if chain is None else chain
    members = {"alg": algorithm, "typ": "JWT", "x5c": [der64(item) for item in certificates]}
    if not isinstance(header, bytes):
        header = json.dumps(without_none(members | dict(header or {}))).encode()
    body = content if isinstance(content, bytes) else json.dumps(payload() if content is None else content).encode()
    message = f"{base64url.encode(header)}.{base64url.encode(body)}".encode()
    return message + b"." + base64url.encode(signature(key or signer.key, algorithm, message)).encode()


def signature(key: Any, algorithm: str, message: bytes) -> bytes:
    """What JWS puts into its third part (RFC 7518 section 3)."""
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
        return key.sign(message, pss if algorithm == "PS256" else padding.PKCS1v15(), hashes.SHA256())
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def expectations(**changes: Any) -> dict[str, Any]:
    """The expectations that good BLOBs meet."""
    members: dict[str, Any] = {
        "anchors": [ANCHOR],
        "instant": INSTANT,
        "expected_name": SIGNER_NAME,
        "minimum_number": None,
        "grace": timedelta(0),
        "crls": [],
        "require_crls": False,
    }
    return members | changes


def verified(*entries: Any, **changes: Any) -> Metadata:
    """What a good BLOB with these entries says."""
    return verify_metadata_blob(blob(payload(*entries, **changes)), **expectations())


def is_good(data: bytes, **changes: Any) -> bool:
    """Whether a BLOB is believed, and has the number of `payload`; if not, it raises."""
    return verify_metadata_blob(data, **expectations(**changes)).number == 15


def blob_reason(data: bytes, **changes: Any) -> tuple[Reason, str]:
    """The reason for which a BLOB is refused, and the check that failed."""
    try:
        verify_metadata_blob(data, **expectations(**changes))
    except (MalformedError, EvidenceError) as caught:
        error = caught
    else:
        raise AssertionError("The BLOB is believed.")
    assert isinstance(error, MalformedError) == (error.reason is Reason.METADATA_MALFORMED)
    assert error.fix
    return error.reason, error.metadata.get("check", "")
