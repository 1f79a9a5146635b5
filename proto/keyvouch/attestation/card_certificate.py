"""Certificates that an organisation issued for its users' keys: company badges, PIV cards, tokens.

Such a certificate says one thing: this key belongs to that person. It is not an attestation. It says nothing of where
the key lives, who generated it or what asks for a PIN, unless the administrator of the server has configured that the
organisation certifies such keys only (`CardAuthority.protection`, `.verification`); then that is the organisation's
promise and stands in the assurance under its name, as `certified`, below `attested`.

    parse    bytes to certificates            here
    verify   certificates to a verified one   `verify_card_certificate`
    decide   is that enough                   `keyvouch.assurance` and the server's policy

Proof of possession is not here either: a certificate is public. The registration that it comes with has to be signed by
the key, and so is each sign-in.

Names are matched exactly, after Unicode NFC and case-folding. There is no guessing: no domain is added, cut off or
compared by its end, and a certificate with several names of the kind that is looked at is nobody's.

What is not here: path validation (`keyvouch.attestation.certificates`, which refuses name constraints and required
explicit policies), policy mappings (a policy counts by its own identifier), OCSP, and where authorities are kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, unique
from typing import Final, TypeVar

from cryptography import x509
from cryptography.x509.oid import CertificatePoliciesOID, NameOID, ObjectIdentifier

from keyvouch.assurance import Assurance, Protection, Provenance, Verification
from keyvouch.attestation.certificate_profile import PathRule, read_profile
from keyvouch.attestation.certificates import MAX_CERTIFICATES, CertificationPath, find_path, parse_certificate
from keyvouch.attestation.der import DerError, DerReader, Tag
from keyvouch.attestation.metadata_revocation import RevocationList, check_not_revoked
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, MalformedError, Reason, UsageError

__all__ = ["CardAuthority", "NameMatch", "VerifiedCardCertificate", "verify_card_certificate"]

MAX_BYTES: Final = 32 * 1024
"""Most bytes of certificates, all together."""

MAX_NAME: Final = 256
"""Longest name, in characters, that is looked at: normalising takes a time that grows with the square of the length."""

CARD_AUTHENTICATION: Final = ObjectIdentifier("2.16.840.1.101.3.6.8")
"""id-PIV-cardAuth (FIPS 201-3 section 4.2.2.1): a key that proves the card and is used without a PIN."""

USER_PRINCIPAL_NAME: Final = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
"""The UPN of Microsoft, an otherName with one UTF8String."""


@unique
class NameMatch(Enum):
    """Which name in a certificate is the login name of its user."""

    UPN = "upn"
    """subjectAltName, otherName 1.3.6.1.4.1.311.20.2.3."""
    EMAIL = "email"
    """subjectAltName, rfc822Name."""
    URI = "uri"
    """subjectAltName, uniformResourceIdentifier."""
    SUBJECT_CN = "subject_cn"
    """The common name of the subject."""


@dataclass(frozen=True, slots=True)
class CardAuthority:
    """An organisation's authority, and what its certificates have to say. `name` is what policy and assurance call it.

    `protection` and `verification` are what the organisation promises of every key that it certifies; software, if it
    promises nothing. With `revocation`, each certificate below an anchor needs a current list that does not revoke it.
    Of `purposes` (extKeyUsage) and `policies` (certificatePolicies) a certificate must have all.
    """

    name: str
    anchors: tuple[TrustAnchor, ...]
    match: NameMatch
    protection: Protection = Protection.SOFTWARE
    verification: Verification = Verification.SOFTWARE_GATED
    revocation: tuple[RevocationList, ...] = ()
    purposes: frozenset[ObjectIdentifier] = frozenset()
    policies: frozenset[ObjectIdentifier] = frozenset()

    def __post_init__(self) -> None:
        if not self.name or not self.anchors:
            raise UsageError("A card authority has a name and certificates.", fix="Name it as policies shall call it.")

    @property
    def assurance(self) -> Assurance:
        """What a key proves that this authority certified, where nothing else vouches for it."""
        return Assurance(self.protection, self.verification, Provenance.CERTIFIED, self.name)


@dataclass(frozen=True, slots=True)
class VerifiedCardCertificate:
    """An organisation's certificate says that a key is its user's. Made by `verify_card_certificate` only.

    `path` is from the key's certificate to the one below the anchor; `name` is the user's, as it is written there.
    """

    authority: CardAuthority
    path: tuple[x509.Certificate, ...]
    name: str


def verify_card_certificate(
    certificates: Sequence[bytes],
    *,
    public_key: CoseKey,
    username: str,
    authorities: Sequence[CardAuthority],
    instant: datetime,
) -> VerifiedCardCertificate:
    """Verify that one of `authorities` certified `public_key` as the key of the user with the login name `username`.

    `certificates` are DER: that of the key first, then in any order what belongs between it and the authority; what
    does not belong there is left aside. `instant` is aware.

    Checks, in this order; from 2 on for one authority after the other, until one certificate will do:

     1. there are 1 to 8 certificates, of 32 KiB together, each of them well-formed
     2. a valid path leads from the first one to an anchor of the authority at `instant` (RFC 5280 section 6.1), in
        which every key is strong and without the ROCA weakness
     3. where the authority has revocation lists, none of the path is revoked, and each has a current list
     4. the first one is for `public_key`
     5. it is not that of a certification authority
     6. its keyUsage is there and has digitalSignature
     7. its purpose is not PIV card authentication, whose keys are used without a PIN
     8. it has every purpose that is required; anyExtendedKeyUsage is none of them
     9. it has every policy that is required, and so has each certificate above it, where anyPolicy counts too, unless
        anyPolicy is inhibited anywhere
    10. it has exactly one name of the kind that `match` says, which can be read
    11. that name is `username`, after NFC and case-folding

    Raises `MalformedError` with `CARD_CERTIFICATE` (1), `EvidenceError` with `CARD_CERTIFICATE` and `detail` in its
    metadata (2 to 9), `WEAK_KEY_ROCA` (2) or `CARD_USER` (10, 11): of several authorities what the first one says that
    knows the certificate.
    """
    if instant.tzinfo is None:
        raise UsageError("The instant of verification has no time zone.", fix="Pass an aware datetime.")
    leaf, *others = _parse(certificates)
    told = _untrusted(PathRule.ANCHOR)
    for authority in authorities:
        try:
            path = _path(leaf, others, authority, instant)
            _check_certificate(leaf, path, authority, public_key)
            name = _check_user(leaf, authority.match, username)
        except EvidenceError as error:
            told = error if told.metadata.get("detail") == PathRule.ANCHOR else told
        else:
            return VerifiedCardCertificate(authority, path.certificates, name)
    raise told


def _parse(certificates: Sequence[bytes]) -> list[x509.Certificate]:
    if not 1 <= len(certificates) <= MAX_CERTIFICATES or sum(map(len, certificates)) > MAX_BYTES:
        raise _malformed(f"Send 1 to {MAX_CERTIFICATES} certificates, with at most {MAX_BYTES} bytes in all.")
    try:
        return [parse_certificate(one) for one in certificates]
    except MalformedError:
        raise _malformed("Send certificates in DER as they were issued.") from None


# The path


def _path(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], authority: CardAuthority, instant: datetime
) -> CertificationPath:
    try:
        path = find_path(leaf, others, anchors=authority.anchors, instant=instant)
    except EvidenceError as error:
        if error.reason is not Reason.TRUST_CHAIN:
            raise
        raise _untrusted(PathRule(error.metadata["detail"])) from None
    try:
        check_not_revoked(path, authority.revocation, instant=instant, required=bool(authority.revocation))
    except EvidenceError as error:
        raise _revoked(error.metadata["check"]) from None
    return path


_PATH_SAYS: Final = {
    PathRule.ANCHOR: "It leads to no authority that this server believes for this user's tenant.",
    PathRule.VALIDITY: "It, or a certificate above it, has expired or is not valid yet.",
}


def _untrusted(rule: PathRule) -> EvidenceError:
    why = _PATH_SAYS.get(rule, "It, or a certificate above it, breaks a rule of certification paths.")
    return _refuse(why, rule.value)


def _revoked(check: str) -> EvidenceError:
    if check == "revoked":
        return _refuse("It, or a certificate above it, was revoked.", check)
    return _refuse("No current revocation list says that it still counts; the administrator can put one there.", check)


# The certificate of the key


def _check_certificate(
    leaf: x509.Certificate, path: CertificationPath, authority: CardAuthority, public_key: CoseKey
) -> None:
    if leaf.public_key() != public_key.key_object():
        raise _refuse("It is not one of the key that is registered.", "other_key")
    profile = read_profile(leaf)
    if profile.is_ca:
        raise _refuse("It is that of a certification authority.", "authority")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise _refuse("It does not say that its key is for digital signatures.", "key_usage")
    purposes = profile.purposes or frozenset()
    if CARD_AUTHENTICATION in purposes:
        raise _refuse("It is for a key that is used without a PIN.", "card_authentication")
    if not authority.purposes <= purposes:
        raise _refuse("It lacks a purpose that the authority requires.", "purpose")
    _check_policies(path, authority.policies)


def _check_policies(path: CertificationPath, required: frozenset[ObjectIdentifier]) -> None:
    """Check the policies down the path, without mappings (RFC 5280 section 6.1.3 (d)); the anchor may have any."""
    leaf, *above = path.certificates
    whole = (*path.certificates, path.anchor.certificate)
    is_inhibited = any(_extension(one, x509.InhibitAnyPolicy) is not None for one in whole)
    for certificate in (leaf, *above):
        said = _policies(certificate)
        takes_any = certificate is not leaf and not is_inhibited and CertificatePoliciesOID.ANY_POLICY in said
        if not required <= said and not takes_any:
            raise _refuse("It, or a certificate above it, lacks a policy that the authority requires.", "policy")


def _policies(certificate: x509.Certificate) -> frozenset[ObjectIdentifier]:
    stated = _extension(certificate, x509.CertificatePolicies)
    return frozenset(policy.policy_identifier for policy in stated or ())


# The user


def _check_user(leaf: x509.Certificate, match: NameMatch, username: str) -> str:
    names = _names(leaf, match)
    if len(names) != 1:
        counted = "several names" if names else "no name"
        raise _not_the_user(f"It has {counted} of the kind by which this authority knows users.", match)
    found, wanted = _canonical(names[0]), _canonical(username)
    if not found or found != wanted:
        raise _not_the_user("It names somebody else.", match)
    return names[0]


def _names(leaf: x509.Certificate, match: NameMatch) -> list[str]:
    if match is NameMatch.SUBJECT_CN:
        return [str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    names = _extension(leaf, x509.SubjectAlternativeName)
    if names is None:
        return []
    if match is NameMatch.EMAIL:
        return names.get_values_for_type(x509.RFC822Name)
    if match is NameMatch.URI:
        return names.get_values_for_type(x509.UniformResourceIdentifier)
    others = names.get_values_for_type(x509.OtherName)
    return [_utf8(other.value) for other in others if other.type_id == USER_PRINCIPAL_NAME]


def _utf8(encoded: bytes) -> str:
    reader = DerReader(encoded)
    try:
        text = reader.read(_UTF8_STRING).decode("utf-8")
        reader.end()
    except (DerError, UnicodeDecodeError):
        raise _not_the_user("Its name cannot be read.", NameMatch.UPN) from None
    return text


def _canonical(name: str) -> str:
    """NFC, case-folded, NFC again; nothing for what is too long to be anybody's."""
    if len(name) > MAX_NAME:
        return ""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


_UTF8_STRING: Final = Tag(12)

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    return next((found.value for found in certificate.extensions if isinstance(found.value, kind)), None)


# Errors


def _malformed(fix: str) -> MalformedError:
    return MalformedError(Reason.CARD_CERTIFICATE, "The certificates of the card cannot be read.", fix=fix)


def _refuse(why: str, detail: str) -> EvidenceError:
    return EvidenceError(
        Reason.CARD_CERTIFICATE,
        f"The certificate of this key is not believed. {why}",
        fix="Use a card with a current certificate of your organisation, or ask the administrator which one it takes.",
        metadata={"detail": detail},
    )


def _not_the_user(why: str, match: NameMatch) -> EvidenceError:
    return EvidenceError(
        Reason.CARD_USER,
        f"The certificate of this key is not this user's. {why}",
        fix="Use your own card. If it is yours, the administrator can say by which name cards belong to users.",
        metadata={"match": match.value},
    )
