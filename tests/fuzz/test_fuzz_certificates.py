"""Damaged certificates: no flipped bit in a path leaves it valid, and nothing but our own errors comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvouch.attestation.certificates import find_path, key_identifier, parse_certificate, validate_path
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from support.certificate_forge import INSTANT, Issued, element, elements, inside, resign
from support.certificate_paths import LEAF, MIDDLE, TOP
from support.mutations import damaged

PATH = [LEAF.der, MIDDLE.der, TOP.der]
REASONS = {Reason.TRUST_CHAIN, Reason.WEAK_KEY_ROCA}
SIGNERS = {LEAF: MIDDLE, MIDDLE: TOP, TOP: TOP}


def judged(path: list[bytes]) -> None:
    """Parse and validate a path; anything may be refused, for one of the reasons there are."""
    certificates = [parse_certificate(der) for der in path]
    validate_path(certificates, anchors=[TOP.anchor], instant=INSTANT)


def test_the_control() -> None:
    judged(PATH)
    judged(PATH[:2])


@pytest.mark.parametrize("index", range(3), ids=["leaf", "intermediate", "root"])
def test_every_flipped_bit_is_refused(index: int) -> None:
    for bit in range(len(PATH[index]) * 8):
        flipped = bytearray(PATH[index])
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((MalformedError, EvidenceError)) as caught:
            judged([*PATH[:index], bytes(flipped), *PATH[index + 1 :]])
        expected = {Reason.ATTESTATION_STATEMENT} if isinstance(caught.value, MalformedError) else REASONS
        assert caught.value.reason in expected


@settings(max_examples=150)
@given(st.integers(0, 2), st.data())
def test_damaged_certificates_are_refused(index: int, data: st.DataObject) -> None:
    path = list(PATH)
    path[index] = data.draw(damaged(PATH[index]))
    with pytest.raises(KeyvouchError):
        judged(path)


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_certificate(garbage: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_certificate(garbage)


def changed_field(index: int, replacement: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda fields: [*fields[:index], replacement, *fields[index + 1 :]]


def signed_again(victim: Issued, index: int, replacement: bytes) -> x509.Certificate | None:
    """Return a certificate with a damaged field and a good signature, None if it cannot even be parsed."""
    try:
        return resign(victim, SIGNERS[victim], changed_field(index, replacement)).certificate
    except (ValueError, x509.InvalidVersion, Warning):
        return None


@settings(max_examples=300)
@given(st.sampled_from([LEAF, MIDDLE, TOP]), st.integers(0, 7), st.data())
def test_damage_that_a_ca_signs_raises_nothing_else(victim: Issued, index: int, data: st.DataObject) -> None:
    fields = elements(inside(victim.certificate.tbs_certificate_bytes))
    tag, content = fields[index][0], inside(fields[index])
    bad = signed_again(victim, index, element(tag, data.draw(damaged(content))))
    if bad is None:
        return
    assert len(key_identifier(bad)) == 20
    path = [bad if one is victim else one.certificate for one in (LEAF, MIDDLE, TOP)]
    for certificates in (path, path[:2], path[1:]):
        with contextlib.suppress(EvidenceError):
            validate_path(certificates, anchors=[TOP.anchor], instant=INSTANT)
        with contextlib.suppress(EvidenceError):
            find_path(certificates[0], certificates, anchors=[TOP.anchor], instant=INSTANT)
