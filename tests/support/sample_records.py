"""One valid record of each class, with every id it needs, for tests of the stores."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from keyvouch.ids import (
    AccessPassId,
    CredentialId,
    DeviceId,
    GroupId,
    PromptId,
    RegistrationId,
    RiskEventId,
    SessionId,
    SignInId,
    TenantId,
    UserId,
)
from keyvouch_server.domain import model, oversight_model

R = TypeVar("R")

TENANT = model.Tenant(TenantId("ten_a"), "Contoso", "contoso", home=True, created_at=100, key_lengths="32:10 64:3")
USER = model.User(
    id=UserId("usr_a"),
    tenant_id=TENANT.id,
    username="Alex",
    username_key="alex",
    display_name="Alex Wilber",
    role=model.Role.GLOBAL_READER,
    user_handle=b"\x00\xff" * 16,
    created_at=100,
    number_misses=2,
    locked_until=300,
    kind=model.UserKind.GUEST,
    default_method="approval",
    last_method="security_key",
    flagged_at=200,
)
LOGIN_NAME = model.LoginName(TENANT.id, USER.username_key, USER.username, USER.id, alias=False)
ALIAS = model.LoginName(TENANT.id, "alex@example.org", "Alex@example.org", USER.id, alias=True)
GROUP = model.UserGroup(GroupId("grp_a"), TENANT.id, "Staff", "staff", "Everybody who works here", 100)
GROUP_MEMBER = model.GroupMember(GROUP.id, USER.id, TENANT.id)
POLICY = model.PolicyVersion(TENANT.id, 1, '{"digits": 2}', 100, USER.id)
ACCESS_PASS = model.AccessPass(
    id=AccessPassId("tap_a"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    code_hash=b"c" * 32,
    created_at=100,
    start_at=100,
    lifetime_minutes=60,
    one_time=True,
    binding=f"ek:{'0e' * 32}",
)
DEVICE = model.Device(
    id=DeviceId("dev_a"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    display_name="Laptop",
    provider=model.ProviderKind.TPM,
    channel_key=b"\x30\x00channel",
    certificate=b"\x30\x00certificate",
    registered_at=110,
)
REGISTRATION = model.Registration(
    id=RegistrationId("reg_a"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    session_id=SessionId("ses_pass"),
    device_id=DEVICE.id,
    token_hash=b"t" * 32,
    statement=b"\xa0",
    channel_key=DEVICE.channel_key,
    display_name="Laptop",
    provider=model.ProviderKind.TPM,
    state=model.RegistrationState.COMPLETE,
    created_at=105,
    expires_at=705,
    answer_hash=b"a" * 32,
    tpm=b"\xa1\x01\x00",
    replaced_device_id=DeviceId("dev_old"),
)
DEVICE_TPM = model.DeviceTpm(
    device_id=DEVICE.id,
    tenant_id=TENANT.id,
    user_id=USER.id,
    endorsement_key_hash=b"e" * 32,
    transcript=REGISTRATION.tpm,
    proved_assurance="tpm/hardware_gated/attested/tpm-ek:Maker",
    anchor="tpm-ek:Maker",
    manufacturer="id:4E544300",
    model="TEST1",
    pin_limit=3,
    channel_key_in_tpm=True,
    health=model.Health.DRIFTED,
    reported_at=150,
    findings='["pcr_changed: PCR 7"]',
    firmware_version="0007000200040001",
    clock=str(2**64 - 1),
    reset_count=5,
    restart_count=1,
    pcr_values='{"7": "00"}',
    baseline='{"firmware": "0007000200040001", "pcrs": {"7": "01"}, "accepted": []}',
)
KEY_REPLACEMENT = model.KeyReplacement(
    id=RegistrationId("reg_b"),
    tenant_id=TENANT.id,
    device_id=DEVICE.id,
    statement=b"\xa0",
    certificate=b"\x30\x00",
    state=model.RegistrationState.COMPLETE,
    created_at=140,
    expires_at=740,
    answer_hash=b"b" * 32,
)
CREDENTIAL = model.Credential(
    id=CredentialId(b"\x00credential\xff"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    device_id=DEVICE.id,
    public_key=b"\xa5",
    user_handle=USER.user_handle,
    sign_count=7,
    backup_eligible=False,
    aaguid=bytes(16),
    attestation_object=b"\xa3",
    client_data=b"{}",
    assurance=DEVICE_TPM.proved_assurance,
    created_at=110,
    card_authority="Example Badges",
    card_certificates=b"\x81\x42\x30\x00",
    last_used_at=130,
)
SESSION = model.Session(
    id=SessionId("ses_a"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    device_id=DEVICE.id,
    kind=model.SessionKind.APPROVAL,
    access_pass_id=AccessPassId(""),
    app_id="app",
    app_name="Payroll",
    audience="https://payroll.example",
    amr="hwk,pin",
    acr="number-matched",
    assurance="tpm",
    proof_key=b"p" * 91,
    proof_thumbprint=b"j" * 32,
    auth_time=130,
    created_at=131,
    expires_at=9000,
    generation=1,
    refresh_hash=b"r" * 32,
    sign_in_id="sin_a",
    address="192.0.2.1",
)
SIGN_IN = model.SignIn(
    id=SignInId("sin_a"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    token_hash=b"w" * 32,
    state=model.SignInState.CONSUMED,
    number="42",
    proof_key=b"p" * 91,
    proof_thumbprint=b"j" * 32,
    app_id="app",
    app_name="Payroll \N{SNOWMAN} 'quoted' \x01 ? end",
    audience="https://payroll.example",
    address="192.0.2.1",
    binding_message="",
    policy_version=1,
    required_assurance="number-matched",
    created_at=120,
    expires_at=180,
    device_id=DEVICE.id,
    assurance="number-matched",
    decided_at=130,
    decision_hash=b"d" * 32,
    session_id=SESSION.id,
    phishing_resistant=True,
    known_client=True,
    choices="17 42 99",
    rules='[{"rule": "tenant_policy.approval.enabled", "outcome": "allowed"}]',
    evidence=b"\xa1\x01\x41\x00",
    offers=1,
    after_misses=False,
)
PROMPT = model.Prompt(PromptId("prm_a"), SIGN_IN.id, DEVICE.id, CREDENTIAL.id, b"\xa0offer", 121, 180)
RISK_EVENT = oversight_model.RiskEvent(
    id=RiskEventId("rsk_a"),
    tenant_id=TENANT.id,
    user_id=USER.id,
    kind=oversight_model.RiskKind.REPORTED,
    at=200,
    address="192.0.2.1",
    subject=SIGN_IN.id,
    message="Alex did not begin this.",
    closed_at=210,
    closed_by="usr_b",
)
CHECKPOINT = oversight_model.AuditCheckpoint(TENANT.id, 3, b"h" * 32, 140, b"\x30\x00")
THROTTLE = oversight_model.Throttle(f"begin/{USER.id}", TENANT.id, 131_500)
BLOCK = oversight_model.Block("address/0e", TENANT.id, USER.id, 3800)
DONE_REQUEST = oversight_model.DoneRequest(TENANT.id, USER.id, "request-1", b"q" * 32, b"\x0a\x00", 140)
USED_PROOF = oversight_model.UsedProof(b"u" * 32, 200)

EVERY_RECORD: tuple[Any, ...] = (
    TENANT,
    USER,
    LOGIN_NAME,
    ALIAS,
    GROUP,
    GROUP_MEMBER,
    POLICY,
    ACCESS_PASS,
    REGISTRATION,
    DEVICE,
    CREDENTIAL,
    DEVICE_TPM,
    KEY_REPLACEMENT,
    SIGN_IN,
    PROMPT,
    SESSION,
    RISK_EVENT,
    CHECKPOINT,
    THROTTLE,
    BLOCK,
    DONE_REQUEST,
    USED_PROOF,
    *(
        oversight_model.AuditRecord(
            sequence=number,
            at=at,
            tenant_id=TENANT.id,
            action=action,
            actor="client",
            subject=SIGN_IN.id,
            user_id=USER.id,
            outcome="success",
            details="{}",
            chain_number=number,
            previous_hash=bytes([number - 1]) * 32,
            hash=bytes([number]) * 32,
        )
        for number, (at, action) in enumerate(
            ((110, "device.register"), (130, "sign_in.approve"), (131, "session.open")), start=1
        )
    ),
)
"""A store's whole contents, in an order that satisfies every reference; passes every check."""


def variant(record: R, **changes: object) -> R:
    """A copy of `record` with other values."""
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def open_sign_in(name: str, **changes: object) -> model.SignIn:
    """A pending sign-in nobody has touched, with an id made of `name`."""
    fresh = {"state": model.SignInState.PENDING, "device_id": "", "assurance": "", "decided_at": 0}
    fresh |= {"decision_hash": b"", "session_id": "", "id": f"sin_{name}"}
    return variant(SIGN_IN, **(fresh | changes))


def audit(action: str, **changes: object) -> oversight_model.AuditRecord:
    """An audit record that asks the store for its number."""
    return variant(oversight_model.AuditRecord(0, 1, TENANT.id, action, "x", "y", USER.id, "success", "{}"), **changes)
