"""Verification of a FIDO metadata BLOB (FIDO Metadata Service 3.0 and 3.1, sections 3.1.7 and 3.2).

A BLOB is a JWS in compact form. It is believed for its signature alone, by a chain to an anchor that the caller names
for this purpose; nothing of the payload is looked at before.

What is not here: getting BLOB, anchors and CRLs, keeping the number of the last BLOB, and whether an authenticator is
good enough (`keyvouch.attestation.metadata_policy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from keyvouch import base64url
from keyvouch.attestation.certificates import CertificationPath, validate_path
from keyvouch.attestation.metadata import Metadata
from keyvouch.attestation.metadata_payload import certificate_of, malformed, parse_payload
from keyvouch.attestation.metadata_revocation import check_not_revoked, parse_crl
from keyvouch.attestation.strict_json import read_object
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.errors import EvidenceError, Reason, UsageError

__all__ = ["MAX_BLOB", "verify_metadata_blob"]

MAX_BLOB: Final = 32 * 1024 * 1024
"""Most bytes of a BLOB. That of the FIDO Alliance has about 10 MB, most of them icons."""

MAX_HEADER: Final = 64 * 1024
"""Most characters of an encoded header, certificates included."""

MAX_CERTIFICATES: Final = 8
"""Most certificates in the header."""

MAX_GRACE: Final = timedelta(days=3650)
"""Longest time that a BLOB may be overdue, whatever the caller says."""


def verify_metadata_blob(
    blob: bytes,
    *,
    anchors: Sequence[TrustAnchor],
    instant: datetime,
    expected_name: str | None,
    minimum_number: int | None,
    grace: timedelta,
    crls: Sequence[bytes],
    require_crls: bool,
) -> Metadata:
    """Verify a BLOB and return what it says.

    `anchors` are trusted to sign metadata and for nothing else. `instant` (aware) is when. `expected_name` is the DNS
    name that the signer's certificate must bear, `mds.fidoalliance.org` for the service of the FIDO Alliance; None
    only where the anchor issues for nobody else. `minimum_number` is the number of the last BLOB, None the first
    time. `grace` is how long after its day of next update a BLOB still counts. `crls` are DER or PEM, for any of
    the certificates; `require_crls` wants one for each.

    Checks, in this order (section 3.2, steps 4 to 7; RFC 7515 section 5.2):

     1. at most 32 MiB; three parts in canonical base64url; the header is one JSON object, no name twice
     2. the header has no crit, b64, jwk, jku or x5u (nothing is fetched); typ, if there, is JWT; alg is ES256, RS256
        or PS256; x5c is 1 to 8 certificates. Other members are ignored (RFC 7515 section 4)
     3. the certificates are a valid path from the signer to an anchor at `instant`
     4. the signer's certificate is not that of a CA, may sign, and bears the expected name
     5. no certificate of the path is revoked
     6. the signature verifies with the signer's key, which is of the kind that alg names; ES256 as 64 bytes R and S
     7. the payload is well-formed; a bad entry in it is rejected and listed
     8. its number is not below `minimum_number`
     9. it is not overdue for longer than `grace`

    Raises `MalformedError` with `METADATA_MALFORMED`; `EvidenceError` with `METADATA_UNTRUSTED`, or `METADATA_STALE`
    for the last two; both have the `check` in their metadata. `UsageError` for arguments that make no sense.
    """
    _check_arguments(instant, grace)
    header, payload, signature = _split(blob)
    algorithm, certificates = _read_header(_decode(header))
    path = _validate(certificates, anchors, instant)
    signer = path.certificates[0]
    _check_signer(signer, expected_name)
    check_not_revoked(path, [parse_crl(crl) for crl in crls], instant=instant, required=require_crls)
    signed = f"{header}.{payload}".encode("ascii")
    _verify_signature(signer, algorithm, message=signed, signature=_decode(signature))
    metadata = parse_payload(_decode(payload))
    _check_fresh(metadata, minimum_number, instant, grace)
    return metadata


def _check_arguments(instant: datetime, grace: timedelta) -> None:
    if instant.tzinfo is None:
        raise UsageError("The instant of verification has no time zone.", fix="Pass an aware datetime.")
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise UsageError(f"The grace is not between 0 and {MAX_GRACE.days} days.", fix="Pass a few days at most.")


def _split(blob: bytes) -> tuple[str, str, str]:
    if len(blob) > MAX_BLOB:
        raise malformed(f"It has more than {MAX_BLOB} bytes.")
    parts = blob.decode("ascii").split(".") if blob.isascii() else []
    if len(parts) != 3:
        raise malformed("It is not a JWS in compact form, three parts with dots between them.")
    if len(parts[0]) > MAX_HEADER:
        raise malformed(f"Its header has more than {MAX_HEADER} characters.")
    return parts[0], parts[1], parts[2]


def _decode(part: str) -> bytes:
    try:
        return base64url.decode(part)
    except ValueError:
        raise malformed("One of its parts is not canonical base64url.") from None


def _read_header(data: bytes) -> tuple[str, list[x509.Certificate]]:
    try:
        header = read_object(data)
    except ValueError as error:
        raise malformed(f"Its header is wrong. {error}") from None
    if refused := sorted(header.keys() & _REFUSED_MEMBERS):
        raise _untrusted("header", f"its header has the member {refused[0]}, which is not accepted")
    if header.get("typ", "JWT") != "JWT":
        raise _untrusted("header", "it is not of the type JWT")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise _untrusted("algorithm", f"it is not signed by one of {', '.join(_ALGORITHMS)}")
    return algorithm, _read_certificates(header.get("x5c"))


def _read_certificates(value: object) -> list[x509.Certificate]:
    """Read x5c (RFC 7515 section 4.1.6): base64 of DER, the signer's certificate first."""
    texts = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(texts) != len(value) or not 1 <= len(texts) <= MAX_CERTIFICATES:
        raise malformed(f"The x5c of its header is not a list of 1 to {MAX_CERTIFICATES} certificates.")
    try:
        return [certificate_of(text) for text in texts]
    except ValueError as error:
        raise malformed(f"The x5c of its header is wrong. {error}") from None


