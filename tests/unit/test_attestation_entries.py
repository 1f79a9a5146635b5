"""The two entries of verification: expectations, embedding, identity, flags, counters, and the order of checks."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from keyvouch.assurance import Protection, Provenance, Verification
from keyvouch.attestation import (
    AttestationEvidence,
    AttestationRequirement,
    verify_assertion,
    verify_registration,
)
from keyvouch.client_data import CollectedClientData
from keyvouch.cose import Algorithm
from keyvouch.errors import EvidenceError, KeyvouchError, Reason, UsageError
from keyvouch.webauthn import AuthenticatorData, Flags
from support.forge import AAGUID, CHALLENGE, CREDENTIAL_ID, ORIGIN, RP_ID, RP_ID_HASH, UP_UV, USER_HANDLE, Forge
from support.samples import samples

FORGE = Forge()
TOP = "https://portal.example"
BOTH: dict[str, Any] = {"registration": verify_registration, "assertion": verify_assertion}
TYPES = {"registration": "webauthn.create", "assertion": "webauthn.get"}


def run(ceremony: str, **changes: Any) -> Any:
    arguments = getattr(FORGE, ceremony)(**changes)
    return BOTH[ceremony](**arguments)


def refusal(ceremony: str, **changes: Any) -> Reason:
    with pytest.raises(KeyvouchError) as caught:
        run(ceremony, **changes)
    assert caught.value.fix
    return caught.value.reason


def test_controls_and_what_they_prove() -> None:
    registered = run("registration", sign_count=3)
    assert (registered.credential_id, registered.aaguid, registered.sign_count) == (CREDENTIAL_ID, AAGUID, 3)
    assert (registered.public_key, registered.algorithm) == (FORGE.public_key, Algorithm.ES256)
    assert (registered.user_verified, registered.backup_eligible, registered.backup_state) == (True, False, False)
    asserted = run("assertion", sign_count=7)
    assert (asserted.credential_id, asserted.sign_count) == (CREDENTIAL_ID, 7)
    assert (asserted.user_verified, asserted.backup_state) == (True, False)
    assert asserted.client_data.origin == f"keyvouch-agent://{RP_ID}"


@pytest.mark.parametrize("verify", BOTH.values())
def test_every_expectation_is_a_keyword_and_the_dangerous_ones_are_required(verify: Any) -> None:
    parameters = inspect.signature(verify).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    optional = {parameter.name for parameter in parameters if parameter.default is not parameter.empty}
    assert optional == {"allow_cross_origin", "top_origins"}


@pytest.mark.parametrize("ceremony", list(BOTH))
@pytest.mark.parametrize(
    "changes",
    [
        {"challenge": b""},
        {"challenge": bytes(15)},
        {"origins": ORIGIN},
        {"origins": ()},
        {"rp_id": ""},
        {"top_origins": TOP},
    ],
    ids=repr,
)
def test_expectations_that_check_nothing_are_a_mistake_of_the_caller(ceremony: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run(ceremony, **changes)


def test_a_naive_instant_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(UsageError):
        run("registration", instant=datetime(2026, 8, 1))  # noqa: DTZ001


@pytest.mark.parametrize("ceremony", list(BOTH))
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"challenge": bytes(32)}, Reason.CHALLENGE),
        ({"challenge": CHALLENGE[:31]}, Reason.CHALLENGE),
        ({"challenge": CHALLENGE + b"\x00"}, Reason.CHALLENGE),
        ({"origins": {f"https://{RP_ID}"}}, Reason.ORIGIN),
        ({"origins": [ORIGIN + "/", ORIGIN.upper(), ORIGIN[:-1]]}, Reason.ORIGIN),
        ({"rp_id": "example"}, Reason.RP_ID_HASH),
        ({"flags": Flags.UV}, Reason.USER_PRESENCE),
        ({"flags": Flags.UP}, Reason.USER_VERIFICATION),
        ({"client_data": b"{}"}, Reason.CLIENT_DATA_TYPE),
    ],
    ids=repr,
)
def test_what_both_ceremonies_check(ceremony: str, changes: dict[str, Any], reason: Reason) -> None:
    assert refusal(ceremony, **changes) is reason


@pytest.mark.parametrize("ceremony", list(BOTH))
def test_user_verification_only_where_required(ceremony: str) -> None:
    assert not run(ceremony, flags=Flags.UP, require_user_verification=False).user_verified


@pytest.mark.parametrize("ceremony", list(BOTH))
@pytest.mark.parametrize(
    ("cross_origin", "top_origin", "changes", "reason"),
    [
        (False, None, {}, None),
        (False, None, {"allow_cross_origin": True, "top_origins": {TOP}}, None),
        (True, None, {}, Reason.CROSS_ORIGIN),
        (True, None, {"allow_cross_origin": True}, None),
        (True, None, {"allow_cross_origin": True, "top_origins": {TOP}}, Reason.TOP_ORIGIN),
        (True, TOP, {}, Reason.TOP_ORIGIN),
        (True, TOP, {"top_origins": {TOP}}, Reason.CROSS_ORIGIN),
        (True, TOP, {"allow_cross_origin": True}, Reason.TOP_ORIGIN),
        (True, TOP, {"allow_cross_origin": True, "top_origins": {TOP + "."}}, Reason.TOP_ORIGIN),
        (True, TOP, {"allow_cross_origin": True, "top_origins": {TOP}}, None),
        (False, TOP, {"allow_cross_origin": True, "top_origins": {TOP}}, Reason.TOP_ORIGIN),
    ],
)
def test_embedding_w7(
    ceremony: str, cross_origin: bool, top_origin: str | None, changes: dict[str, Any], reason: Reason | None
) -> None:
    client_data = CollectedClientData.build(
        TYPES[ceremony], CHALLENGE, ORIGIN, cross_origin=cross_origin, top_origin=top_origin
    )
    if reason is None:
        run(ceremony, client_data=client_data, **changes)
    else:
        assert refusal(ceremony, client_data=client_data, **changes) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"algorithms": [Algorithm.EDDSA]}, Reason.ALGORITHM_NOT_ALLOWED),
        ({"algorithms": []}, Reason.ALGORITHM_NOT_ALLOWED),
        ({"format": "Packed", "statement": {}}, Reason.ATTESTATION_FORMAT),
        ({"format": "", "statement": {}}, Reason.ATTESTATION_FORMAT),
        ({"format": "none", "statement": {"alg": -7}}, Reason.ATTESTATION_STATEMENT),
        ({"attestation": AttestationRequirement.TRUSTED}, Reason.ATTESTATION_REQUIRED),
        ({"attestation": AttestationRequirement.TRUSTED, "format": "none"}, Reason.ATTESTATION_REQUIRED),
    ],
    ids=repr,
)
def test_what_registrations_check_w3(changes: dict[str, Any], reason: Reason) -> None:
    assert refusal("registration", **changes) is reason


@pytest.mark.parametrize("ceremony", list(BOTH))
def test_the_shortest_challenge_that_may_be_expected(ceremony: str) -> None:
    collected = CollectedClientData.build(TYPES[ceremony], CHALLENGE[:16], ORIGIN)
    assert run(ceremony, client_data=collected, challenge=CHALLENGE[:16]).client_data == collected
    with pytest.raises(UsageError):
        run(ceremony, client_data=collected, challenge=CHALLENGE[:15])


def test_the_response_need_not_name_the_user() -> None:
    assert run("assertion", user_handle=None).credential_id == CREDENTIAL_ID


def test_a_trusted_attestation_is_good_where_one_is_required() -> None:
    arguments = samples()["packed"].arguments() | {"attestation": AttestationRequirement.TRUSTED}
    evidence = verify_registration(**arguments).attestation
    assert (evidence.provenance, evidence.anchor) == (Provenance.ATTESTED, "packed")


def test_the_refusal_of_an_algorithm_names_those_that_are_allowed() -> None:
    with pytest.raises(EvidenceError) as caught:
        run("registration", algorithms=[Algorithm.EDDSA, Algorithm.RS256])
    assert "EDDSA, RS256" in caught.value.fix


def test_evidence_proves_no_more_than_it_says() -> None:
    evidence = AttestationEvidence("none", Provenance.UNATTESTED)
    assert (evidence.protection, evidence.verification) == (Protection.SOFTWARE, Verification.SOFTWARE_GATED)
    assert (evidence.anchor, evidence.path, evidence.facts) == ("", (), None)


def test_requirements_are_called_as_in_policies() -> None:
    assert [requirement.value for requirement in AttestationRequirement] == ["optional", "trusted"]


def test_without_attestation_the_credential_is_good_where_that_is_enough() -> None:
    assert run("registration", format="none").attestation.format == "none"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"credential_id": CREDENTIAL_ID + b"\x00"}, Reason.CREDENTIAL_ID),
        ({"credential_id": b""}, Reason.CREDENTIAL_ID),
        ({"user_handle": b""}, Reason.USER_HANDLE),
        ({"user_handle": USER_HANDLE[:-1]}, Reason.USER_HANDLE),
        ({"credential": FORGE.record(user_handle=b"another user")}, Reason.USER_HANDLE),
        ({"credential": FORGE.record(public_key=Forge().public_key)}, Reason.SIGNATURE),
        ({"credential": FORGE.record(backup_eligible=True)}, Reason.BACKUP_ELIGIBLE_CHANGED),
        ({"flags": UP_UV | Flags.BE}, Reason.BACKUP_ELIGIBLE_CHANGED),
        (
            {"authenticator_data": AuthenticatorData.build(RP_ID_HASH, UP_UV, 6, attested=FORGE.attested())},
            Reason.ATTESTED_DATA,
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_what_assertions_check_w2(changes: dict[str, Any], reason: Reason) -> None:
    assert refusal("assertion", **changes) is reason


def test_backup_state_may_change() -> None:
    record = FORGE.record(backup_eligible=True)
    assert run("assertion", credential=record, flags=UP_UV | Flags.BE | Flags.BS).backup_state
    assert not run("assertion", credential=record, flags=UP_UV | Flags.BE).backup_state


@pytest.mark.parametrize(
    ("stored", "new", "accepted"),
    [
        (0, 0, True),
        (0, 1, True),
        (5, 6, True),
        (5, 0xFFFFFFFF, True),
        (5, 5, False),
        (10, 5, False),
        (5, 0, False),
        (1, 0, False),
        (0xFFFFFFFF, 0, False),
    ],
)
def test_sign_counter_w5(stored: int, new: int, accepted: bool) -> None:
    record = replace(FORGE.record(), sign_count=stored)
    if accepted:
        assert run("assertion", credential=record, sign_count=new).sign_count == new
    else:
        with pytest.raises(EvidenceError) as caught:
            run("assertion", credential=record, sign_count=new)
        assert caught.value.reason is Reason.SIGN_COUNT
        assert caught.value.metadata == {"stored": str(stored), "received": str(new)}


def test_the_counter_of_a_forged_assertion_is_not_told() -> None:
    assert refusal("assertion", sign_count=1, signature=b"") is Reason.SIGNATURE


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.name)
def test_assertions_of_every_algorithm(algorithm: Algorithm) -> None:
    forge = Forge(algorithm)
    assert verify_assertion(**forge.assertion()).sign_count == 6
    with pytest.raises(EvidenceError) as caught:
        verify_assertion(**forge.assertion(signature=FORGE.sign(b"something else")))
    assert caught.value.reason is Reason.SIGNATURE


def test_a_registration_is_no_assertion_and_the_other_way_round() -> None:
    created = CollectedClientData.build("webauthn.create", CHALLENGE, ORIGIN)
    asserted = CollectedClientData.build("webauthn.get", CHALLENGE, ORIGIN)
    assert refusal("assertion", client_data=created) is Reason.CLIENT_DATA_TYPE
    assert refusal("registration", client_data=asserted) is Reason.CLIENT_DATA_TYPE
