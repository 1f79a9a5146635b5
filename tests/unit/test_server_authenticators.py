"""Rules for models of authenticators: the decision, the lists in a policy, and registered keys beside metadata."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.assurance import Protection, Provenance
from keyvouch.attestation import Distrust, TrustStore
from keyvouch.attestation.subject_key import key_identifier, public_key_bits
from keyvouch.cose import CoseKey
from keyvouch.errors import MalformedError, Reason, RefusedError
from keyvouch.ids import CredentialId, DeviceId, TenantId, UserId
from keyvouch.v1 import administration_pb2 as admin
from keyvouch.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, Flags
from keyvouch_server.domain.authenticators import AuthenticatorRules, Model, decide_model
from keyvouch_server.domain.model import Credential, SignInWay
from keyvouch_server.domain.policy import (
    Policy,
    RegistrationPolicy,
    SecurityKeyPolicy,
    required_by,
)
from keyvouch_server.domain.policy_check import check_policy
from keyvouch_server.rpc.policy_messages import policy_from, policy_message
from keyvouch_server.use_cases.key_standing import check_key
from support.attestation_forge import NOT_CA, ROOT

NAME, OTHER = "2fc0579f-8113-47ea-b116-bb5a8db9202a", "ee882879-721c-4913-9775-3dfcce97072a"
AAGUID = uuid.UUID(NAME).bytes
ATTESTED, SELF, NOBODY = Provenance.ATTESTED, Provenance.SELF, Provenance.UNATTESTED
ALLOWED, BLOCKED = AuthenticatorRules(allowed=(NAME,)), AuthenticatorRules(blocked=(NAME,))
KEY = ec.generate_private_key(ec.SECP256R1())
LEAF = ROOT.issue(KEY, [(NOT_CA, True)])


@pytest.mark.parametrize(
    ("model", "allowed", "blocked"),
    [
        (Model(AAGUID, "packed", ATTESTED), True, False),
        (Model(AAGUID, "packed", SELF), False, False),
        (Model(AAGUID, "none", NOBODY), False, False),
        (Model(bytes(16), "none", NOBODY), False, True),
        (Model(bytes(16), "packed", ATTESTED), False, True),
        (Model(bytes(16), "fido-u2f", ATTESTED), False, True),
        (Model(AAGUID, "fido-u2f", ATTESTED), False, False),
        (Model(AAGUID, "android-key", ATTESTED), False, False),
        (Model(AAGUID, "apple", ATTESTED), False, False),
        (Model(uuid.UUID(OTHER).bytes, "packed", ATTESTED), False, True),
        (Model(AAGUID, "tpm", ATTESTED), True, True),
        (Model(AAGUID, "piv", ATTESTED), True, True),
        (Model(AAGUID, "tpm", NOBODY), False, False),
        (Model(AAGUID, "piv", SELF), False, False),
        (Model(AAGUID, "packed", Provenance.CERTIFIED), False, False),
        (Model(AAGUID, "packed", Provenance.CERTIFIED, Protection.TPM), False, False),
        (Model(AAGUID, "packed", Provenance.CERTIFIED, Protection.SMARTCARD), True, True),
        (Model(AAGUID, "packed", SELF, Protection.SMARTCARD), False, False),
    ],
)
def test_h6_what_is_accepted_by_a_list_of_allowed_and_by_one_of_blocked_W4(model: Model, allowed: bool, blocked: bool):
    decide_model(AuthenticatorRules(), model)
    for rules, good in ((ALLOWED, allowed), (BLOCKED, blocked)):
        if good:
            decide_model(rules, model)
            continue
        with pytest.raises(RefusedError) as refusal:
            decide_model(rules, model)
        assert refusal.value.reason is Reason.AUTHENTICATOR_MODEL
        assert refusal.value.fix
        assert refusal.value.metadata == {"aaguid": model.name, "format": model.format}


def with_rules(rules: AuthenticatorRules) -> Policy:
    return replace(Policy(), registration=replace(RegistrationPolicy(), authenticators=rules))


def test_rules_survive_document_and_wire():
    policy = check_policy(with_rules(AuthenticatorRules((NAME,), (OTHER,))))
    policy = replace(policy, security_key=SecurityKeyPolicy(False, "hardware/hardware_gated/attested/a"))
    assert Policy.load(policy.document()) == policy
    assert policy_from(policy_message(policy)) == policy
    shouted = policy_message(policy)
    shouted.registration.authenticators.allowed[:] = [NAME.upper()]
    assert policy_from(shouted) == policy


def test_a_document_of_an_older_release_accepts_every_model_and_allows_the_method():
    document = json.loads(Policy().document())
    del document["registration"]["authenticators"], document["security_key"]
    assert Policy.load(json.dumps(document)) == Policy()
    assert Policy().registration.authenticators.say_nothing
    assert Policy().security_key.enabled


@pytest.mark.parametrize("part", ["security_key", "authenticators"])
def test_a_part_that_is_missing_on_the_wire_switches_nothing_off(part: str):
    message: admin.Policy = policy_message(with_rules(BLOCKED))
    (message if part == "security_key" else message.registration).ClearField(part)  # type: ignore[arg-type]
    with pytest.raises(MalformedError) as refusal:
        policy_from(message)
    assert refusal.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    "rules",
    [
        AuthenticatorRules(allowed=("*",)),
        AuthenticatorRules(allowed=("",)),
        AuthenticatorRules(blocked=(NAME.upper(),)),
        AuthenticatorRules(blocked=(NAME.replace("-", ""),)),
        AuthenticatorRules(blocked=(str(uuid.UUID(int=0)),)),
        AuthenticatorRules(allowed=(NAME, NAME)),
        AuthenticatorRules(allowed=(NAME,), blocked=(NAME,)),
        AuthenticatorRules(blocked=tuple(str(uuid.UUID(int=n)) for n in range(1, 258))),
    ],
)
def test_lists_that_are_none(rules: AuthenticatorRules):
    with pytest.raises(MalformedError) as refusal:
        check_policy(with_rules(rules))
    assert refusal.value.reason is Reason.POLICY_INVALID
    assert refusal.value.metadata["field"].startswith("registration.authenticators.")


def test_what_is_asked_of_a_sign_in_depends_on_its_way():
    strict = SecurityKeyPolicy(enabled=False, required_assurance="hardware/hardware_gated/attested")
    policy = replace(Policy(), security_key=strict)
    assert required_by(policy, SignInWay.SECURITY_KEY) == strict.required_assurance
    for way in (SignInWay.PROMPT, SignInWay.SAME_DEVICE):
        assert required_by(policy, way) == policy.approval.required_assurance


# registered keys


def credential(format: str = "packed", statement: dict[str, object] | None = None) -> Credential:  # noqa: A002
    """A registered key, attested unless its statement is empty."""
    public = CoseKey.from_public_key(KEY.public_key())
    attested = AttestedCredentialData.build(AAGUID, CredentialId(b"key"), public)
    data = AuthenticatorData.build(bytes(32), Flags.UP | Flags.UV, 0, attested=attested)
    members = {"x5c": [LEAF.public_bytes(Encoding.DER)]} if statement is None else statement
    return Credential(
        id=CredentialId(b"key"),
        tenant_id=TenantId("ten_a"),
        user_id=UserId("usr_a"),
        device_id=DeviceId("dev_a"),
        user_handle=b"",
        public_key=bytes(public),
        sign_count=0,
        backup_eligible=False,
        aaguid=AAGUID,
        attestation_object=bytes(AttestationObject.build(format, data, members)),
        client_data=b"",
        assurance="secure_element/hardware_gated/attested/a" if members else "software/software_gated/unattested",
        created_at=0,
    )


@pytest.mark.parametrize(
    ("distrust", "reason"),
    [
        (Distrust(), None),
        (Distrust(models={AAGUID: "It is broken."}), Reason.AUTHENTICATOR_STATUS),
        (Distrust(models={key_identifier(LEAF): "It is broken."}), Reason.AUTHENTICATOR_STATUS),
        (Distrust(keys=frozenset({public_key_bits(LEAF)})), Reason.AUTHENTICATOR_STATUS),
        (Distrust(models={bytes(16): "Others."}, keys=frozenset({b"others"})), None),
    ],
)
def test_h6_a_registered_key_is_held_against_the_metadata_of_today_W9(distrust: Distrust, reason: Reason | None):
    anchors = TrustStore((), distrust)
    if reason is None:
        check_key(credential(), Policy(), anchors)
        return
    with pytest.raises(RefusedError) as refusal:
        check_key(credential(), Policy(), anchors)
    assert refusal.value.reason is reason


def test_h6_a_claim_is_enough_to_be_distrusted_or_blocked():
    claimed = credential("none", {})
    check_key(claimed, Policy(), TrustStore())
    for policy, anchors, reason in (
        (Policy(), TrustStore((), Distrust(models={AAGUID: "It is broken."})), Reason.AUTHENTICATOR_STATUS),
        (with_rules(BLOCKED), TrustStore(), Reason.AUTHENTICATOR_MODEL),
        (with_rules(ALLOWED), TrustStore(), Reason.AUTHENTICATOR_MODEL),
    ):
        with pytest.raises(RefusedError) as refusal:
            check_key(claimed, policy, anchors)
        assert refusal.value.reason is reason
    check_key(credential(), with_rules(ALLOWED), TrustStore())