def _validate(
    certificates: Sequence[x509.Certificate], anchors: Sequence[TrustAnchor], instant: datetime
) -> CertificationPath:
    try:
        return validate_path(certificates, anchors=anchors, instant=instant)
    except EvidenceError as error:
        raise _untrusted("path", f"its certificates are not trusted: {error.message}") from None


def _check_signer(leaf: x509.Certificate, expected_name: str | None) -> None:
    values = [extension.value for extension in leaf.extensions]
    if any(isinstance(value, x509.BasicConstraints) and value.ca for value in values):
        raise _untrusted("signer", "it is signed by a certification authority itself")
    if any(isinstance(value, x509.KeyUsage) and not value.digital_signature for value in values):
        raise _untrusted("signer", "its key may not be used for signatures")
    if expected_name is not None and expected_name.lower() not in _names(leaf):
        raise _untrusted("name", f"its certificate was not issued to {expected_name}")


def _names(leaf: x509.Certificate) -> set[str]:
    """The DNS names of a certificate in lower case; its common name only if it has no alternative names at all.

    Who wrote alternative names said with them what the certificate is for (RFC 6125 section 6.4.4).
    """
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            return {name.lower() for name in extension.value.get_values_for_type(x509.DNSName)}
    return {str(attribute.value).lower() for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}


def _verify_signature(leaf: x509.Certificate, algorithm: str, *, message: bytes, signature: bytes) -> None:
    key = leaf.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm in _RSA:
            key.verify(signature, message, _RSA[algorithm], hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1) and algorithm == _ES256:
            key.verify(_der_signature(signature), message, ec.ECDSA(hashes.SHA256()))
        else:
            raise _untrusted("algorithm", f"the key of its signer is not one for {algorithm}")
    except InvalidSignature:
        raise _untrusted("signature", "its signature does not verify") from None


def _der_signature(signature: bytes) -> bytes:
    """The 64 bytes of RFC 7518 section 3.4 as the library wants them; no other encoding is a JWS."""
    if len(signature) != 64:
        raise malformed("An ES256 signature has 64 bytes.")
    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


def _check_fresh(metadata: Metadata, minimum_number: int | None, instant: datetime, grace: timedelta) -> None:
    if minimum_number is not None and metadata.number < minimum_number:
        raise _stale("number", f"Its number is {metadata.number}, and number {minimum_number} was seen before.")
    if (instant.astimezone(UTC) - grace).date() > metadata.next_update:
        raise _stale("next_update", f"Its next update was due on {metadata.next_update.isoformat()}.")


_ES256: Final = "ES256"
_RSA: Final = {
    "RS256": padding.PKCS1v15(),
    "PS256": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32),
}
_ALGORITHMS: Final = (_ES256, *_RSA)
_REFUSED_MEMBERS: Final = frozenset({"crit", "b64", "jwk", "jku", "x5u"})
"""What changes how the signature is made, or names a key of somebody's choice."""


def _untrusted(check: str, why: str) -> EvidenceError:
    return EvidenceError(
        Reason.METADATA_UNTRUSTED,
        f"The metadata BLOB is not trusted: {why}.",
        fix="Download the BLOB again, and check the root certificate that is configured for it.",
        metadata={"check": check},
    )


def _stale(check: str, why: str) -> EvidenceError:
    return EvidenceError(
        Reason.METADATA_STALE,
        f"The metadata BLOB is out of date. {why}",
        fix="Download the current BLOB.",
        metadata={"check": check},
    )
