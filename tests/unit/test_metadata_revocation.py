"""A certificate behind a metadata BLOB counts while the CRLs of its issuer do not name it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.attestation import TrustAnchor, metadata_revocation
from keyvouch.errors import Reason
from support.metadata_forge import (
    CA,
    INSTANT,
    INTERMEDIATE,
    MAKER,
    NOT_CA,
    ROOT,
    SIGNER,
    SIGNER_NAME,
    blob,
    is_good,
    key_usage,
    named,
    p256_key,
    rsa_key,
)
from support.metadata_forge import (
    blob_reason as reason,
)

MALFORMED, UNTRUSTED = Reason.METADATA_MALFORMED, Reason.METADATA_UNTRUSTED
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


GOOD = blob()


CRLS = [ROOT.crl(), INTERMEDIATE.crl()]
WITH_POINT = INTERMEDIATE.issue(
    SIGNER_NAME,
    [
        (NOT_CA, True),
        (
            x509.CRLDistributionPoints(
                [
                    x509.DistributionPoint(
                        [x509.UniformResourceIdentifier("http://mds.example/1.crl")], None, None, None
                    ),
                    x509.DistributionPoint(None, named("by name").rdns[0], None, None),
                ]
            ),
            False,
        ),
    ],
)


def scope(**changes: Any) -> x509.IssuingDistributionPoint:
    members: dict[str, Any] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**members | changes)


def test_crls_that_revoke_nothing() -> None:
    pem = x509.load_der_x509_crl(CRLS[1]).public_bytes(Encoding.PEM)
    for crls in (CRLS, [CRLS[0], pem], [MAKER.crl(SIGNER.certificate), *CRLS]):
        assert is_good(GOOD, crls=crls, require_crls=True)
        assert is_good(GOOD, crls=crls)


@pytest.mark.parametrize("crls", [[], CRLS[:1], CRLS[1:], [MAKER.crl()]])
def test_crls_are_required_for_every_certificate_or_for_none(crls: list[bytes]) -> None:
    assert is_good(GOOD, crls=crls)
    assert reason(GOOD, crls=crls, require_crls=True) == (UNTRUSTED, "crl_missing")


def test_an_anchor_needs_no_crl() -> None:
    pinned = {"anchors": [TrustAnchor("pinned", SIGNER.certificate)], "require_crls": True}
    assert is_good(blob(chain=[SIGNER.certificate]), **pinned)


@pytest.mark.parametrize("required", [True, False])
def test_revoked_certificates(required: bool) -> None:
    for crls in (
        [ROOT.crl(), INTERMEDIATE.crl(SIGNER.certificate)],
        [ROOT.crl(INTERMEDIATE.certificate), INTERMEDIATE.crl()],
        [*CRLS, INTERMEDIATE.crl(MAKER.certificate, SIGNER.certificate)],
        [*CRLS, INTERMEDIATE.crl(SIGNER.certificate, begin=INSTANT - 9 * DAY, end=INSTANT - 8 * DAY)],
    ):
        assert reason(GOOD, crls=crls, require_crls=required) == (UNTRUSTED, "revoked")


def test_an_issuer_without_a_crl_hides_no_revocation_above_it() -> None:
    crls = [ROOT.crl(INTERMEDIATE.certificate)]
    assert reason(GOOD, crls=crls) == (UNTRUSTED, "revoked")
    assert reason(GOOD, crls=crls, require_crls=True) == (UNTRUSTED, "crl_missing")


def test_a_serial_number_is_revoked_by_its_issuer_only() -> None:
    assert is_good(
        GOOD, crls=[ROOT.crl(SIGNER.certificate), INTERMEDIATE.crl(INTERMEDIATE.certificate)], require_crls=True
    )


UNUSABLE: dict[str, dict[str, Any]] = {
    "signed by another key": {"key": p256_key("evil")},
    "signed by a key of another kind": {"key": rsa_key()},
    "out of date": {"begin": INSTANT - 2 * DAY, "end": INSTANT - SECOND},
    "not valid yet": {"begin": INSTANT + SECOND},
    "a delta": {"extensions": [(x509.DeltaCRLIndicator(1), True)]},
    "a delta that says so in passing": {"extensions": [(x509.DeltaCRLIndicator(1), False)]},
    "of an unknown critical extension": {
        "extensions": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)]
    },
    "indirect": {"extensions": [(scope(indirect_crl=True), True)]},
    "for some reasons": {"extensions": [(scope(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), True)]},
    "for attribute certificates": {"extensions": [(scope(only_contains_attribute_certs=True), True)]},
    "for authorities": {"extensions": [(scope(only_contains_ca_certs=True), True)]},
    "for a relative name": {"extensions": [(scope(relative_name=named("x").rdns[0]), True)]},
    "for another point": {
        "extensions": [(scope(full_name=[x509.UniformResourceIdentifier("http://mds.example/2.crl")]), True)]
    },
}


NOT_ITS_OWN = {"signed by another key", "signed by a key of another kind", "indirect"}
"""Whose revocations do not count either."""


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_crl_that_cannot_be_used(name: str) -> None:
    data = blob(signer=WITH_POINT)
    empty, full = (INTERMEDIATE.crl(*revoked, **UNUSABLE[name]) for revoked in ([], [WITH_POINT.certificate]))
    for crl, expected in ((empty, "crl_missing"), (full, "crl_missing" if name in NOT_ITS_OWN else "revoked")):
        for required in (True, False):
            assert reason(data, crls=[ROOT.crl(), crl], require_crls=required) == (UNTRUSTED, expected)
    assert is_good(data, crls=[empty, *CRLS], require_crls=True)


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_revocation_counts_beside_a_list_without_it(name: str) -> None:
    data = blob(signer=WITH_POINT)
    full = INTERMEDIATE.crl(WITH_POINT.certificate, **UNUSABLE[name])
    for crls in ([full, *CRLS], [*CRLS, full]):
        if name in NOT_ITS_OWN:
            assert is_good(data, crls=crls, require_crls=True)
        else:
            assert reason(data, crls=crls, require_crls=True) == (UNTRUSTED, "revoked")


def test_what_a_delta_takes_off_the_list_is_not_revoked_by_it() -> None:
    delta = {"extensions": [(x509.CRLNumber(2), False), (x509.DeltaCRLIndicator(1), True)]}
    removed, held = x509.ReasonFlags.remove_from_crl, x509.ReasonFlags.certificate_hold
    for why, changes, is_revoked in ((removed, delta, False), (held, delta, True), (removed, {}, True)):
        crls = [
            *CRLS,
            INTERMEDIATE.crl(MAKER.certificate, SIGNER.certificate, reasons=[x509.CRLReason(why)], **changes),
        ]
        if is_revoked:
            assert reason(GOOD, crls=crls, require_crls=True) == (UNTRUSTED, "revoked")
        else:
            assert is_good(GOOD, crls=crls, require_crls=True)


def test_reasons_of_a_delta_that_cannot_be_read() -> None:
    bad = [x509.UnrecognizedExtension(x509.CRLReason.oid, b"\x05\x00")]
    delta = INTERMEDIATE.crl(MAKER.certificate, reasons=bad, extensions=[(x509.DeltaCRLIndicator(1), True)])
    assert is_good(GOOD, crls=[*CRLS, INTERMEDIATE.crl(MAKER.certificate, reasons=bad)])
    assert reason(GOOD, crls=[*CRLS, delta]) == (MALFORMED, "")


USABLE: dict[str, dict[str, Any]] = {
    "begins now": {"begin": INSTANT},
    "ends now": {"end": INSTANT},
    "with a number": {"extensions": [(x509.CRLNumber(7), False)]},
    "for users": {"extensions": [(scope(only_contains_user_certs=True), True)]},
    "for its point": {
        "extensions": [(scope(full_name=[x509.UniformResourceIdentifier("http://mds.example/1.crl")]), True)]
    },
    "sha-384": {"hash_algorithm": hashes.SHA384()},
}


@pytest.mark.parametrize("name", USABLE)
def test_a_crl_that_can_be_used(name: str) -> None:
    data = blob(signer=WITH_POINT)
    assert is_good(data, crls=[ROOT.crl(), INTERMEDIATE.crl(**USABLE[name])], require_crls=True)
    crls = [ROOT.crl(), INTERMEDIATE.crl(WITH_POINT.certificate, **USABLE[name])]
    assert reason(data, crls=crls, require_crls=True) == (UNTRUSTED, "revoked")


def test_crls_for_authorities_and_users_cover_theirs() -> None:
    for_users, for_authorities = scope(only_contains_user_certs=True), scope(only_contains_ca_certs=True)
    crls = [ROOT.crl(extensions=[(for_authorities, True)]), INTERMEDIATE.crl(extensions=[(for_users, True)])]
    assert is_good(GOOD, crls=crls, require_crls=True)
    assert reason(GOOD, crls=[ROOT.crl(extensions=[(for_users, True)]), CRLS[1]]) == (UNTRUSTED, "crl_missing")


def test_a_scope_without_distribution_points() -> None:
    point = scope(full_name=[x509.UniformResourceIdentifier("http://mds.example/1.crl")])
    assert reason(GOOD, crls=[CRLS[0], INTERMEDIATE.crl(extensions=[(point, True)])]) == (UNTRUSTED, "crl_missing")


def tlv(tag: int, content: bytes) -> bytes:
    """DER of an element of less than 256 bytes."""
    size = len(content)
    return bytes([tag, size] if size < 128 else [tag, 0x81, size]) + content


def hand_made_crl(hash_algorithm: hashes.HashAlgorithm, oid: str, *, updates: tuple[int, ...] = (-1, 1)) -> bytes:
    """A CRL of the intermediate, properly signed; the library makes none with SHA-1, or without a next update."""
    algorithm, key = bytes.fromhex(oid), INTERMEDIATE.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = INTERMEDIATE.certificate.subject.public_bytes()
    days = b"".join(tlv(0x17, f"{INSTANT + n * DAY:%y%m%d%H%M%SZ}".encode()) for n in updates)
    signed = tlv(0x30, b"\x02\x01\x01" + algorithm + issuer + days)
    signature = key.sign(signed, ec.ECDSA(hash_algorithm))
    return tlv(0x30, signed + algorithm + tlv(0x03, b"\x00" + signature))


def test_a_crl_signed_with_sha1_or_without_an_end() -> None:
    strong = hand_made_crl(hashes.SHA256(), "300a06082a8648ce3d040302")
    assert is_good(GOOD, crls=[CRLS[0], strong], require_crls=True)
    endless = hand_made_crl(hashes.SHA256(), "300a06082a8648ce3d040302", updates=(-1,))
    assert reason(GOOD, crls=[CRLS[0], endless]) == (UNTRUSTED, "crl_missing")
    weak = hand_made_crl(hashes.SHA1(), "300906072a8648ce3d0401")
    assert reason(GOOD, crls=[CRLS[0], weak]) == (UNTRUSTED, "crl_missing")


def test_the_issuer_may_sign_crls() -> None:
    for purposes, expected in ((("key_cert_sign", "crl_sign"), None), (("key_cert_sign",), (UNTRUSTED, "crl_missing"))):
        issuer = ROOT.issue("Metadata Intermediate", [(CA, True), (key_usage(*purposes), True)])
        signer = issuer.issue(SIGNER_NAME)
        data = blob(signer=signer, chain=[signer.certificate, issuer.certificate])
        crls = [ROOT.crl(), issuer.crl()]
        if expected:
            assert reason(data, crls=crls, require_crls=True) == expected
        else:
            assert is_good(data, crls=crls, require_crls=True)


@pytest.mark.parametrize(
    "crl",
    [
        b"",
        b"\x30",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        CRLS[0] + b"\x00",
        CRLS[0][:-1],
        ROOT.certificate.public_bytes(Encoding.DER),
        INTERMEDIATE.crl(
            extensions=[(x509.UnrecognizedExtension(x509.IssuingDistributionPoint.oid, b"\x05\x00"), True)]
        ),
    ],
)
def test_a_crl_that_is_malformed(crl: bytes) -> None:
    assert reason(GOOD, crls=[*CRLS, crl]) == (MALFORMED, "")


def test_the_limit_of_a_crl(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metadata_revocation.MAX_CRL == 16_777_216
    monkeypatch.setattr(metadata_revocation, "MAX_CRL", max(map(len, CRLS)))
    assert is_good(GOOD, crls=CRLS)
    monkeypatch.setattr(metadata_revocation, "MAX_CRL", max(map(len, CRLS)) - 1)
    assert reason(GOOD, crls=CRLS) == (MALFORMED, "")
