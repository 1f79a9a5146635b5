"""One valid record of each class, with every id it needs, for tests of the stores."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from keyvouch.ids import (
    AccessPassId,
    CredentialId,
    DeviceId,
    PromptId,
    RegistrationId,
    SessionId,
    SignInId,
    TenantId,
    UserId,
)
from keyvouch_server.domain import model

R = TypeVar("R")

TENANT = model.Tenant(TenantId("ten_a"), "Contoso", "contoso", home=True, created_at=100)
USER = model.User(
    id=UserId("usr_a"),
    tenant_id=TENANT.id,
    username="Alex",
    username_key="alex",
    display_name="Alex Wilber",
    role=model.Role.GLOBAL_READER,
    user_handle=b"\x00\xff" * 16,
    created_at=100,
)
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
    app_name="Payroll \N{SNOWMAN} 'quoted' \x00 end",
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
)
PROMPT = model.Prompt(PromptId("prm_a"), SIGN_IN.id, DEVICE.id, CREDENTIAL.id, b"\xa0offer", 121, 180)

EVERY_RECORD: tuple[Any, ...] = (
    TENANT,
    USER,
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
    *(
        model.AuditRecord(number, at, TENANT.id, action, "client", SIGN_IN.id, USER.id, "success", "{}")
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


def audit(action: str, **changes: object) -> model.AuditRecord:
    """An audit record that asks the store for its number."""
    return variant(model.AuditRecord(0, 1, TENANT.id, action, "x", "y", USER.id, "success", "{}"), **changes)
