"""What path validation has to know of one certificate, read once and judged by itself (RFC 5280 section 4).

That a profile could be read means: names, key and extensions are well-formed, every critical extension is
understood, no constraint is in it that path validation would have to ignore, and its key is strong enough. Whether
it is valid now, may issue, and was issued by anybody is asked later, by `keyvouch.attestation.certificates`.

What is not here: paths, and what the attestation formats want of a leaf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, unique
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, PublicKeyAlgorithmOID, SignatureAlgorithmOID

from keyvouch.errors import EvidenceError, Reason
from keyvouch.roca import check_modulus

__all__ = ["UNREADABLE", "CertificateProfile", "PathRule", "check_signature_algorithm", "read_profile", "refusal"]

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
"""Shortest (NIST SP 800-131A Rev. 2 section 3) and longest RSA modulus that is accepted, in bits."""

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,
)
"""What `cryptography` raises for a certificate it cannot read. It parses lazily, so any property may raise. A
warning is among them for programs that turn warnings into errors."""

Extensions: TypeAlias = Mapping[type[x509.ExtensionType], x509.ExtensionType]


@unique
class PathRule(StrEnum):
    """The rule that a path breaks: `detail` in the metadata of the error."""

    LENGTH = "length"
    DOUBLED = "doubled"
    UNREADABLE = "unreadable"
    CRITICAL_EXTENSION = "critical_extension"
    NAME_CONSTRAINTS = "name_constraints"
    EXPLICIT_POLICY = "explicit_policy"
    WEAK_KEY = "weak_key"
    VALIDITY = "validity"
    NOT_A_CA = "not_a_ca"
    KEY_USAGE = "key_usage"
    PATH_LENGTH = "path_length"
    EXTENDED_KEY_USAGE = "extended_key_usage"
    SIGNATURE_ALGORITHM = "signature_algorithm"
    ISSUER_NAME = "issuer_name"
    SIGNATURE = "signature"
    ANCHOR = "anchor"


def refusal(rule: PathRule, message: str) -> EvidenceError:
    """Return the error for a path that breaks `rule`."""
    return EvidenceError(
        Reason.TRUST_CHAIN,
        message,
        fix="Send exactly the certificates from the key up to its maker's root, and configure that root.",
        metadata={"detail": rule.value},
    )


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """What a certificate says. Made by `read_profile` only.

    `is_ca` needs version 3 and basicConstraints, critical or not. `path_length` is how many certificates that are
    not self-issued may stand between this one and the leaf, None for any number. `signs_certificates` is true
    without keyUsage, too: some makers leave it out. `purposes` are those of extKeyUsage, None without it.
    """

    certificate: x509.Certificate
    is_ca: bool
    path_length: int | None
    signs_certificates: bool
    purposes: frozenset[x509.ObjectIdentifier] | None

    @property
    def is_self_issued(self) -> bool:
        """Whether issuer and subject have one name. Names take time to read, and of most certificates nobody asks."""
        try:
            return self.certificate.subject == self.certificate.issuer
        except UNREADABLE:
            raise _unreadable() from None

    def check_subject(self) -> None:
        """Check that the subject can be read, so that whoever asks for that of a leaf need not fear."""
        try:
            self.certificate.subject  # noqa: B018
        except UNREADABLE:
            raise _unreadable() from None

    def check_validity(self, instant: datetime) -> None:
        """Check that `instant` is in the period of validity, both ends included (section 4.1.2.5)."""
        try:
            begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        except UNREADABLE:  # GeneralizedTime has a year 0, and datetime has none
            raise _unreadable() from None
        if instant < begin:
            raise refusal(PathRule.VALIDITY, "A certificate of the attestation path is not valid yet.")
        if instant > end:
            raise refusal(PathRule.VALIDITY, "A certificate of the attestation path has expired.")

    def check_may_issue(self, between: Sequence[CertificateProfile]) -> None:
        """Check that it may issue, with the CAs `between` it and the leaf (section 6.1.4 (k) to (n))."""
        if not self.is_ca:
            raise refusal(PathRule.NOT_A_CA, "A certificate of the attestation path was issued by one that is no CA.")
        if not self.signs_certificates:
            raise refusal(PathRule.KEY_USAGE, "The key of a CA in the attestation path may not sign certificates.")
        if self.path_length is not None and _counted(between) > self.path_length:
            raise refusal(PathRule.PATH_LENGTH, "The attestation path is longer than one of its CAs allows.")

    def check_may_vouch_for(self, leaf: CertificateProfile) -> None:
        """Check that the purposes a CA is limited to, if any, include those that the leaf claims.

        RFC 5280 gives extKeyUsage of a CA no meaning. CAs do: the one of endorsement keys vouches for nothing else.
        """
        if (
            self.purposes is None
            or leaf.purposes is None
            or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in self.purposes
        ):
            return
        if not leaf.purposes <= self.purposes:
            raise refusal(PathRule.EXTENDED_KEY_USAGE, "The leaf claims a purpose that one of its CAs does not serve.")


def _counted(between: Sequence[CertificateProfile]) -> int:
    """How many certificates a path length constraint counts: those that are not self-issued (section 4.2.1.9)."""
    return sum(not profile.is_self_issued for profile in between)


def read_profile(certificate: x509.Certificate) -> CertificateProfile:
    """Read a certificate and judge what can be judged of it alone.

    Raises `EvidenceError` with `TRUST_CHAIN`, or with `WEAK_KEY_ROCA` for a key with that weakness.
    """
    try:
        extensions = certificate.extensions
        _check_key_algorithm(certificate.public_key_algorithm_oid)
        key = certificate.public_key()
    except UNREADABLE:
        raise _unreadable() from None
    _check_key(key)
    known = _understood(extensions)
    constraints, usage = known.get(x509.BasicConstraints), known.get(x509.KeyUsage)
    purposes = known.get(x509.ExtendedKeyUsage)
    is_ca = isinstance(constraints, x509.BasicConstraints) and constraints.ca
    return CertificateProfile(
        certificate,
        is_ca and certificate.version is x509.Version.v3,
        constraints.path_length if isinstance(constraints, x509.BasicConstraints) else None,
        not isinstance(usage, x509.KeyUsage) or usage.key_cert_sign,
        frozenset(purposes) if isinstance(purposes, x509.ExtendedKeyUsage) else None,
    )


def _unreadable() -> EvidenceError:
    return refusal(PathRule.UNREADABLE, "A certificate of the attestation path cannot be read.")


def check_signature_algorithm(certificate: x509.Certificate) -> None:
    """Check that a certificate is signed by ECDSA or RSA with SHA-256, SHA-384 or SHA-512, or by EdDSA.

    Raises `EvidenceError` with `TRUST_CHAIN` for all others: collisions of MD5 and SHA-1 move a signature from one
    certificate to another.
    """
    try:
        algorithm = certificate.signature_algorithm_oid
        is_strong = algorithm in _EDDSA or isinstance(certificate.signature_hash_algorithm, _STRONG_HASHES)
    except UNREADABLE:
        is_strong = False
    if not is_strong:
        raise refusal(
            PathRule.SIGNATURE_ALGORITHM, "A certificate of the attestation path is signed by a weak algorithm."
        )


def _understood(extensions: x509.Extensions) -> Extensions:
    """Return the extensions by their kind; refuse what may not be ignored (sections 4.2 and 6.1.4)."""
    known: dict[type[x509.ExtensionType], x509.ExtensionType] = {}
    for extension in extensions:
        kind = type(extension.value)
        if extension.critical and kind not in _UNDERSTOOD:
            raise refusal(
                PathRule.CRITICAL_EXTENSION, "A critical extension in the attestation path is not understood."
            )
        known[kind] = extension.value
    if x509.NameConstraints in known:
        raise refusal(PathRule.NAME_CONSTRAINTS, "Name constraints in an attestation path are not supported.")
    policy = known.get(x509.PolicyConstraints)
    if isinstance(policy, x509.PolicyConstraints) and policy.require_explicit_policy is not None:
        raise refusal(PathRule.EXPLICIT_POLICY, "Explicit policies in an attestation path are not supported.")
    return known


def _check_key_algorithm(algorithm: x509.ObjectIdentifier) -> None:
    """Refuse kinds of keys that attestation does not use before one is loaded: for a DH key that can take minutes."""
    if algorithm not in _KEY_ALGORITHMS:
        raise _weak_key()


def _check_key(key: object) -> None:
    """Refuse keys that are weak, or so long that computing with them is an attack."""
    match key:
        case rsa.RSAPublicKey():
            is_strong = MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
            if is_strong:
                check_modulus(key.public_numbers().n)
        case ec.EllipticCurvePublicKey():
            is_strong = isinstance(key.curve, _CURVES)
        case _:  # of the other algorithms above
            is_strong = True
    if not is_strong:
        raise _weak_key()


def _weak_key() -> EvidenceError:
    return refusal(PathRule.WEAK_KEY, "A key in the attestation path is too weak or of a kind that is not used.")


_UNDERSTOOD = frozenset(
    {
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
        x509.NameConstraints,
        x509.CertificatePolicies,
        x509.PolicyConstraints,
        x509.InhibitAnyPolicy,
    }
)
_KEY_ALGORITHMS = (
    PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5,
    PublicKeyAlgorithmOID.EC_PUBLIC_KEY,
    PublicKeyAlgorithmOID.ED25519,
    PublicKeyAlgorithmOID.ED448,
)
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_STRONG_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_EDDSA = (SignatureAlgorithmOID.ED25519, SignatureAlgorithmOID.ED448)
