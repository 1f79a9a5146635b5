"""Anchors out of metadata vouch for one model each, in its own formats, and only while it is accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation import (
    AttestationRequirement,
    Distrust,
    TrustAnchor,
    TrustStore,
    assurance_of,
    verify_registration,
)
from keyvouch.attestation.certificates import key_identifier, public_key_bits
from keyvouch.attestation.metadata import Metadata
from keyvouch.attestation.metadata_anchors import distrust, trust_anchors
from keyvouch.attestation.metadata_policy import CertificationLevel, MetadataPolicy
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, Reason
from support.attestation_forge import MODEL, NOT_CA, aaguid_extension, key_for, name, registration, signed_by, verdict
from support.forge import AAGUID as FORGED_AAGUID
from support.forge import CREDENTIAL_ID, INSTANT, RP_ID_HASH, Forge
from support.metadata_forge import (
    AAGUID,
    AAGUID_TEXT,
    BEGIN,
    END,
    MAKER,
    Holder,
    der64,
    entry,
    new_root,
    renewed,
    report,
    statement,
    u2f_entry,
    verified,
)

POLICY = MetadataPolicy()
OTHER_MAKER = new_root("Other Maker Root")
KEY_ID, OTHER_KEY_ID = "0a" * 20, "ff" * 20
FORGED_TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"
OTHER_TEXT = "0132d110-bf4e-4208-a403-ab4f5f12efe5"


def anchors(*entries: Any, policy: MetadataPolicy = POLICY) -> tuple[TrustAnchor, ...]:
    metadata = verified(*entries)
    assert metadata.rejected == ()
    return trust_anchors(metadata, policy=policy, instant=INSTANT)


def of(**changes: Any) -> TrustAnchor:
    """The one anchor of an entry whose statement is changed."""
    (anchor,) = anchors(entry(metadataStatement=statement(**changes)))
    return anchor


def test_the_anchor_of_a_fido2_model() -> None:
    assert of() == TrustAnchor(
        f"mds:{AAGUID_TEXT}",
        MAKER.certificate,
        frozenset({"packed", "android-key"}),
        frozenset({AAGUID}),
        frozenset(),
        Protection.SECURE_ELEMENT,
        Verification.HARDWARE_GATED,
    )


def test_the_anchors_of_u2f_models() -> None:
    found = anchors(u2f_entry(OTHER_KEY_ID, KEY_ID))
    assert [(anchor.name, anchor.key_ids, anchor.aaguids) for anchor in found] == [
        (f"mds:{KEY_ID}", {bytes.fromhex(KEY_ID)}, frozenset()),
        (f"mds:{OTHER_KEY_ID}", {bytes.fromhex(OTHER_KEY_ID)}, frozenset()),
    ]
    assert {anchor.formats for anchor in found} == {frozenset({"fido-u2f"})}


def test_an_anchor_for_every_root_once() -> None:
    roots = [der64(MAKER.certificate), der64(OTHER_MAKER.certificate), der64(MAKER.certificate)]
    found = anchors(entry(metadataStatement=statement(attestationRootCertificates=roots)))
    assert [anchor.certificate for anchor in found] == [MAKER.certificate, OTHER_MAKER.certificate]
    assert {anchor.name for anchor in found} == {f"mds:{AAGUID_TEXT}"}


def test_models_without_anchors() -> None:
    for item in (
        entry(metadataStatement=None),
        entry(metadataStatement=statement(attestationRootCertificates=[])),
        entry(metadataStatement=statement(attestationTypes=["basic_surrogate"])),
        entry(metadataStatement=statement(attestationTypes=["ecdaa", "none"])),
        entry(metadataStatement=statement(attestationTypes=[])),
        entry(statusReports=[report("REVOKED")]),
        entry(statusReports=[]),
    ):
        assert anchors(item) == ()
    assert len(anchors(entry(metadataStatement=None), entry(aaguid=OTHER_TEXT))) == 1


def test_a_policy_decides_which_models_have_anchors() -> None:
    assert len(anchors(entry(), policy=MetadataPolicy(minimum_certification=CertificationLevel.L1))) == 1
    assert anchors(entry(), policy=MetadataPolicy(minimum_certification=CertificationLevel.L2)) == ()


@pytest.mark.parametrize(
    ("types", "formats"),
    [
        (["basic_full"], {"packed", "android-key"}),
        (["basic_full", "basic_surrogate"], {"packed", "android-key"}),
        (["attca"], {"packed", "tpm"}),
        (["anonca"], {"apple"}),
        (["basic_full", "attca", "anonca"], {"packed", "android-key", "tpm", "apple"}),
    ],
)
def test_formats_of_fido2(types: list[str], formats: set[str]) -> None:
    assert of(attestationTypes=types).formats == formats


@pytest.mark.parametrize("kind", ["basic_full", "attca", "anonca", "basic_surrogate"])
def test_formats_of_u2f(kind: str) -> None:
    found = anchors(u2f_entry(KEY_ID, metadataStatement=statement(protocolFamily="u2f", attestationTypes=[kind])))
    assert [anchor.formats for anchor in found] == [{"fido-u2f"}] * (kind in ("basic_full", "attca"))


@pytest.mark.parametrize(
    ("words", "protection"),
    [
        (["hardware", "secure_element"], Protection.SECURE_ELEMENT),
        (["hardware", "secure_element", "remote_handle"], Protection.SECURE_ELEMENT),
        (["secure_element"], Protection.SECURE_ELEMENT),
        (["hardware"], Protection.HARDWARE),
        (["hardware", "remote_handle"], Protection.HARDWARE),
        (["hardware", "tee"], Protection.TEE),
        (["tee"], Protection.TEE),
        (["hardware", "tee", "secure_element"], Protection.TEE),
        (["software"], Protection.SOFTWARE),
        (["software", "remote_handle"], Protection.SOFTWARE),
        (["hardware", "software"], Protection.SOFTWARE),
        (["secure_element", "tee", "software"], Protection.SOFTWARE),
        (["remote_handle"], Protection.SOFTWARE),
        (["unheard_of"], Protection.SOFTWARE),
        ([], Protection.SOFTWARE),
    ],
)
def test_protection(words: list[str], protection: Protection) -> None:
    assert of(keyProtection=words).protection is protection


@pytest.mark.parametrize(
    ("matchers", "keys", "verification"),
    [
        (["on_chip"], ["hardware"], Verification.HARDWARE_GATED),
        (["tee"], ["hardware", "tee"], Verification.HARDWARE_GATED),
        (["tee", "on_chip"], ["hardware"], Verification.HARDWARE_GATED),
        (["software"], ["hardware"], Verification.SOFTWARE_GATED),
        (["software", "on_chip"], ["hardware"], Verification.SOFTWARE_GATED),
        (["unheard_of"], ["hardware"], Verification.SOFTWARE_GATED),
        (["unheard_of", "tee"], ["hardware"], Verification.SOFTWARE_GATED),
        ([], ["hardware"], Verification.SOFTWARE_GATED),
        (["on_chip"], ["software"], Verification.SOFTWARE_GATED),
    ],
)
def test_verification_by_matchers(matchers: list[str], keys: list[str], verification: Verification) -> None:
    assert of(matcherProtection=matchers, keyProtection=keys).verification is verification


@pytest.mark.parametrize(
    ("methods", "verification"),
    [
        *(
            ([[method]], Verification.HARDWARE_GATED)
            for method in (
                "fingerprint_internal",
                "passcode_internal",
                "voiceprint_internal",
                "faceprint_internal",
                "eyeprint_internal",
                "pattern_internal",
                "handprint_internal",
                "passcode_external",
                "pattern_external",
            )
        ),
        ([["none"], ["presence_internal", "passcode_external"]], Verification.HARDWARE_GATED),
        ([["presence_internal"]], Verification.NONE),
        ([["location_internal"], ["none"]], Verification.NONE),
        ([["all"]], Verification.NONE),
        ([["unheard_of"]], Verification.NONE),
        ([[]], Verification.NONE),
        ([], Verification.NONE),
    ],
)
def test_verification_by_methods(methods: list[list[str]], verification: Verification) -> None:
    details = [[{"userVerificationMethod": method} for method in alternative] for alternative in methods]
    assert of(userVerificationDetails=details).verification is verification


# Compromised attestation keys


def compromised(*certificates: Any) -> dict[str, Any]:
    roots = [der64(MAKER.certificate), der64(OTHER_MAKER.certificate)]
    reports = [report("ATTESTATION_KEY_COMPROMISE", certificate=der64(item)) for item in certificates]
    return entry(statusReports=[report(), *reports], metadataStatement=statement(attestationRootCertificates=roots))


def test_a_compromised_root_is_no_anchor() -> None:
    assert [anchor.certificate for anchor in anchors(compromised())] == [MAKER.certificate, OTHER_MAKER.certificate]
    assert [anchor.certificate for anchor in anchors(compromised(MAKER.certificate))] == [OTHER_MAKER.certificate]
    assert anchors(compromised(MAKER.certificate, OTHER_MAKER.certificate)) == ()


def test_a_compromised_certificate_below_a_root_leaves_no_anchor() -> None:
    batch = MAKER.issue("Batch").certificate
    assert anchors(compromised(batch)) == ()
    without = report("ATTESTATION_KEY_COMPROMISE")
    assert anchors(entry(statusReports=[report(), without])) == ()


def test_a_compromised_root_is_no_anchor_in_any_edition() -> None:
    def found(*roots: x509.Certificate) -> list[x509.Certificate]:
        reports = [report(), report("ATTESTATION_KEY_COMPROMISE", certificate=der64(MAKER.certificate))]
        said = statement(attestationRootCertificates=[der64(root) for root in roots])
        return [anchor.certificate for anchor in anchors(entry(statusReports=reports, metadataStatement=said))]

    edition, other = renewed(MAKER), OTHER_MAKER.certificate
    assert len(anchors(entry(metadataStatement=statement(attestationRootCertificates=[der64(edition)])))) == 1
    assert found(edition) == []
    assert found(MAKER.certificate, edition) == []
    assert found(edition, other) == [other]


# Registrations


FORGE = Forge()
LEAF_KEY = key_for(Algorithm.ES256, "mds leaf")


def leaf(maker: Holder = MAKER, aaguid: bytes | None = FORGED_AAGUID) -> x509.Certificate:
    """A packed attestation certificate under a maker's root."""
    issuer, public_key = maker.certificate.subject, LEAF_KEY.public_key()
    builder = x509.CertificateBuilder(issuer, name(*MODEL), public_key, 7, BEGIN, END).add_extension(NOT_CA, True)
    if aaguid:
        builder = builder.add_extension(aaguid_extension(aaguid), False)
    return builder.sign(maker.key, hashes.SHA256())


