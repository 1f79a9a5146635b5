"""Evidence of a TPM held against its transcript: each check refuses with its reason, in its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation.tpm_registration import (
    TPM_AAGUID,
    VerifiedTpm,
    check_endorsement_primary,
    check_gated_key,
    verify_channel_key,
    verify_tpm_registration,
)
from keyvouch.attestation.tpm_structures import TpmAttest, TpmHash, TpmPublic
from keyvouch.errors import EvidenceError, KeyvouchError, Reason
from keyvouch.statement import Purpose, challenge
from keyvouch_bench.device import SoftKey
from support.tpm_device import CHANNEL, FIRMWARE, GATED, key_policy
from support.tpm_forge import SHA384, attestation_key, ec_key, public_area, scheme
from support.tpm_stage import ANCHOR, AUTHORITY, RP_ID, EndorsedTpm, Stage, certification


@pytest.fixture
def stage() -> Stage:
    return Stage()


def verify(stage: Stage, **changes: Any) -> VerifiedTpm:
    given = {"transcript": stage.transcript, "statement": stage.statement, "pin_index": stage.pin_index()} | changes
    registration = given.pop("registration", None) or stage.registration()
    return verify_tpm_registration(registration, **given)


def reason_of(work: Callable[[], object]) -> Reason:
    with pytest.raises(KeyvouchError) as refused:
        work()
    assert refused.value.fix
    return refused.value.reason


def test_a_good_registration_is_a_key_in_a_tpm_that_enforces_its_pin(stage: Stage):
    verified = verify(stage)
    a = verified.assurance
    assert (a.protection, a.verification, a.provenance, a.anchor) == (
        Protection.TPM,
        Verification.HARDWARE_GATED,
        Provenance.ATTESTED,
        ANCHOR,
    )
    assert verified.key == stage.area()
    assert verified.firmware_version == FIRMWARE
    assert (verified.clock.reset_count, verified.clock.restart_count, verified.clock.safe) == (5, 0, True)
    assert len(TPM_AAGUID) == 16


def test_wrong_pins_that_left_a_try_are_no_matter(stage: Stage):
    assert verify(stage, pin_index=stage.pin_index(count=2)).key == stage.area()


def test_another_format_or_a_chain_that_is_none(stage: Stage):
    client_data, attestation = SoftKey(RP_ID, bytes(32), stage.key).register(
        challenge(Purpose.REGISTRATION, stage.statement)
    )
    self_attested = stage.verified(client_data, attestation)
    assert reason_of(lambda: verify(stage, registration=self_attested)) is Reason.TPM_ACTIVATION
    good = stage.registration()
    unproved = replace(good, attestation=replace(good.attestation, provenance=Provenance.SELF, anchor=""))
    assert reason_of(lambda: verify(stage, registration=unproved)) is Reason.TPM_ACTIVATION
    packed = replace(good, attestation=replace(good.attestation, format="packed"))
    assert reason_of(lambda: verify(stage, registration=packed)) is Reason.TPM_ACTIVATION


def test_another_certificate_of_the_same_key(stage: Stage):
    named = EndorsedTpm(stage.manufacturer, "TEST1", "id:00020008", ANCHOR)
    other = stage.registration(certificate=AUTHORITY.certify(stage.tpm.ak.public_key(), named))
    assert reason_of(lambda: verify(stage, registration=other)) is Reason.TPM_ACTIVATION
    empty = replace(stage.transcript, certificate=b"")
    assert reason_of(lambda: verify(stage, transcript=empty)) is Reason.TPM_ACTIVATION


GATES_LEFT_OPEN: dict[str, tuple[dict[str, Any], Reason]] = {
    "userWithAuth": ({"attributes": GATED | 0x40}, Reason.TPM_KEY_ATTRIBUTES),
    "adminWithPolicy": ({"attributes": GATED | 0x80}, Reason.TPM_KEY_ATTRIBUTES),
    "both": ({"attributes": GATED | 0xC0}, Reason.TPM_KEY_ATTRIBUTES),
    "no noDA": ({"attributes": GATED & ~0x400}, Reason.TPM_KEY_ATTRIBUTES),
    "not fixedTPM": ({"attributes": GATED & ~0x2}, Reason.TPM_KEY_ATTRIBUTES),
    "another policy": ({"policy": b"\x01" * 32}, Reason.TPM_KEY_POLICY),
    "no policy": ({"policy": b""}, Reason.TPM_KEY_ATTRIBUTES),
    "a policy of SHA-384": ({"name_algorithm": SHA384, "policy": b"\x01" * 48}, Reason.TPM_KEY_POLICY),
}


@pytest.mark.parametrize("gate", GATES_LEFT_OPEN)
def test_a_key_that_opens_without_the_pin(stage: Stage, gate: str):
    changes, reason = GATES_LEFT_OPEN[gate]
    area = TpmPublic(stage.area(**changes))
    assert reason_of(lambda: check_gated_key(area, stage.gate)) is reason
    check_gated_key(TpmPublic(stage.area()), stage.gate)


def test_what_is_wrong_with_a_key_is_named(stage: Stage):
    for attributes, missing, forbidden in ((GATED & ~0x400, "NO_DA", ""), (GATED | 0x40, "", "USER_WITH_AUTH")):
        with pytest.raises(EvidenceError) as refused:
            check_gated_key(TpmPublic(stage.area(attributes=attributes)), stage.gate)
        assert refused.value.metadata == {"missing": missing, "forbidden": forbidden}


def test_a_key_outside_the_gate_is_refused_before_the_index_is_looked_at(stage: Stage):
    loose = stage.registration(stage.area(policy=key_policy(bytes(stage.gate.unwritten))))
    false_index = replace(stage.pin_index(), signature=b"")
    assert reason_of(lambda: verify(stage, registration=loose, pin_index=false_index)) is Reason.TPM_KEY_POLICY
    assert reason_of(lambda: verify(stage, pin_index=false_index)) is Reason.SIGNATURE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limit": 4}, Reason.TPM_NV_INDEX),
        ({"limit": 2}, Reason.TPM_NV_INDEX),
        ({"count": 3}, Reason.TPM_NV_INDEX),
        ({"count": 2**32 - 1}, Reason.TPM_NV_INDEX),
        ({"statement": b"another"}, Reason.TPM_NONCE),
        ({"magic": b"\xffTCF"}, Reason.TPM_MAGIC),
        ({"signer": b"\x00\x0b" + bytes(32)}, Reason.TPM_AK_ATTRIBUTES),
    ],
)
def test_a_pin_index_that_is_not_as_it_was_allowed(stage: Stage, changes: dict[str, Any], reason: Reason):
    bad = stage.pin_index(**changes)
    assert reason_of(lambda: verify(stage, pin_index=bad)) is reason


def test_what_a_pin_index_holds_instead_is_told(stage: Stage):
    for count, limit in ((0, 4), (3, 3), (0, 1 << 24 | 3)):
        with pytest.raises(EvidenceError) as refused:
            verify(stage, pin_index=stage.pin_index(count=count, limit=limit))
        assert refused.value.reason is Reason.TPM_NV_INDEX
        assert refused.value.metadata == {"limit": str(limit), "count": str(count)}


def test_a_pin_index_that_is_not_written(stage: Stage):
    unwritten = stage.pin_index(index=bytes(stage.gate.unwritten))
    assert reason_of(lambda: verify(stage, pin_index=unwritten)) is Reason.TPM_NAME


def test_another_attestation_key_than_the_transcript_s(stage: Stage):
    other = replace(stage.transcript, attestation_key=attestation_key(ec_key(77)))
    assert reason_of(lambda: verify(stage, transcript=other)) is Reason.SIGNATURE


@pytest.mark.parametrize("digest", [0x000B, SHA384])
def test_a_primary_key_of_the_endorsement_hierarchy_is_known_by_its_qualified_name(stage: Stage, digest: int):
    stage.tpm.ak_changes = {"name_algorithm": digest, "scheme": scheme(0x0018)}
    ak = stage.tpm.ak_area
    qualified = ak.name[:2] + TpmHash(digest).digest(b"\x40\x00\x00\x0b" + ak.name)
    good = TpmAttest(stage.pin_index(signer=qualified).attest)
    check_endorsement_primary(ak, good)
    owner = ak.name[:2] + TpmHash(digest).digest(b"\x40\x00\x00\x01" + ak.name)
    for signer in (owner, ak.name, qualified[:-1] + bytes([qualified[-1] ^ 1]), b""):
        said = TpmAttest(stage.pin_index(signer=signer).attest)
        assert reason_of(lambda s=said: check_endorsement_primary(ak, s)) is Reason.TPM_AK_ATTRIBUTES


def test_a_channel_key_in_the_tpm(stage: Stage):
    channel = ec.generate_private_key(ec.SECP256R1())
    area = public_area(channel, attributes=CHANNEL)
    nonce = challenge(Purpose.CHANNEL_KEY, stage.statement)

    def judge(public: bytes, said: Any) -> TpmPublic:
        return verify_channel_key(
            transcript=stage.transcript, statement=stage.statement, public=public, certification=certification(said)
        )

    assert judge(area, stage.tpm.certify(area, nonce)).key == channel.public_key()
    other = public_area(ec_key(5), attributes=CHANNEL)
    assert reason_of(lambda: judge(other, stage.tpm.certify(area, nonce))) is Reason.TPM_NAME
    assert reason_of(lambda: judge(area, stage.tpm.certify(area, bytes(32)))) is Reason.TPM_NONCE
    assert reason_of(lambda: judge(b"", stage.tpm.certify(area, nonce))) is Reason.TPM_PARSE
    loose = public_area(channel, attributes=CHANNEL & ~0x2)
    assert reason_of(lambda: judge(loose, stage.tpm.certify(loose, nonce))) is Reason.TPM_KEY_ATTRIBUTES


def test_a_maker_that_nobody_registered_needs_an_anchor_that_says_so():
    stage = Stage(manufacturer="id:00001014")
    assert reason_of(stage.registration) is Reason.ATTESTATION_CERTIFICATE
    allowed = stage.registration(manufacturers=("id:00001014",))
    facts: Any = allowed.attestation.facts
    assert facts.manufacturer == "id:00001014"
    assert verify(stage, registration=allowed).assurance.anchor == ANCHOR
    with pytest.raises(KeyvouchError):
        stage.registration(manufacturers=("id:00001015",))
