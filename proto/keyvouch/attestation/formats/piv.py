"""The `piv` attestation statement format: a key in a slot of a PIV smartcard. Our own, for Yubico-style attestation.

    piv = { alg: COSEAlgorithmIdentifier, sig: bytes, x5c: [ slot: bytes, card: bytes, *(issuer: bytes) ] }

`slot` is what the card answers to ATTEST for the slot, `card` the certificate in slot F9 of its attestation key, and
`issuer` whatever stands between that and the maker's root. A card makes `slot` without a challenge, so it would be as
good in any other ceremony: `sig` is made by the credential key itself, over authenticator data and client data hash.

Source of the extensions: Yubico, "PIV attestation", arc 1.3.6.1.4.1.41482.3, and NIST SP 800-73-4 part 1 section 5.1
for the slots.

What is not here: cards whose certificate in slot F9 has no basic constraints (some YubiKey 4 and 5, up to firmware
5.2). RFC 5280 section 6.1.4 (k) makes no authority of them, and they get no exception: `TRUST_CHAIN`. Such a card is
registered without attestation. Nor are there PIN policies that take a fingerprint instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation.der import DerError, DerReader
from keyvouch.attestation.evidence import AttestationEvidence, PivFacts
from keyvouch.attestation.formats.certified import (
    bad_certificate,
    bad_statement,
    check_members,
    check_not_authority,
    check_same_key,
    extension_value,
    read_algorithm,
    read_bytes,
    read_certificates,
    subject_key,
    trusted_path,
    verify_by,
)
from keyvouch.attestation.trust import TrustStore
from keyvouch.webauthn import AttestationObject

__all__ = ["read_facts", "verify"]

_ARC = "1.3.6.1.4.1.41482.3"
_FIRMWARE = x509.ObjectIdentifier(f"{_ARC}.3")
_SERIAL = x509.ObjectIdentifier(f"{_ARC}.7")
_POLICIES = x509.ObjectIdentifier(f"{_ARC}.8")
_FORM_FACTOR = x509.ObjectIdentifier(f"{_ARC}.9")

_PIN: Mapping[int, str] = {1: "never", 2: "once", 3: "always"}
_TOUCH: Mapping[int, str] = {1: "never", 2: "always", 3: "cached"}

_SUBJECT = re.compile(r"YubiKey PIV Attestation (8[2-9a-f]|9[0-5acde])")
"""9a authentication, 9c signature, 9d key management, 9e card authentication, 82 to 95 retired key management."""


def verify(
    attested: AttestationObject,
    *,
    client_data_hash: bytes,
    anchors: TrustStore,
    instant: datetime,
) -> AttestationEvidence:
    """Verify a PIV statement.

    Checks, in this order:

     1. the statement has exactly alg, sig and x5c, of the right types
     2. alg is that of the credential public key
     3. sig verifies with that key over authenticator data and client data hash
     4. the certificates are a valid path to an anchor for this format, and no key in the path is distrusted. The
        AAGUID plays no part: no card states one
     5. the first certificate is one of the credential public key
     6. it is not that of an authority, and its subject names a slot that holds keys of users
     7. it states the firmware and the PIN and touch policies, and where it states serial number and form factor, in
        their right forms

    Raises `MalformedError` or `EvidenceError` with `ATTESTATION_STATEMENT` (1 to 3, 5), `TRUST_CHAIN`,
    `WEAK_KEY_ROCA` or `AUTHENTICATOR_STATUS` (4), `ATTESTATION_CERTIFICATE` (6, 7).
    """
    statement, credential = attested.statement, attested.attested.public_key
    check_members(statement, ("alg", "sig", "x5c"))
    algorithm, signature = read_algorithm(statement), read_bytes(statement, "sig")
    certificates = read_certificates(statement)
    if algorithm is not credential.algorithm:
        raise bad_statement("Its alg is not that of the credential.")
    verify_by(credential, signature=signature, message=attested.authenticator_data + client_data_hash)
    path = trusted_path(attested, certificates, anchors=anchors, instant=instant, aaguid=b"")
    leaf = certificates[0]
    check_same_key(subject_key(leaf), credential)
    facts = read_facts(leaf)
    return AttestationEvidence(
        "piv",
        Provenance.ATTESTED,
        path.anchor.name,
        Protection.SMARTCARD,
        Verification.NONE if facts.pin_policy == "never" else Verification.HARDWARE_GATED,
        path.certificates,
        facts,
    )


def read_facts(leaf: x509.Certificate) -> PivFacts:
    """Read what the certificate of a slot states: checks 6 and 7 of `verify`, which has to come before."""
    check_not_authority(leaf)
    slot = _slot(leaf)
    firmware = _bytes(leaf, _FIRMWARE, 3, "firmware version")
    policies = _bytes(leaf, _POLICIES, 2, "PIN and touch policies")
    if firmware is None or policies is None:
        raise bad_certificate("It does not state the firmware version and the PIN and touch policies.")
    pin, touch = _PIN.get(policies[0]), _TOUCH.get(policies[1])
    if pin is None or touch is None:
        raise bad_certificate("Its PIN or touch policy is unknown.")
    form_factor = _bytes(leaf, _FORM_FACTOR, 1, "form factor")
    return PivFacts(
        slot=slot,
        firmware=".".join(map(str, firmware)),
        serial=_serial(leaf),
        pin_policy=pin,
        touch_policy=touch,
        form_factor=None if form_factor is None else form_factor[0],
    )


def _slot(leaf: x509.Certificate) -> str:
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    found = _SUBJECT.fullmatch("\n".join(str(attribute.value) for attribute in names))  # no match unless there is one
    if found is None:
        raise bad_certificate("Its subject does not name a slot for keys of users.")
    return found[1]


def _bytes(leaf: x509.Certificate, oid: x509.ObjectIdentifier, length: int, what: str) -> bytes | None:
    """Read an extension that holds bytes without any DER around them."""
    value = extension_value(leaf, oid)
    if value is not None and len(value) != length:
        raise bad_certificate(f"Its {what} has not {length} bytes.")
    return value


def _serial(leaf: x509.Certificate) -> int | None:
    value = extension_value(leaf, _SERIAL)
    if value is None:
        return None
    reader = DerReader(value)
    try:
        serial = reader.integer()
        reader.end()
    except DerError:
        raise bad_certificate("Its serial number is not one integer.") from None
    if serial < 0:
        raise bad_certificate("Its serial number is negative.")
    return serial