def packed(certificates: list[Any], store: TrustStore) -> dict[str, Any]:
    make = signed_by(LEAF_KEY, Algorithm.ES256, certificates)
    return registration(FORGE, "packed", make, anchors=store, attestation=AttestationRequirement.TRUSTED)


def with_root(text: str, root: Any, **changes: Any) -> dict[str, Any]:
    roots = [der64(root.certificate)]
    return entry(aaguid=text, metadataStatement=statement(attestationRootCertificates=roots), **changes)


def test_a_model_is_attested_under_its_own_root() -> None:
    store = TrustStore(anchors(with_root(FORGED_TEXT, MAKER), with_root(OTHER_TEXT, OTHER_MAKER)))
    evidence = verify_registration(**packed([leaf()], store))
    assurance = assurance_of(evidence)
    assert assurance.text() == f"secure_element/hardware_gated/attested/mds:{FORGED_TEXT}"


def test_a_model_is_not_attested_under_the_root_of_another() -> None:
    store = TrustStore(anchors(with_root(FORGED_TEXT, MAKER), with_root(OTHER_TEXT, OTHER_MAKER)))
    for certificates in ([leaf(OTHER_MAKER)], [leaf(OTHER_MAKER, None)], [leaf(OTHER_MAKER), OTHER_MAKER.certificate]):
        assert verdict(packed(certificates, store)) is Reason.TRUST_CHAIN


