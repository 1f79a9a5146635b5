"""Certificates, and the paths from them to a trust anchor (RFC 5280 section 6.1).

One implementation validates every path, link by link. `cryptography` parses the certificates and verifies each
signature together with the names of the link, byte for byte (`verify_directly_issued_by`). The rules around that
are here and in `keyvouch.attestation.certificate_profile`. They are not left to `cryptography.x509.verification`,
which is made for web servers: it refuses every critical certificatePolicies (TPMs of Microsoft, Infineon, ST and
Intel), dates in GeneralizedTime before 2050 (Feitian) and Ed25519; it looks for a path of its
own among the certificates, so that surplus ones pass. Two implementations would have to agree forever.

Why a valid path proves something, by induction from the anchor down:

* The anchor is trusted because somebody pinned it, and for no longer than it says itself: a maker guards a key for
  the lifetime of its certificate. Of an anchor, its own signature proves nothing and is not asked. It may issue only
  as any other CA may; version 1 has no basicConstraints and issues nothing. As a pinned leaf it may be anything.
* Each further certificate names the one above it and is signed by its key, by an algorithm that still binds. The one
  above is a CA by version 3 and basicConstraints, may sign certificates, allows a path of this length, and serves
  what the leaf claims to be for. So nobody who holds only the key of a leaf can lengthen a path.
* Everything that is critical is understood or refused. Name constraints and required explicit policies are always
  refused: attestation has neither. Without a required policy, certificate policies cannot make a path invalid.
* Every certificate is valid at the instant, and every key is strong and without the ROCA weakness.
* Signatures are verified from the anchor down, all else before: no key of a stranger is ever computed with.

What is not here: revocation (FIDO metadata says which models are compromised), what a format wants of its leaf, which
anchors may vouch for what (`keyvouch.attestation.trust`). Key identifiers are not judged, because makers break their
rules and they play no part in the argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from keyvouch.attestation.certificate_profile import (
    UNREADABLE,
    CertificateProfile,
    PathRule,
    check_signature_algorithm,
    read_profile,
    refusal,
)
from keyvouch.attestation.der import SEQUENCE, DerReader, explicit
from keyvouch.attestation.subject_key import key_identifier, public_key_bits
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError

__all__ = ["CertificationPath", "find_path", "key_identifier", "parse_certificate", "public_key_bits", "validate_path"]

MAX_CERTIFICATES = 8
"""Longest list of certificates that is looked at. Real ones have at most five."""

FEW_ANCHORS = 4
"""How many anchors are tried one after the other; of more, those with the right name are looked for first."""

MAX_CANDIDATES = 64
"""How many orders of a pool of certificates `find_path` looks at."""


@dataclass(frozen=True, slots=True)
class CertificationPath:
    """A valid path: certificates, leaf first, the anchor not among them unless it is the leaf, and that anchor."""

    certificates: tuple[x509.Certificate, ...]
    anchor: TrustAnchor


def parse_certificate(der: bytes) -> x509.Certificate:
    """Parse one DER certificate, with nothing after it. Raises `MalformedError` with `ATTESTATION_STATEMENT`.

    The signature is a whole number of bytes: how many bits of the last one are unused is not signed, and would give
    one certificate several encodings. The serial number is positive (RFC 5280 section 4.1.2.2): the library only warns
    of others, for now. Extensions and key are read later, where a path is validated.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        is_sound = certificate.serial_number > 0
    except UNREADABLE:
        raise _malformed() from None
    if not is_sound or der[-len(certificate.signature) - 1]:
        raise _malformed()
    return certificate


def _malformed() -> MalformedError:
    return MalformedError(
        Reason.ATTESTATION_STATEMENT,
        "A certificate of the attestation is not well-formed.",
        fix="Send certificates in DER as their maker issued them.",
    )


