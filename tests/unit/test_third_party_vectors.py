"""Every registration and assertion that six other WebAuthn libraries recorded, each with its exact outcome.

`attested`, `self` and `unattested` are provenances of accepted registrations, `verified` is an accepted assertion or
signature; a `Reason` is a refusal. Where what was recorded is not canonical CBOR, which WebAuthn section 2.4 lets
nobody send, its parts are tried once more in canonical form: the second outcome.

The roots of these chains were not recorded: the anchor is the last certificate of each chain (see
`support.third_party`, and for the instants).
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from keyvouch.attestation import TrustStore, VerifiedRegistration
from keyvouch.attestation.evidence import AndroidKeyFacts, AttestationEvidence
from keyvouch.errors import KeyvouchError, Reason
from support.third_party import Recorded, everything

RECORDED = {f"{item.source}/{item.id}": item for item in everything()}

_FORMAT = Reason.ATTESTATION_FORMAT
_STATEMENT = Reason.ATTESTATION_STATEMENT
_CERTIFICATE = Reason.ATTESTATION_CERTIFICATE
_ALGORITHM = Reason.ALGORITHM_NOT_ALLOWED
_NONCANONICAL = Reason.CBOR_NONCANONICAL

OUTCOMES: dict[str, Any] = {
    # py_webauthn
    "py_webauthn/pyw-003": "verified",
    "py_webauthn/pyw-004": "verified",
    "py_webauthn/pyw-006": _ALGORITHM,  # ML-DSA is not supported
    "py_webauthn/pyw-007": _ALGORITHM,
    "py_webauthn/pyw-008": _ALGORITHM,
    "py_webauthn/pyw-009": _FORMAT,  # "not_real_fmt"
    "py_webauthn/pyw-011": Reason.TRUST_CHAIN,  # the wrong root is part of this one
    "py_webauthn/pyw-013": "unattested",
    "py_webauthn/pyw-015": _ALGORITHM,
    "py_webauthn/pyw-016": _ALGORITHM,
    "py_webauthn/pyw-017": "attested",
    "py_webauthn/pyw-022": "attested",  # refused there for a token binding that Level 3 no longer knows
    "py_webauthn/pyw-023": "attested",
    "py_webauthn/pyw-028": _STATEMENT,  # signed by RS1: SHA-1 is not supported
    # SimpleWebAuthn. Some of its refusals are of the test's making (a mocked parser); what is recorded is sound.
    "simplewebauthn/swa-000": "verified",
    "simplewebauthn/swa-003": Reason.USER_VERIFICATION,  # there refused earlier, for a mocked type
    "simplewebauthn/swa-004": Reason.SIGN_COUNT,
    "simplewebauthn/swa-010": Reason.RP_ID_HASH,
    "simplewebauthn/swa-011": Reason.RP_ID_HASH,
    "simplewebauthn/swa-012": Reason.CHALLENGE,
    "simplewebauthn/swa-015": _ALGORITHM,  # a credential for RS1
    "simplewebauthn/swa-016": _STATEMENT,  # certificates with a serial number of zero and extensions that are not DER
    "simplewebauthn/swa-018": _STATEMENT,  # RS1
    "simplewebauthn/swa-019": _STATEMENT,  # RS1
    "simplewebauthn/swa-020": (_NONCANONICAL, _CERTIFICATE),  # a TPM of FFFFF1D0, no maker the TCG knows
    "simplewebauthn/swa-021": (_NONCANONICAL, _CERTIFICATE),
    "simplewebauthn/swa-023": "attested",
    "simplewebauthn/swa-025": "attested",
    "simplewebauthn/swa-026": _CERTIFICATE,  # Chrome's virtual authenticator: an extension that is not DER
    "simplewebauthn/swa-030": "self",
    "simplewebauthn/swa-032": "unattested",
    "simplewebauthn/swa-033": "unattested",
    "simplewebauthn/swa-034": Reason.CHALLENGE,
    "simplewebauthn/swa-035": Reason.ORIGIN,
    "simplewebauthn/swa-036": "unattested",  # there refused for a mocked credential id
    "simplewebauthn/swa-038": _CERTIFICATE,  # FFFFF1D0 again
    "simplewebauthn/swa-040": "attested",
    "simplewebauthn/swa-042": "unattested",
    "simplewebauthn/swa-043": Reason.ORIGIN,
    "simplewebauthn/swa-044": "unattested",
    "simplewebauthn/swa-046": Reason.CHALLENGE,
    "simplewebauthn/swa-048": "attested",  # pinned leaf: nothing is asked of the SHA-1 signature on it
    "simplewebauthn/swa-050": _ALGORITHM,  # PS384 is not supported
    "simplewebauthn/swa-051": _FORMAT,  # android-safetynet is not supported: Google has ended it
    # go-webauthn
    "go-webauthn/gow-001": "attested",
    "go-webauthn/gow-005": "attested",
    "go-webauthn/gow-007": "self",
    "go-webauthn/gow-008": "attested",
    "go-webauthn/gow-009": _FORMAT,  # android-safetynet
    "go-webauthn/gow-010": "self",
    "go-webauthn/gow-011": "attested",
    "go-webauthn/gow-014": _STATEMENT,  # RS1
    "go-webauthn/gow-015": _ALGORITHM,  # RS1
    "go-webauthn/gow-016": _STATEMENT,  # as swa-016
    # java-webauthn-server: indefinite lengths nearly everywhere
    "java-webauthn-server/java-001": (_NONCANONICAL, _FORMAT),  # android-safetynet
    "java-webauthn-server/java-002": (_NONCANONICAL, _FORMAT),
    "java-webauthn-server/java-003": (_NONCANONICAL, _FORMAT),
    "java-webauthn-server/java-005": (_NONCANONICAL, "attested"),
    "java-webauthn-server/java-006": (_NONCANONICAL, "unattested"),
    "java-webauthn-server/java-007": (_NONCANONICAL, _CERTIFICATE),  # no basic constraints in the leaf
    "java-webauthn-server/java-008": (_NONCANONICAL, _CERTIFICATE),  # the same
    "java-webauthn-server/java-008-assertion": "verified",
    "java-webauthn-server/java-010": (_NONCANONICAL, Reason.CREDENTIAL_PUBLIC_KEY),  # a modulus with a leading zero
    "java-webauthn-server/java-012": (_NONCANONICAL, _ALGORITHM),  # RS512 is not supported
    "java-webauthn-server/java-014": (_NONCANONICAL, "attested"),  # members in another order
    "java-webauthn-server/java-015": (_NONCANONICAL, _CERTIFICATE),  # no basic constraints in the leaf
    "java-webauthn-server/java-016": (_NONCANONICAL, _CERTIFICATE),  # another AAGUID in the leaf
    "java-webauthn-server/java-017": (_NONCANONICAL, "self"),
    "java-webauthn-server/java-019": (_NONCANONICAL, Reason.TPM),  # coordinates with a leading zero
    "java-webauthn-server/java-025": (_NONCANONICAL, _ALGORITHM),  # RS512
    # fido2-net-lib
    "fido2-net-lib/attestationAndroidKeyResponse": "attested",
    "fido2-net-lib/attestationAppleResponse": "attested",
    "fido2-net-lib/attestationNoneResponse": "unattested",
    "fido2-net-lib/attestationResultsNone": "unattested",
    "fido2-net-lib/attestationResultsPacked": (_NONCANONICAL, "attested"),  # members in another order
    "fido2-net-lib/attestationResultsU2F": "attested",
    "fido2-net-lib/json1": "attested",
    "fido2-net-lib/json2": Reason.CHALLENGE,  # an answer to other options than those beside it
    "fido2-net-lib/assertionNoneResponse": "verified",
    # python-fido2
    "python-fido2/pyfido2-001": _FORMAT,  # android-safetynet
    "python-fido2/pyfido2-003": "verified",
    "python-fido2/pyfido2-009": "unattested",
    "python-fido2/pyfido2-011": "verified",
    "python-fido2/pyfido2-013": Reason.SIGNATURE,
    "python-fido2/pyfido2-014": _STATEMENT,  # the same signature, in a statement
    "python-fido2/pyfido2-015": _ALGORITHM,  # RS1
    "python-fido2/pyfido2-016": _STATEMENT,  # RS1, and a statement without ver
    "python-fido2/pyfido2-017": _ALGORITHM,  # ML-DSA
    "python-fido2/pyfido2-019": "verified",
    "python-fido2/pyfido2-023": "verified",
    "python-fido2/pyfido2-024": "verified",
    "python-fido2/pyfido2-025": "attested",
    "python-fido2/pyfido2-026": "verified",
    "python-fido2/pyfido2-027": "attested",
    "python-fido2/pyfido2-028": "verified",
    "python-fido2/pyfido2-029": "verified",
    "python-fido2/pyfido2-030": Reason.SIGNATURE,
}

COUNTS = {
    "py_webauthn": 14,
    "simplewebauthn": 30,
    "go-webauthn": 10,
    "java-webauthn-server": 16,
    "fido2-net-lib": 9,
    "python-fido2": 18,
}


def expected(name: str) -> tuple[Any, Any]:
    """The outcome as recorded, and in canonical CBOR if that is another story."""
    outcome = OUTCOMES[name]
    return outcome if isinstance(outcome, tuple) else (outcome, None)


ATTESTED = [name for name in OUTCOMES if "attested" in expected(name)]


def outcome_of(item: Recorded, **changes: Any) -> object:
    try:
        verified = item.run(**changes)
    except KeyvouchError as error:
        return error.reason
    evidence = evidence_in(verified)
    return evidence.provenance.value if evidence else "verified"


def evidence_in(verified: object) -> AttestationEvidence | None:
    evidence = verified.attestation if isinstance(verified, VerifiedRegistration) else verified
    return evidence if isinstance(evidence, AttestationEvidence) else None


def test_none_is_left_out() -> None:
    assert Counter(item.source for item in RECORDED.values()) == COUNTS
    assert sorted(OUTCOMES) == sorted(RECORDED)
    assert len(ATTESTED) == 20


@pytest.mark.parametrize("name", list(OUTCOMES))
def test_the_outcome(name: str) -> None:
    item, (recorded, reencoded) = RECORDED[name], expected(name)
    assert outcome_of(item) == recorded
    if "attestation_object" in item.arguments:
        canonical = item.reencoded()
        assert (canonical != item.arguments["attestation_object"]) == (reencoded is not None)
        assert outcome_of(item, attestation_object=canonical) == (reencoded or recorded)


@pytest.mark.parametrize("name", ATTESTED)
def test_what_is_attested_needs_its_anchor_its_time_and_its_ceremony(name: str) -> None:
    item = RECORDED[name]
    changes = {"attestation_object": item.reencoded()} if expected(name)[1] else {}
    assert outcome_of(item, **changes) == "attested"
    assert outcome_of(item, anchors=TrustStore(), **changes) is Reason.TRUST_CHAIN
    for year in (1969, 9998):
        assert outcome_of(item, instant=datetime(year, 1, 1, tzinfo=UTC), **changes) is Reason.TRUST_CHAIN
    if "client_data" in item.arguments:
        other = item.arguments["client_data"].replace(b'"type"', b'"type" ')
        assert outcome_of(item, client_data=other, **changes) is Reason.ATTESTATION_STATEMENT


def test_what_android_devices_said() -> None:
    facts = {}
    for name in ATTESTED:
        evidence = evidence_in(RECORDED[name].run()) if expected(name)[1] is None else None
        if evidence and evidence.format == "android-key":
            facts[name] = (evidence.facts, evidence.verification.value)
    hardware, software = AndroidKeyFacts("tee", 300), AndroidKeyFacts("software", 2)
    assert facts == {
        "py_webauthn/pyw-017": (hardware, "hardware_gated"),
        "simplewebauthn/swa-023": (hardware, "hardware_gated"),
        "simplewebauthn/swa-040": (software, "software_gated"),
        "go-webauthn/gow-001": (software, "software_gated"),
        "fido2-net-lib/attestationAndroidKeyResponse": (software, "software_gated"),
    }