def test_a_model_without_an_entry_is_not_attested() -> None:
    store = TrustStore(anchors(with_root(OTHER_TEXT, MAKER)))
    assert verdict(packed([leaf()], store)) is Reason.TRUST_CHAIN


def test_a_revoked_model_is_not_attested() -> None:
    store = TrustStore(anchors(with_root(FORGED_TEXT, MAKER, statusReports=[report("REVOKED")])))
    assert verdict(packed([leaf()], store)) is Reason.TRUST_CHAIN


def test_an_attestation_certificate_may_be_the_root_itself() -> None:
    pinned = leaf()
    store = TrustStore(
        anchors(entry(aaguid=FORGED_TEXT, metadataStatement=statement(attestationRootCertificates=[der64(pinned)])))
    )
    assert verdict(packed([pinned], store)) is None
    assert verdict(packed([leaf(OTHER_MAKER)], store)) is Reason.TRUST_CHAIN


def test_a_self_attested_key_of_a_listed_model_is_not_attested_W4() -> None:
    store = TrustStore(anchors(with_root(FORGED_TEXT, MAKER)))
    for format, provenance in (("packed", Provenance.SELF), ("none", Provenance.UNATTESTED)):  # noqa: A001
        evidence = verify_registration(**FORGE.registration(format=format, anchors=store))
        assert evidence.aaguid == FORGED_AAGUID
        assert assurance_of(evidence).provenance is provenance
        assert assurance_of(evidence).protection is Protection.SOFTWARE
        with pytest.raises(EvidenceError) as caught:
            verify_registration(
                **FORGE.registration(format=format, anchors=store, attestation=AttestationRequirement.TRUSTED)
            )
        assert caught.value.reason is Reason.ATTESTATION_REQUIRED


