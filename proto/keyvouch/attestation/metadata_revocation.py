"""Revocation of the certificates behind a metadata BLOB (RFC 5280 sections 5 and 6.3, for complete CRLs).

`keyvouch.attestation.card_certificate` judges its paths by the same rules, in its own words.

Whether there have to be CRLs is for the caller: they come out of files or a download, which are not here. Who is on
an authentic list is revoked, also if it is a delta CRL or one for some reasons only. That somebody is on none counts
only of a complete list. Indirect CRLs are not used at all: whom they name is another issuer's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

from keyvouch.attestation.certificate_profile import UNREADABLE
from keyvouch.attestation.certificates import CertificationPath
from keyvouch.attestation.subject_key import public_key_bits
from keyvouch.errors import EvidenceError, MalformedError, Reason

__all__ = ["RevocationList", "check_not_revoked", "parse_crl"]

MAX_CRL: Final = 16 * 1024 * 1024
"""Most bytes of one CRL."""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL that is well-formed; nothing is known yet of its signature. Made by `parse_crl` only.

    `revoked` are the serial numbers on it; of a delta CRL not those that it takes off the complete one. `scope` is its
    issuing distribution point, `has_unknown_critical` whether it holds what may not be ignored or is a delta.
    `verdicts` is what was found of its signature, by the key of an issuer: a long list takes a while, and may be asked
    at every sign-in.
    """

    crl: x509.CertificateRevocationList
    issuer: x509.Name
    revoked: frozenset[int]
    this_update: datetime
    next_update: datetime | None
    scope: x509.IssuingDistributionPoint | None
    has_unknown_critical: bool
    is_strong: bool
    verdicts: dict[bytes, bool] = field(default_factory=dict, repr=False, compare=False)


def parse_crl(data: bytes) -> RevocationList:
    """Parse a CRL, DER or PEM. Raises `MalformedError` with `METADATA_MALFORMED`."""
    if len(data) > MAX_CRL:
        raise _malformed(f"It has more than {MAX_CRL} bytes.")
    is_pem = data.startswith(b"-----BEGIN")
    try:
        crl = x509.load_pem_x509_crl(data) if is_pem else x509.load_der_x509_crl(data)
        extensions = list(crl.extensions)
        is_delta = any(isinstance(e.value, x509.DeltaCRLIndicator) for e in extensions)
        return RevocationList(
            crl,
            crl.issuer,
            frozenset(_serial_numbers(crl, is_delta=is_delta)),
            crl.last_update_utc,
            crl.next_update_utc,
            next((e.value for e in extensions if isinstance(e.value, x509.IssuingDistributionPoint)), None),
            is_delta or any(e.critical and not isinstance(e.value, x509.IssuingDistributionPoint) for e in extensions),
            isinstance(crl.signature_hash_algorithm, _STRONG_HASHES),
        )
    except UNREADABLE:
        raise _malformed("It is neither DER nor PEM of a CRL.") from None


def _serial_numbers(crl: x509.CertificateRevocationList, *, is_delta: bool) -> Iterator[int]:
    """The serial numbers on a list. Reasons are read of a delta only: other lists take nothing off (section 5.3.1)."""
    for entry in crl:
        if not is_delta or _REMOVED not in {extension.value for extension in entry.extensions}:
            yield entry.serial_number


def check_not_revoked(
    path: CertificationPath, lists: Sequence[RevocationList], *, instant: datetime, required: bool
) -> None:
    """Check every certificate of a valid path against the CRLs of its issuer; the anchor is trusted as it is.

    Of the CRLs that name the issuer, one has to be usable: signed by it with SHA-2, covering the certificate, without
    critical extensions that are not understood, and current at `instant`. Without any CRL of an issuer the path
    passes, unless they are `required`. A certificate on any list that is authentic and not indirect is revoked, also
    if that list is out of date, a delta, or does not cover it.

    Raises `EvidenceError` with `METADATA_UNTRUSTED`.
    """
    certificates = [c for c in path.certificates if c != path.anchor.certificate]
    for certificate, issuer in pairwise([*certificates, path.anchor.certificate]):
        named = [candidate for candidate in lists if candidate.issuer == issuer.subject]
        if not named and not required:
            continue
        authentic = [candidate for candidate in named if _signed(candidate, issuer)]
        if any(_revokes(candidate, certificate) for candidate in authentic):
            raise _untrusted("revoked", "A certificate behind the metadata BLOB was revoked.")
        if not any(_covers(candidate, certificate) and _is_current(candidate, instant) for candidate in authentic):
            raise _untrusted("crl_missing", "There is no usable CRL for a certificate behind the metadata BLOB.")


def _signed(candidate: RevocationList, issuer: x509.Certificate) -> bool:
    """Whether the issuer signed the CRL, with a key that may (RFC 5280 section 6.3.3 (f) and (g))."""
    usage = next((e.value for e in issuer.extensions if isinstance(e.value, x509.KeyUsage)), None)
    if usage is not None and not usage.crl_sign:
        return False
    bits = public_key_bits(issuer)
    if bits not in candidate.verdicts:
        key = cast(CertificateIssuerPublicKeyTypes, issuer.public_key())  # it signed a certificate of the path
        candidate.verdicts[bits] = candidate.is_strong and candidate.crl.is_signature_valid(key)
    return candidate.verdicts[bits]


def _revokes(candidate: RevocationList, certificate: x509.Certificate) -> bool:
    """Whether the certificate is on the list. An indirect one names certificates of other issuers, too."""
    is_indirect = candidate.scope is not None and candidate.scope.indirect_crl
    return not is_indirect and certificate.serial_number in candidate.revoked


def _covers(candidate: RevocationList, certificate: x509.Certificate) -> bool:
    """Whether the absence of the certificate from the list means anything (RFC 5280 sections 5.2.5 and 6.3.3 (b))."""
    if candidate.has_unknown_critical:
        return False
    scope = candidate.scope
    if scope is None:
        return True
    if scope.indirect_crl or scope.only_some_reasons or scope.only_contains_attribute_certs or scope.relative_name:
        return False
    is_ca = any(isinstance(e.value, x509.BasicConstraints) and e.value.ca for e in certificate.extensions)
    if scope.only_contains_user_certs if is_ca else scope.only_contains_ca_certs:
        return False
    return scope.full_name is None or bool(set(scope.full_name) & _distribution_points(certificate))


def _distribution_points(certificate: x509.Certificate) -> set[x509.GeneralName]:
    points = [e.value for e in certificate.extensions if isinstance(e.value, x509.CRLDistributionPoints)]
    return {name for value in points for point in value for name in point.full_name or ()}


def _is_current(candidate: RevocationList, instant: datetime) -> bool:
    return candidate.next_update is not None and candidate.this_update <= instant <= candidate.next_update


_REMOVED = x509.CRLReason(x509.ReasonFlags.remove_from_crl)
_STRONG_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def _malformed(why: str) -> MalformedError:
    return MalformedError(
        Reason.METADATA_MALFORMED,
        f"A CRL for the metadata BLOB is malformed. {why}",
        fix="Download the CRL again from the address that the certificate names.",
    )


def _untrusted(check: str, message: str) -> EvidenceError:
    return EvidenceError(
        Reason.METADATA_UNTRUSTED,
        message,
        fix="Download the CRLs that the certificates name; if one was revoked, wait for a new BLOB.",
        metadata={"check": check},
    )
