"""Trust anchors are found by what they may vouch for, and by nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyvouch.assurance import Protection, Verification
from keyvouch.attestation import Distrust, TrustAnchor, TrustStore
from keyvouch.attestation.certificates import public_key_bits
from keyvouch.errors import EvidenceError, Reason, UsageError


def certificate(key: ec.EllipticCurvePrivateKey | None = None) -> x509.Certificate:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


ROOT = certificate()
MODEL, OTHER = b"\x01" * 16, b"\x02" * 16
KEY_ID, OTHER_KEY_ID = b"\x03" * 20, b"\x04" * 20

GENERAL = TrustAnchor("general", ROOT)
FOR_MODEL = TrustAnchor("model", ROOT, aaguids=frozenset({MODEL}))
FOR_KEY = TrustAnchor("key", ROOT, key_ids=frozenset({KEY_ID}))
FOR_FORMAT = TrustAnchor("format", ROOT, formats=frozenset({"tpm"}))
STORE = TrustStore([GENERAL, FOR_MODEL, FOR_KEY, FOR_FORMAT])


def names(kind: str, aaguid: bytes, key_ids: tuple[bytes, ...] = ()) -> list[str]:
    return [anchor.name for anchor in STORE.anchors_for(kind, aaguid=aaguid, key_ids=key_ids)]


@pytest.mark.parametrize(
    ("kind", "aaguid", "key_ids", "expected"),
    [
        ("packed", OTHER, (), ["general"]),
        ("packed", MODEL, (), ["model", "general"]),
        ("packed", OTHER, (KEY_ID,), ["key", "general"]),
        ("packed", OTHER, (OTHER_KEY_ID, KEY_ID), ["key", "general"]),
        ("packed", MODEL, (KEY_ID,), ["model", "key", "general"]),
        ("packed", OTHER, (OTHER_KEY_ID,), ["general"]),
        ("tpm", OTHER, (), ["general", "format"]),
        ("TPM", OTHER, (), ["general"]),
    ],
)
def test_anchors_vouch_for_what_they_were_made_for(
    kind: str, aaguid: bytes, key_ids: tuple[bytes, ...], expected: list[str]
) -> None:
    assert names(kind, aaguid, key_ids) == expected


def test_a_model_under_another_format_is_not_covered() -> None:
    anchor = TrustAnchor("both", ROOT, formats=frozenset({"tpm"}), aaguids=frozenset({MODEL}))
    assert TrustStore([anchor]).anchors_for("tpm", aaguid=MODEL) == (anchor,)
    assert TrustStore([anchor]).anchors_for("packed", aaguid=MODEL) == ()


def test_an_anchor_for_no_format_vouches_for_nothing() -> None:
    assert TrustStore([TrustAnchor("none", ROOT, formats=frozenset())]).anchors_for("packed", aaguid=MODEL) == ()


def test_an_anchor_nobody_described_is_worth_what_software_is() -> None:
    assert (GENERAL.protection, GENERAL.verification) == (Protection.SOFTWARE, Verification.SOFTWARE_GATED)


def test_the_store_is_a_sized_iterable_that_names_its_anchors() -> None:
    assert list(STORE) == [GENERAL, FOR_MODEL, FOR_KEY, FOR_FORMAT]
    assert len(STORE) == 4
    assert repr(STORE) == "TrustStore(format, general, key, model)"
    assert list(TrustStore()) == []


@pytest.mark.parametrize(
    ("aaguid", "key_ids", "named"),
    [
        (MODEL, (), MODEL),
        (OTHER, (OTHER_KEY_ID, KEY_ID), KEY_ID),
        (MODEL, (KEY_ID,), MODEL),
        (OTHER, (OTHER_KEY_ID,), None),
    ],
)
def test_distrusted_models_are_refused_by_either_name(
    aaguid: bytes, key_ids: tuple[bytes, ...], named: bytes | None
) -> None:
    distrust = Distrust({MODEL: "Its status is REVOKED.", KEY_ID: "Its key is known."})
    STORE.check_model(aaguid=aaguid, key_ids=key_ids)  # the control: nothing is refused there
    if named is None:
        TrustStore([GENERAL], distrust).check_model(aaguid=aaguid, key_ids=key_ids)
        return
    with pytest.raises(EvidenceError) as caught:
        TrustStore([GENERAL], distrust).check_model(aaguid=aaguid, key_ids=key_ids)
    assert caught.value.reason is Reason.AUTHENTICATOR_STATUS
    assert caught.value.metadata == {"model": named.hex()}


def test_distrusted_keys_are_refused_wherever_they_stand_in_any_edition() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    bad, edition, good = certificate(key), certificate(key), certificate()
    assert bad != edition
    store = TrustStore([GENERAL], Distrust(keys=frozenset({public_key_bits(bad)})))
    store.check_certificates([ROOT, good])
    STORE.check_certificates([bad])
    for path in ([bad], [good, bad], [bad, ROOT], [edition], [good, edition, ROOT]):
        with pytest.raises(EvidenceError) as caught:
            store.check_certificates(path)
        assert caught.value.reason is Reason.AUTHENTICATOR_STATUS


def test_what_its_anchors_are_called() -> None:
    assert STORE.names == {anchor.name for anchor in STORE}
    assert TrustStore([GENERAL, GENERAL]).names == {GENERAL.name}
    assert TrustStore().names == frozenset()


def test_without_distrusted_keys_no_certificate_is_read() -> None:
    unread = iter([ROOT])
    STORE.check_certificates(unread)
    TrustStore([GENERAL], Distrust({MODEL: "No."})).check_certificates(unread)
    assert next(unread) is ROOT


@pytest.mark.parametrize(
    ("anchors", "refused", "knows"),
    [
        ([], {}, False),
        ([GENERAL, FOR_MODEL, FOR_FORMAT], {MODEL: "No."}, False),
        ([GENERAL, FOR_KEY, FOR_MODEL], {}, True),
        ([GENERAL], {MODEL: "No.", KEY_ID: "No."}, True),
    ],
)
def test_key_identifiers_matter_only_if_one_is_known(
    anchors: list[TrustAnchor], refused: dict[bytes, str], knows: bool
) -> None:
    assert TrustStore(anchors, Distrust(refused)).knows_keys is knows


@pytest.mark.parametrize(
    ("name", "aaguids", "key_ids"),
    [("", set(), set()), ("a", {b"\x01" * 15}, set()), ("a", {MODEL, b""}, set()), ("a", set(), {b"\x01" * 16})],
)
def test_anchors_that_make_no_sense(name: str, aaguids: set[bytes], key_ids: set[bytes]) -> None:
    with pytest.raises(UsageError):
        TrustAnchor(name, ROOT, aaguids=frozenset(aaguids), key_ids=frozenset(key_ids))


@pytest.mark.parametrize(
    ("anchor", "aaguid", "key_id", "covered"),
    [
        (GENERAL, OTHER, OTHER_KEY_ID, True),
        (FOR_MODEL, MODEL, OTHER_KEY_ID, True),
        (FOR_MODEL, OTHER, OTHER_KEY_ID, False),
        (FOR_KEY, OTHER, KEY_ID, True),
        (FOR_KEY, OTHER, OTHER_KEY_ID, False),
    ],
)
def test_an_anchor_for_models_covers_none_but_these(
    anchor: TrustAnchor, aaguid: bytes, key_id: bytes, covered: bool
) -> None:
    assert anchor.covers("packed", aaguid=aaguid, key_ids=[key_id]) is covered


def test_whether_any_model_is_distrusted() -> None:
    assert TrustStore([GENERAL], Distrust({MODEL: "No."})).distrusts_models is True
    assert TrustStore([GENERAL], Distrust(keys=frozenset({b"key"}))).distrusts_models is False
    assert TrustStore().distrusts_models is False


def test_nothing_is_distrusted_unless_it_is_said() -> None:
    assert (Distrust().models, Distrust().keys) == ({}, frozenset())


def test_a_store_with_one_anchor_more_distrusts_the_same_and_leaves_the_first_alone() -> None:
    first = TrustStore([GENERAL], Distrust({OTHER: "No."}))
    second = first.including(FOR_MODEL)
    assert (list(first), list(second)) == ([GENERAL], [GENERAL, FOR_MODEL])
    assert second.anchors_for("packed", aaguid=MODEL) == (FOR_MODEL, GENERAL)
    with pytest.raises(EvidenceError):
        second.check_model(aaguid=OTHER)
