"""Paths that are found in a pool of certificates, and the certificates of makers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from keyvouch.attestation import certificates
from keyvouch.attestation.certificate_profile import PathRule
from keyvouch.attestation.certificates import (
    MAX_CANDIDATES,
    MAX_CERTIFICATES,
    CertificationPath,
    find_path,
    parse_certificate,
    validate_path,
)
from keyvouch.attestation.trust import TrustAnchor
from keyvouch.errors import MalformedError
from support.certificate_forge import (
    INSTANT,
    intermediate,
    issue,
    leaf,
    named,
    root,
)
from support.certificate_paths import (
    LEAF,
    MIDDLE,
    NAMESAKE,
    OTHER,
    STRANGER,
    TOP,
    a_chain,
    broken_rule,
    found,
)
from support.endorsement_forge import certificate as endorsement
from support.endorsement_forge import intermediate as maker
from support.endorsement_forge import sequence
from support.endorsement_verdicts import elements
from support.vectors import ROOT as VECTORS
from support.vectors import load

SECOND = timedelta(seconds=1)


# Finding a path


def test_a_path_is_found_in_a_pool_of_anything() -> None:
    path = found(LEAF, STRANGER, NAMESAKE, OTHER, TOP, LEAF, MIDDLE, MIDDLE)
    assert path.certificates == (LEAF.certificate, MIDDLE.certificate)
    assert found(leaf(TOP), MIDDLE).certificates[1:] == ()
    long = a_chain(MAX_CERTIFICATES)
    assert len(found(long[0], *reversed(long)).certificates) == MAX_CERTIFICATES


def test_the_shortest_path_is_found_first() -> None:
    longer = intermediate(OTHER, key=MIDDLE.key)
    path = found(LEAF, longer, OTHER, MIDDLE)
    assert path.certificates == (LEAF.certificate, MIDDLE.certificate)


def test_no_path_is_found() -> None:
    assert broken_rule(found, LEAF) is PathRule.ANCHOR
    assert broken_rule(found, LEAF, OTHER, STRANGER) is PathRule.ANCHOR
    assert broken_rule(found, LEAF, MIDDLE, anchors=[STRANGER]) is PathRule.ANCHOR
    assert broken_rule(found, LEAF, NAMESAKE) is PathRule.SIGNATURE
    too_long = a_chain(MAX_CERTIFICATES + 1)
    assert broken_rule(found, *too_long) is PathRule.ANCHOR


def test_the_first_path_to_an_anchor_says_why() -> None:
    expired = intermediate(TOP, key=MIDDLE.key, not_after=INSTANT - SECOND)
    assert broken_rule(found, LEAF, expired, NAMESAKE) is PathRule.VALIDITY
    assert broken_rule(found, LEAF, NAMESAKE, expired) is PathRule.SIGNATURE


def test_loops_of_cross_signed_authorities_end() -> None:
    one, two = root("One"), root("Two")
    crossed = [issue("One", two, key=one.key, ca=True), issue("Two", one, key=two.key, ca=True)]
    end = leaf(one)
    assert broken_rule(found, end, *crossed, one, two) is PathRule.ANCHOR
    bridge = issue("Two", TOP, key=two.key, ca=True)
    assert found(end, *crossed, one, two, bridge).certificates[2] == bridge.certificate


def test_work_on_a_pool_is_bounded() -> None:
    assert MAX_CANDIDATES == 64
    crowd = [intermediate(TOP) for _ in range(MAX_CANDIDATES - 2)]
    assert found(LEAF, *crowd, MIDDLE)
    one_more = intermediate(TOP)
    assert broken_rule(found, LEAF, *crowd, one_more, MIDDLE) is PathRule.SIGNATURE
    same = [issue("Same", None, ca=True, issuer_name=named("Same")) for _ in range(200)]
    assert broken_rule(found, leaf(same[0]), *same) is PathRule.ANCHOR


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[x509.Certificate]]:
    """The candidates that are judged, as they come. They are judged as ever."""
    seen: list[Sequence[x509.Certificate]] = []

    def judge(path: Sequence[x509.Certificate], **arguments: Any) -> CertificationPath:
        seen.append(path)
        return validate_path(path, **arguments)

    monkeypatch.setattr(certificates, "validate_path", judge)
    return seen


def find_in_a_crowd(**arguments: int) -> None:
    crowd = [issue("Same", None, ca=True, issuer_name=named("Same")) for _ in range(16)]
    pool = [one.certificate for one in crowd]
    end = leaf(crowd[0]).certificate
    assert broken_rule(find_path, end, pool, anchors=[TOP.anchor], instant=INSTANT, **arguments) is PathRule.ANCHOR


@pytest.mark.parametrize("number", [1, 16, 63, 64])
def test_as_many_candidates_are_judged_as_the_caller_wants(number: int, judged: list[object]) -> None:
    find_in_a_crowd(candidates=number)
    assert len(judged) == number


def test_64_candidates_are_judged_unless_the_caller_wants_less(judged: list[object]) -> None:
    find_in_a_crowd()
    assert len(judged) == 64


def test_a_path_that_is_the_last_candidate_is_found() -> None:
    crowd = [intermediate(TOP).certificate for _ in range(3)]
    pool = [*crowd, MIDDLE.certificate]
    assert find_path(LEAF.certificate, pool, anchors=[TOP.anchor], instant=INSTANT, candidates=5)
    rule = broken_rule(find_path, LEAF.certificate, pool, anchors=[TOP.anchor], instant=INSTANT, candidates=4)
    assert rule is PathRule.SIGNATURE


def test_no_candidate_is_longer_than_a_path_may_be(judged: list[Sequence[x509.Certificate]]) -> None:
    assert broken_rule(found, *a_chain(12)) is PathRule.ANCHOR
    assert [len(candidate) for candidate in judged] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_only_anchors_that_are_named_are_tried() -> None:
    """Each anchor is judged as a CA before the link to it, so one that is none would cost as much as one that is."""
    assert found(LEAF, MIDDLE, anchors=[STRANGER, OTHER, MIDDLE, TOP]).anchor == MIDDLE.anchor
    assert found(LEAF, MIDDLE, anchors=[STRANGER, OTHER, TOP]).anchor == TOP.anchor
    assert found(LEAF, anchors=[STRANGER, LEAF]).anchor == LEAF.anchor


def test_names_of_version_1_are_found() -> None:
    old = x509.load_der_x509_certificate(endorsement(version=b"", change=lambda part: sequence(*elements(part)[:-1])))
    assert old.version is x509.Version.v1
    instant = old.not_valid_before_utc
    path = find_path(old, [], anchors=pinned(maker().certificate), instant=instant)
    assert path.certificates == (old,)


# Certificates of makers


def pem(name: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((VECTORS / "keylime" / "tpm_cert_store" / name).read_bytes())


def pinned(certificate: x509.Certificate) -> list[TrustAnchor]:
    return [TrustAnchor("maker", certificate)]


MAKERS = {
    "Infineon EC": ("INF_ECC_010I.pem", "INF_ECC_010RT.pem"),
    "Intel": ("INTEL_I.pem", "INTEL_RT.pem"),
    "ST RSA": ("STM_RSA_01I.pem", "STM_RSA_RT.pem"),
    "ST RSA newer": ("STM_RSA_06I.pem", "STM_RSA_RT.pem"),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_authorities_of_tpm_makers(maker: str) -> None:
    (authority,), (top,) = (pem(name) for name in MAKERS[maker])
    assert validate_path([authority], anchors=pinned(top), instant=INSTANT).certificates == (authority,)
    assert find_path(authority, [], anchors=[*pinned(TOP.certificate), *pinned(top)], instant=INSTANT)
    assert validate_path([authority], anchors=pinned(authority), instant=INSTANT)
    assert broken_rule(validate_path, [authority], anchors=[TOP.anchor], instant=INSTANT) is PathRule.ANCHOR


def test_a_chain_of_device_identities() -> None:
    authority, top = pem("iak_idevid_chain.pem")
    assert validate_path([authority, top], anchors=pinned(top), instant=INSTANT).certificates == (authority,)


def test_an_authority_signed_with_sha1_vouches_only_if_it_is_pinned() -> None:
    (authority,), (top,) = pem("IFX8.pem"), pem("IFX_RSA_RT.pem")
    rule = broken_rule(validate_path, [authority], anchors=pinned(top), instant=INSTANT)
    assert rule is PathRule.SIGNATURE_ALGORITHM
    assert validate_path([authority], anchors=pinned(authority), instant=INSTANT)


def x5c(attestation_object: str) -> list[x509.Certificate]:
    """The certificates of an attestation object in base64 of either alphabet, found by their shape."""
    standard = attestation_object.replace("-", "+").replace("_", "/").rstrip("=")
    data = base64.b64decode(standard + "=" * (-len(standard) % 4))
    found, at = [], 0
    while (at := data.find(b"\x30\x82", at)) >= 0:
        der = data[at : at + 4 + int.from_bytes(data[at + 2 : at + 4], "big")]
        try:
            found.append(parse_certificate(der))
            at += len(der)
        except MalformedError:
            at += 1
    return found


def authenticators() -> dict[str, list[x509.Certificate]]:
    chains = {
        vector["id"]: x5c(vector["attestationObject"])
        for source in ("py_webauthn", "simplewebauthn")
        for vector in load(f"{source}/vectors.json")["vectors"]
        if vector["ceremony"] == "registration"
    }
    for name in ("attestationResultsPacked", "attestationAppleResponse"):
        chains[name] = x5c(load(f"fido2-net-lib/{name}.json")["response"]["attestationObject"])
    return {name: chain for name, chain in chains.items() if len(chain) > 1}


AUTHENTICATORS = authenticators()


def test_makers_are_many() -> None:
    assert len(AUTHENTICATORS) == 12


@pytest.mark.parametrize("name", sorted(AUTHENTICATORS))
def test_chains_of_authenticators(name: str) -> None:
    chain = AUTHENTICATORS[name]
    instant = max(certificate.not_valid_before_utc for certificate in chain)
    path = validate_path(chain, anchors=pinned(chain[-1]), instant=instant)
    assert path.certificates == tuple(chain[:-1])
    assert validate_path(chain[:-1], anchors=pinned(chain[-1]), instant=instant) == path
    long_ago = datetime(1950, 1, 1, tzinfo=UTC)
    assert broken_rule(validate_path, chain, anchors=pinned(chain[-1]), instant=long_ago) is PathRule.VALIDITY
    assert broken_rule(validate_path, chain, anchors=[TOP.anchor], instant=instant) is PathRule.ANCHOR