def u2f(attestation: Any, store: TrustStore) -> dict[str, Any]:
    def make(_data: bytes, client_data_hash: bytes) -> dict[str, object]:
        point = FORGE.private_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        message = b"\x00" + RP_ID_HASH + client_data_hash + CREDENTIAL_ID + point
        assert isinstance(LEAF_KEY, ec.EllipticCurvePrivateKey)
        signature = LEAF_KEY.sign(message, ec.ECDSA(hashes.SHA256()))
        return {"sig": signature, "x5c": [attestation.public_bytes(Encoding.DER)]}

    return registration(FORGE, "fido-u2f", make, anchors=store, attestation=AttestationRequirement.TRUSTED)


def test_a_u2f_token_is_found_by_the_key_of_its_certificate() -> None:
    attestation = leaf(aaguid=None)
    key_id = key_identifier(attestation).hex()
    u2f_statement = statement(protocolFamily="u2f")
    store = TrustStore(anchors(u2f_entry(OTHER_KEY_ID, key_id, metadataStatement=u2f_statement)))
    assurance = assurance_of(verify_registration(**u2f(attestation, store)))
    assert assurance.text() == f"secure_element/none/attested/mds:{key_id}"
    others = TrustStore(
        anchors(u2f_entry(OTHER_KEY_ID, metadataStatement=u2f_statement), with_root(FORGED_TEXT, MAKER))
    )
    assert verdict(u2f(attestation, others)) is Reason.TRUST_CHAIN
    assert verdict(packed([leaf()], store)) is Reason.TRUST_CHAIN


def test_an_entry_made_by_hand_of_an_unknown_family() -> None:
    (known,) = verified(entry()).entries
    assert known.statement
    made = replace(known, statement=replace(known.statement, protocol_family="uaf"))
    metadata = Metadata(1, known.time_of_last_status_change, (made,), (), 0)
    assert trust_anchors(metadata, policy=POLICY, instant=INSTANT) == ()


# What no anchor may vouch for


def test_models_that_are_refused_are_distrusted_under_every_anchor() -> None:
    key_ids = [KEY_ID, OTHER_KEY_ID]
    revoked = [report(), report("REVOKED")]
    metadata = verified(
        entry(statusReports=revoked),
        entry(aaguid=OTHER_TEXT, metadataStatement=statement()),
        u2f_entry(*key_ids, statusReports=revoked),
    )
    found = distrust(metadata, policy=POLICY, instant=INSTANT)
    assert found.models == dict.fromkeys([AAGUID, *map(bytes.fromhex, key_ids)], "Its status is REVOKED.")
    assert found.keys == frozenset()


def refused_with(*entries: Any, policy: MetadataPolicy = POLICY) -> dict[bytes, str]:
    """The models that are distrusted after a BLOB whose entries are all rejected."""
    metadata = verified(*entries)
    assert (metadata.entries, len(metadata.rejected)) == ((), len(entries))
    found = distrust(metadata, policy=policy, instant=INSTANT)
    assert found.keys == frozenset()
    return dict(found.models)


