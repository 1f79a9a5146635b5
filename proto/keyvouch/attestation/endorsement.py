"""Judgement of endorsement key certificates: does a maker of TPMs vouch for this very endorsement key?

The certificate itself never passes through `cryptography`, which cannot read those of several makers: its fields are
read by `keyvouch.attestation.endorsement_certificate`, its signature is verified here, over the bytes as received.
All certificates above it are strict DER and go through `keyvouch.attestation.certificates`. The one exception are
anchors: an anchor is a name and a key (RFC 5280 section 6.1.1 (d)), nobody verifies its encoding, so a root that is
not quite DER may be one after `read_anchor_certificate` has put it right.

What is not here: proof that the key is in the TPM that answers (`keyvouch.attestation.credential_activation`), and
fetching of certificates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from keyvouch.attestation.ber import to_der
from keyvouch.attestation.certificate_profile import UNREADABLE, read_profile
from keyvouch.attestation.certificates import MAX_CANDIDATES, CertificationPath, find_path, parse_certificate
from keyvouch.attestation.der import DerError
from keyvouch.attestation.endorsement_certificate import (
    MAX_CHAIN,
    MAX_CHAIN_SIZE,
    EndorsementCertificate,
    split_certificates,
)
from keyvouch.attestation.endorsement_fields import (
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    SUBJECT_ALTERNATIVE_NAME,
    DistinguishedName,
    subject_of,
)
from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.attestation.tpm_vendors import TpmVendor, find_vendor
from keyvouch.attestation.trust import TrustAnchor, TrustStore
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError

__all__ = [
    "EK_FORMAT",
    "EndorsementCertificate",
    "VerifiedEndorsement",
    "check_self_signed",
    "read_anchor_certificate",
    "split_certificates",
    "verify_endorsement_certificate",
]

EK_FORMAT = "tpm-ek"
"""What anchors that vouch for endorsement keys name among their formats."""

MAX_ISSUERS = 4
"""How many certificates of the issuer's name are looked at; a maker has one or two of a name. All of them together
may take as many candidates for a path as `find_path` looks at for one."""


@dataclass(frozen=True, slots=True)
class VerifiedEndorsement:
    """A maker vouches for an endorsement key.

    `key_hash` is the identity of the TPM, the one to tell two TPMs apart by: SHA-256 (32 bytes) of the key as
    SubjectPublicKeyInfo in DER. `endorsement_key` is the public area as it was given. The certificate vouches for the
    key in it alone, so its attributes, its policy, the way its numbers are written, and with them its name may be
    whatever the host claims; one TPM can be presented under many names.

    `manufacturer`, `model` and `version` are as in the certificate, with `?` for what is not printable ASCII.
    `vendor` is the registered maker, None for a manufacturer that only the caller knows. `issuers`
    are the certificates above that of the key, nearest first, up to the anchor and without it.
    """

    certificate: EndorsementCertificate
    endorsement_key: TpmPublic
    key_hash: bytes
    manufacturer: str
    vendor: TpmVendor | None
    model: str
    version: str
    issuers: tuple[x509.Certificate, ...]
    anchor: TrustAnchor


def verify_endorsement_certificate(
    certificate: EndorsementCertificate,
    *,
    endorsement_key: TpmPublic,
    intermediates: Sequence[bytes | x509.Certificate],
    anchors: TrustStore,
    instant: datetime,
    unregistered_manufacturers: Collection[str] = (),
) -> VerifiedEndorsement:
    """Verify that `certificate` is a maker's for `endorsement_key`.

    `intermediates` may be in any order and hold what does not belong to the path: certificates out of the TPM in DER,
    at most `MAX_CHAIN` of those with `MAX_CHAIN_SIZE` bytes in all, and known ones. Of `anchors` those count that name
    the format `EK_FORMAT`; one for every format was not pinned for this. `instant` is aware.
    `unregistered_manufacturers` are `id:XXXXXXXX` of emulators, where those are wanted: swtpm calls itself id:00001014.

    Checks, in this order (P is the EK Credential Profile, version 2.5, section 3.2):

     1. the certificate is for the key of the public area (and so is not of a weak length and not a ROCA key)
     2. it is not that of a certification authority, and says so (P, basic constraints)
     3. its key is for encryption: keyEncipherment for RSA, keyAgreement for ECC, if it says what its key is for at all
        (P, key usage; RFC 5280 section 4.2.1.3)
     4. its purpose is that of an endorsement key certificate, 2.23.133.8.1 (P, extended key usage), for otherwise any
        certificate that a maker issued under the same root would do
     5. it names manufacturer, model and version, the manufacturer being registered (P, subject alternative name)
     6. no critical extension is one that is not understood (RFC 5280 section 4.2)
     7. it is valid at `instant`
     8. there is a valid path from an issuer of its name to an anchor, the issuer may issue it, and has signed it, by
        RSA PKCS #1 v1.5 or ECDSA with SHA-256, SHA-384 or SHA-512. The signature is last: no key of a stranger is
        computed with

    Raises `EvidenceError`: `TPM_EK_CERTIFICATE` for 1 to 6, `TRUST_CHAIN` for 7 and 8, `WEAK_KEY_ROCA` for a weak key
    in the path; `MalformedError` with `TPM_EK_CERTIFICATE` for too many intermediates or too long ones; `UsageError`.
    """
    if instant.tzinfo is None:
        raise UsageError("The instant of verification has no time zone.", fix="Pass an aware datetime.")
    if certificate.key != endorsement_key.key.public_numbers():
        raise _refuse("It is for another key than that of the public area.")
    _check_use(certificate)
    manufacturer, model, version = _origin(certificate)
    vendor = find_vendor(manufacturer)
    if vendor is None and manufacturer not in unregistered_manufacturers:
        told = {"manufacturer": _printable(manufacturer[:32])}
        raise _refuse("It names a manufacturer that is not registered.", told)
    if not certificate.critical <= _UNDERSTOOD:
        raise _refuse("One of its critical extensions is not understood.")
    if not certificate.not_before <= instant <= certificate.not_after:
        raise _untrusted("It is not valid at this time.")
    path = _find_issuer_path(certificate, _read_intermediates(intermediates), anchors, instant)
    issuers = () if path.certificates[0] == path.anchor.certificate else path.certificates
    return VerifiedEndorsement(
        certificate=certificate,
        endorsement_key=endorsement_key,
        key_hash=_key_hash(endorsement_key),
        manufacturer=_printable(manufacturer),
        vendor=vendor,
        model=_printable(model),
        version=_printable(version),
        issuers=issuers,
        anchor=path.anchor,
    )


def check_self_signed(certificate: EndorsementCertificate) -> None:
    """Check that a certificate names itself as its issuer and is signed by its own key, over the bytes as received.

    For those that somebody trusts already: it tells a root from an authority that only has the name of its issuer.
    SHA-1 will do here, and here only: old roots of Nuvoton have it, and a signature of a root on itself proves nothing
    to anybody else. Raises `EvidenceError` with `TRUST_CHAIN`.
    """
    if certificate.issuer != certificate.subject:
        raise _untrusted("It does not name itself as its issuer.")
    try:
        key = certificate.key.public_key()
    except UNREADABLE:
        raise _untrusted("Its key cannot be read.") from None
    _check_signature(certificate, key, {**_RSA_SIGNATURES, _RSA_SHA1: hashes.SHA1()})  # noqa: S303


def read_anchor_certificate(data: bytes) -> x509.Certificate:
    """Read a certificate that is going to be an anchor; one that is not quite DER is put right first.

    Raises `MalformedError` with `ATTESTATION_STATEMENT`. Its own signature is not looked at and may not verify
    afterwards, so who calls this knows from elsewhere that the certificate is the right one.
    """
    try:
        return parse_certificate(to_der(data))
    except DerError as error:
        raise MalformedError(
            Reason.ATTESTATION_STATEMENT,
            f"The certificate cannot be read. {error}",
            fix="Configure a certificate in DER.",
        ) from None


# The profile

_RSA_USAGE, _ECC_USAGE = 0x20, 0x08  # keyEncipherment, keyAgreement (RFC 5280 section 4.2.1.3)
_PURPOSE = ObjectIdentifier("2.23.133.8.1")
_PURPOSE_CONTENT = bytes.fromhex("6781050801")
_UNDERSTOOD = frozenset(
    {
        BASIC_CONSTRAINTS,
        EXTENDED_KEY_USAGE,
        KEY_USAGE,
        SUBJECT_ALTERNATIVE_NAME,
        bytes.fromhex("551d09"),  # subject directory attributes: the TPM's specification, which decides nothing here
        bytes.fromhex("551d20"),  # certificate policies: none is asked for (RFC 5280 section 6.1.1 (c))
    }
)


def _check_use(certificate: EndorsementCertificate) -> None:
    if certificate.is_ca is not False:
        raise _refuse("It does not say that it is none of a certification authority.")
    usage = _RSA_USAGE if isinstance(certificate.key, rsa.RSAPublicNumbers) else _ECC_USAGE
    if certificate.key_usage is not None and not certificate.key_usage & usage:
        raise _refuse("Its key is not for encryption.")
    if _PURPOSE_CONTENT not in (certificate.extended_key_usage or ()):
        raise _refuse("Its purpose is not that of an endorsement key.")


def _origin(certificate: EndorsementCertificate) -> tuple[str, str, str]:
    manufacturer, model, version = certificate.manufacturer, certificate.model, certificate.version
    if not manufacturer or not model or not version:
        raise _refuse("It does not name manufacturer, model and version of the TPM.")
    return manufacturer, model, version


def _printable(text: str) -> str:
    """The text with nothing in it that a log or a terminal would obey."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def _key_hash(public: TpmPublic) -> bytes:
    return hashlib.sha256(public.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _refuse(why: str, metadata: Mapping[str, str] | None = None) -> EvidenceError:
    return EvidenceError(
        Reason.TPM_EK_CERTIFICATE,
        f"The endorsement key certificate does not prove what it has to. {why}",
        fix="Send the certificate that the maker of the TPM issued for this endorsement key.",
        metadata=metadata,
    )


# The path

_RSA_SIGNATURES: Mapping[bytes, hashes.HashAlgorithm] = {  # PKCS #1 v1.5 (RFC 8017 annex A.2.4)
    bytes.fromhex("2a864886f70d01010b"): hashes.SHA256(),
    bytes.fromhex("2a864886f70d01010c"): hashes.SHA384(),
    bytes.fromhex("2a864886f70d01010d"): hashes.SHA512(),
}
_RSA_SHA1 = bytes.fromhex("2a864886f70d010105")
_ECDSA_SIGNATURES: Mapping[bytes, hashes.HashAlgorithm] = {  # RFC 5758 section 3.2
    bytes.fromhex("2a8648ce3d040302"): hashes.SHA256(),
    bytes.fromhex("2a8648ce3d040303"): hashes.SHA384(),
    bytes.fromhex("2a8648ce3d040304"): hashes.SHA512(),
}


def _read_intermediates(certificates: Sequence[bytes | x509.Certificate]) -> list[x509.Certificate]:
    """Read what can be read. The rest is of no use to a path, and no reason to refuse one without it."""
    sizes = [len(certificate) for certificate in certificates if isinstance(certificate, bytes)]
    if len(sizes) > MAX_CHAIN or sum(sizes) > MAX_CHAIN_SIZE:
        raise MalformedError(
            Reason.TPM_EK_CERTIFICATE,
            "There are too many intermediate certificates, or they are too long.",
            fix=f"Send at most {MAX_CHAIN}, with at most {MAX_CHAIN_SIZE} bytes in all.",
        )
    pool = []
    for certificate in certificates:
        with suppress(MalformedError):
            pool.append(certificate if isinstance(certificate, x509.Certificate) else parse_certificate(certificate))
    return pool


def _find_issuer_path(
    certificate: EndorsementCertificate, pool: list[x509.Certificate], anchors: TrustStore, instant: datetime
) -> CertificationPath:
    """Find an issuer that has a path and signed the certificate. If none has, tell what is wrong with the last one.

    The issuers share one budget of candidates, whoever sends them.
    """
    trusted = [anchor for anchor in anchors.anchors_for(EK_FORMAT, aaguid=bytes(16)) if anchor.formats is not None]
    told = _untrusted("No certificate of its issuer is known.")
    known = dict.fromkeys((*pool, *(anchor.certificate for anchor in trusted)))
    issuers = list(islice((issuer for issuer in known if _subject(issuer) == certificate.issuer), MAX_ISSUERS))
    for issuer in issuers:
        try:
            budget = MAX_CANDIDATES // len(issuers)
            path = find_path(issuer, pool, anchors=trusted, instant=instant, candidates=budget)
            _check_may_issue(path)
            _check_signature(certificate, issuer.public_key(), _RSA_SIGNATURES)
        except EvidenceError as error:
            told = error
        else:
            return path
    raise told


def _subject(issuer: x509.Certificate) -> DistinguishedName | None:
    try:
        return subject_of(issuer.tbs_certificate_bytes)
    except ValueError:  # DerError among them: no name that this certificate could have as its issuer's
        return None


def _check_signature(
    certificate: EndorsementCertificate, key: object, rsa_signatures: Mapping[bytes, hashes.HashAlgorithm]
) -> None:
    """Check the signature over the bytes as received."""
    rsa_digest = rsa_signatures.get(certificate.signature_algorithm)
    ecdsa_digest = _ECDSA_SIGNATURES.get(certificate.signature_algorithm)
    try:
        if isinstance(key, rsa.RSAPublicKey) and rsa_digest is not None:
            key.verify(certificate.signature, certificate.signed, padding.PKCS1v15(), rsa_digest)
        elif isinstance(key, ec.EllipticCurvePublicKey) and ecdsa_digest is not None:
            key.verify(certificate.signature, certificate.signed, ec.ECDSA(ecdsa_digest))
        else:
            raise _untrusted("It is signed by an algorithm that is weak, unknown or not for the key of its issuer.")
    except InvalidSignature:
        raise _untrusted("Its issuer has not signed it.") from None


def _check_may_issue(path: CertificationPath) -> None:
    """Check what `find_path` leaves out because it takes the issuer for the leaf: what each CA may have below it."""
    authorities = [read_profile(one) for one in dict.fromkeys((*path.certificates, path.anchor.certificate))]
    for position, authority in enumerate(authorities):
        authority.check_may_issue(authorities[:position])
        if authority.purposes is not None and authority.purposes.isdisjoint(_PURPOSES):
            raise _untrusted("One of its issuers is not for endorsement keys.")


_PURPOSES = frozenset({_PURPOSE, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


def _untrusted(why: str) -> EvidenceError:
    return EvidenceError(
        Reason.TRUST_CHAIN,
        f"The endorsement key certificate is not one of a maker that is trusted. {why}",
        fix="Add the maker's certificates to the trust store, or send those that belong between.",
    )