def validate_path(
    certificates: Sequence[x509.Certificate], *, anchors: Iterable[TrustAnchor], instant: datetime
) -> CertificationPath:
    """Validate the path that `certificates` are: the leaf, its issuer, the issuer of that, and so on; none else.

    The last one is issued by an anchor, or is itself one (then also the only one: a pinned leaf), or is another
    edition of one: issued by it to itself, for the same name and key. Makers renew their roots, and devices keep what
    they were made with; such an edition says nothing that the anchor does not say, so its dates do not matter.

    Checks, in this order:

     1. there are 1 to 8 certificates, none of them twice
     2. each can be read, its key is strong, its critical extensions are understood (4.2, 6.1.4 (o), 6.1.5 (f))
     3. for one of the anchors, the first that will do:
         a. the anchor passes 2
         b. `instant`, which is aware, is in the period of validity of each, the anchor included (6.1.3 (a) 2)
         c. each that issues is a CA, may sign certificates, allows so long a path (6.1.4 (k) to (n)), and has no
            extKeyUsage that leaves out what the leaf claims
         d. the last certificate is that anchor, or names it and is signed by it (6.1.3 (a) 1 and 4)
     4. each certificate names the next and is signed by it, the last ones first (6.1.3 (a) 1 and 4)

    Raises `EvidenceError` with `WEAK_KEY_ROCA`, or with `TRUST_CHAIN` and the `PathRule` in its metadata as `detail`;
    if no anchor will do, that of the first one with the right name.
    """
    _check_instant(instant)
    if not 1 <= len(certificates) <= MAX_CERTIFICATES:
        raise refusal(PathRule.LENGTH, f"An attestation path has 1 to {MAX_CERTIFICATES} certificates.")
    if len(set(certificates)) != len(certificates):
        raise refusal(PathRule.DOUBLED, "A certificate is in the attestation path twice.")
    profiles = [read_profile(certificate) for certificate in certificates]
    profiles[0].check_subject()
    trusted = list(anchors)
    if len(trusted) > FEW_ANCHORS:
        trusted = _named_by(certificates[-1], ((anchor, _name_bytes(anchor.certificate)[1]) for anchor in trusted))
    path = _under_an_anchor(profiles, trusted, instant)
    for certificate, issuer in reversed(list(pairwise(certificates))):
        _check_issued_by(certificate, issuer)
    return path


def find_path(
    leaf: x509.Certificate,
    intermediates: Iterable[x509.Certificate],
    *,
    anchors: Sequence[TrustAnchor],
    instant: datetime,
    candidates: int = MAX_CANDIDATES,
) -> CertificationPath:
    """Find a valid path from `leaf` to one of `anchors` through a pool of certificates that may hold anything.

    Candidates follow the names, short ones first, that many at most. `validate_path` judges each under the anchors
    that its last certificate names or is; what it says of the first one that comes to an anchor is raised if none is
    valid. Key identifiers are no help: a signature says more.
    """
    told = _no_anchor()
    tops = [(anchor, _name_bytes(anchor.certificate)[1]) for anchor in anchors]
    for candidate in islice(_candidates(leaf, intermediates), candidates):
        try:
            return validate_path(candidate, anchors=_named_by(candidate[-1], tops), instant=instant)
        except EvidenceError as error:
            told = error if told.metadata.get("detail") == PathRule.ANCHOR else told
    raise told


def _named_by(last: x509.Certificate, tops: Iterable[tuple[TrustAnchor, bytes]]) -> list[TrustAnchor]:
    """The anchors that a certificate names as its issuer, or is. Each comes with its subject."""
    above = _name_bytes(last)[0]
    return [anchor for anchor, name in tops if name == above or anchor.certificate == last]