REVOKED = [report(), report("REVOKED")]
ESCAPES: dict[str, list[Any]] = {
    "twice": [{}, {}],
    "with a good twin": [{}, {"statusReports": [report()]}],
    "after a good twin": [{"statusReports": [report()]}, {}],
    "of an unknown family": [{"metadataStatement": statement(protocolFamily="fido3")}],
    "with a bad root": [{"metadataStatement": statement(attestationRootCertificates=["AAAA"])}],
    "with a bad date elsewhere": [{"statusReports": [report(effectiveDate="soon"), *REVOKED]}],
    "in upper case": [{"aaguid": AAGUID_TEXT.upper()}],
    "without hyphens": [{"aaguid": AAGUID_TEXT.replace("-", "")}],
    "later": [{"statusReports": [report("REVOKED", effectiveDate="2999-01-01")], "timeOfLastStatusChange": None}],
    "of an unknown word": [{"statusReports": [report("UNHEARD_OF")], "timeOfLastStatusChange": None}],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_warning_is_not_lost_with_its_entry(name: str) -> None:
    refused = refused_with(*(entry(**{"statusReports": REVOKED} | changes) for changes in ESCAPES[name]))
    assert list(refused) == [AAGUID]
    assert "cannot be read" in refused[AAGUID]
    control = (entry(**changes | {"statusReports": [report()]}) for changes in ESCAPES[name])
    metadata = verified(*control)
    assert distrust(metadata, policy=POLICY, instant=INSTANT).models == {}


def test_a_rejected_entry_of_u2f_warns_of_all_its_keys() -> None:
    refused = refused_with(u2f_entry(KEY_ID.upper(), OTHER_KEY_ID, statusReports=REVOKED))
    assert refused.keys() == {bytes.fromhex(KEY_ID), bytes.fromhex(OTHER_KEY_ID)}


def test_a_policy_decides_what_a_rejected_entry_warns_of() -> None:
    item = entry(aaguid=AAGUID_TEXT.upper(), statusReports=REVOKED)
    lenient = MetadataPolicy(POLICY.refused_statuses - {"REVOKED"})
    assert refused_with(item, policy=lenient) == {}
    assert refused_with(item).keys() == {AAGUID}


def test_a_rejected_entry_does_not_warn_of_authenticators_without_a_model() -> None:
    zero = "00000000-0000-0000-0000-000000000000"
    assert refused_with(entry(aaguid=zero, statusReports=REVOKED)) == {}


def test_compromised_certificates_are_distrusted_and_their_model_is_not() -> None:
    batch = MAKER.issue("Batch")
    reports = [report(), report("ATTESTATION_KEY_COMPROMISE", certificate=der64(batch.certificate))]
    found = distrust(verified(entry(statusReports=reports)), policy=POLICY, instant=INSTANT)
    assert found.models == {}
    assert found.keys == {public_key_bits(batch.certificate)}


@pytest.mark.parametrize("member", ["certificate", "batchCertificate"])
def test_an_update_for_a_certificate_distrusts_no_key(member: str) -> None:
    for status, keys in (
        ("UPDATE_AVAILABLE", frozenset()),
        ("ATTESTATION_KEY_COMPROMISE", {public_key_bits(MAKER.certificate)}),
    ):
        reports = [report(), report(status, **{member: der64(MAKER.certificate)})]
        metadata = verified(entry(statusReports=reports))
        found = distrust(metadata, policy=POLICY, instant=INSTANT)
        assert (found.models, found.keys) == ({}, keys)
        assert len(trust_anchors(metadata, policy=POLICY, instant=INSTANT)) == (not keys)
    stern = MetadataPolicy(POLICY.refused_statuses | {"UPDATE_AVAILABLE"})
    metadata = verified(
        entry(statusReports=[report(), report("UPDATE_AVAILABLE", certificate=der64(MAKER.certificate))])
    )
    assert distrust(metadata, policy=stern, instant=INSTANT).keys == {public_key_bits(MAKER.certificate)}


def test_reports_that_do_not_count_yet_distrust_nothing() -> None:
    reports = [report(), report("REVOKED", effectiveDate="2026-08-02")]
    found = distrust(verified(entry(statusReports=reports)), policy=POLICY, instant=INSTANT)
    assert (found.models, found.keys) == ({}, frozenset())


PINNED = TrustAnchor("pinned", MAKER.certificate)


def test_a_pinned_root_does_not_vouch_for_a_revoked_model() -> None:
    assert verdict(packed([leaf()], TrustStore([PINNED]))) is None
    metadata = verified(with_root(FORGED_TEXT, MAKER, statusReports=[report("REVOKED")]))
    refused = distrust(metadata, policy=POLICY, instant=INSTANT)
    assert verdict(packed([leaf()], TrustStore([PINNED], refused))) is Reason.AUTHENTICATOR_STATUS


def test_a_pinned_root_does_not_vouch_for_the_key_of_a_revoked_token() -> None:
    attestation = leaf(aaguid=None)
    assert verdict(u2f(attestation, TrustStore([PINNED]))) is None
    refused = Distrust({key_identifier(attestation): "Its status is REVOKED."})
    assert verdict(u2f(attestation, TrustStore([PINNED], refused))) is Reason.AUTHENTICATOR_STATUS


def test_a_pinned_root_does_not_vouch_for_a_compromised_certificate() -> None:
    presented = leaf()
    for certificate in (presented, MAKER.certificate, renewed(MAKER)):
        store = TrustStore([PINNED], Distrust(keys=frozenset({public_key_bits(certificate)})))
        assert verdict(packed([presented], store)) is Reason.AUTHENTICATOR_STATUS
    store = TrustStore([PINNED], Distrust(keys=frozenset({public_key_bits(OTHER_MAKER.certificate)})))
    assert verdict(packed([presented], store)) is None