def _candidates(
    leaf: x509.Certificate, intermediates: Iterable[x509.Certificate]
) -> Iterator[tuple[x509.Certificate, ...]]:
    """Yield lists in which each certificate names the next one, none twice; none is longer than a path may be.

    Names are read once, and as bytes: a path in which they differ in any is not valid.
    """
    pool: dict[bytes, list[x509.Certificate]] = {}
    above = {leaf: _name_bytes(leaf)[0]}
    for one in dict.fromkeys(intermediates):
        above[one], subject = _name_bytes(one)
        pool.setdefault(subject, []).append(one)
    waiting: deque[tuple[x509.Certificate, ...]] = deque([(leaf,)])
    while waiting:
        candidate = waiting.popleft()
        yield candidate
        if len(candidate) < MAX_CERTIFICATES:
            issuers = (issuer for issuer in pool.get(above[candidate[-1]], ()) if issuer not in candidate)
            waiting.extend((*candidate, issuer) for issuer in issuers)


def _name_bytes(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """Issuer and subject as they stand in the certificate, without reading what they say."""
    fields = DerReader(certificate.tbs_certificate_bytes).enter(SEQUENCE)
    tag, _ = fields.any()
    for _ in range(1 + (tag == _VERSION)):  # serial number and signature come before the issuer
        fields.any()
    issuer = fields.read(SEQUENCE)
    fields.any()
    return issuer, fields.read(SEQUENCE)


def _names(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether one certificate names the other as its issuer. A lookup; the verification compares byte for byte."""
    try:
        return certificate.issuer == issuer.subject
    except UNREADABLE:
        return False


def _check_instant(instant: datetime) -> None:
    if instant.tzinfo is None:
        raise UsageError("The instant of validation has no time zone.", fix="Pass an aware datetime.")


def _no_anchor() -> EvidenceError:
    return refusal(PathRule.ANCHOR, "The attestation path ends in no anchor that may vouch for it.")


def _under_an_anchor(
    path: list[CertificateProfile], anchors: Iterable[TrustAnchor], instant: datetime
) -> CertificationPath:
    """Return the path under the first anchor that will do. Of the others only those with the right name matter."""
    last, told = path[-1].certificate, None
    for anchor in anchors:
        try:
            return _under(anchor, path, instant)
        except EvidenceError as error:
            if told is None and (last == anchor.certificate or _names(last, anchor.certificate)):
                told = error
    raise told or _no_anchor()


def _under(anchor: TrustAnchor, path: list[CertificateProfile], instant: datetime) -> CertificationPath:
    """Check the path under this anchor: everything but the links among its own certificates."""
    last, top = path[-1], read_profile(anchor.certificate)
    is_anchor = last.certificate == anchor.certificate
    is_surplus = is_anchor or (len(path) > 1 and _is_edition(last, top))
    below = path[:-1] if is_surplus else path
    _check_rules(below, top, instant)
    if not is_anchor:
        _check_issued_by(last.certificate, anchor.certificate)
    return CertificationPath(tuple(profile.certificate for profile in below or path), anchor)


def _is_edition(last: CertificateProfile, anchor: CertificateProfile) -> bool:
    """Whether a certificate that names the anchor as its issuer is the anchor under other dates."""
    return last.certificate.public_key() == anchor.certificate.public_key() and last.is_self_issued


def _check_rules(below: list[CertificateProfile], anchor: CertificateProfile, instant: datetime) -> None:
    """Check validity periods, authority and purposes. With nothing below, the anchor is a pinned leaf."""
    for profile in (*below, anchor):
        profile.check_validity(instant)
    if not below:
        return
    leaf, *issuers = (*below, anchor)
    for position, issuer in enumerate(issuers):
        issuer.check_may_issue(issuers[:position])
        issuer.check_may_vouch_for(leaf)


def _check_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Check the names and the signature of one link. What is wrong with it is looked for only if something is."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        if not _names(certificate, issuer):
            raise refusal(
                PathRule.ISSUER_NAME, "A certificate of the attestation path does not name the next one."
            ) from None
        check_signature_algorithm(certificate)
        raise refusal(
            PathRule.SIGNATURE, "A certificate of the attestation path is not signed by the one it names."
        ) from None
    check_signature_algorithm(certificate)


_VERSION = explicit(0)
