"""The contract of `Provider`: one body for every provider that a bench can build without hardware."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keyvouch.errors import DeviceError, Reason, RefusedError
from keyvouch.ids import CredentialId
from keyvouch.webauthn import AttestationObject, AuthenticatorData, CollectedClientData, Flags
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.authenticator.vault import KeyVault
from keyvouch_agent.ports import (
    Gate,
    GateOffer,
    KeyCreation,
    KeyProtection,
    KeyUse,
    Pin,
    PresenceContext,
    Provider,
    ProviderKind,
    ProviderSession,
    Registration,
)
from keyvouch_agent.providers.built_in import BuiltInProvider
from keyvouch_agent.system import SystemEntropy
from keyvouch_agent.vaults.software import SOFTWARE_AAGUID, SoftwareVault
from support.authenticators import FAST_KDF, BenchClock
from support.memory_vault import MemoryVault
from support.provider_ui import ScriptedInteraction
from support.tpm_accounts import tpm_vault

KINDS = {
    ProviderKind.SOFTWARE: (KeyProtection.SOFTWARE, Gate.HOST),
    ProviderKind.TPM: (KeyProtection.HARDWARE, Gate.TPM_POLICY),
}
RP_ID = "login.example.org"
CHALLENGE = bytes(range(32))
CREATION = KeyCreation(CHALLENGE, RP_ID, b"user handle", "alice", (-7, -35))
PIN = "123456"


@pytest.fixture(params=["memory", "software", "tpm"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyVault]:
    if request.param == "memory":
        yield MemoryVault()
        return
    if request.param == "tpm":
        with tpm_vault(request.getfixturevalue("tpm").tcti, tmp_path / "account") as made:
            yield made
        return
    with SoftwareVault.open(tmp_path / "vault", SystemEntropy(), kdf=FAST_KDF) as opened:
        yield opened


@pytest.fixture
def authenticator(vault: KeyVault) -> Authenticator:
    return Authenticator(vault, BenchClock(), SystemEntropy())


@pytest.fixture
def provider(authenticator: Authenticator) -> Provider:
    return BuiltInProvider(authenticator)


@pytest.fixture
def ui() -> ScriptedInteraction:
    return ScriptedInteraction(new_pin=PIN)


@pytest.fixture
def registered(provider: Provider, ui: ScriptedInteraction) -> Registration:
    with provider.open(ui, rp_id=RP_ID) as session:
        registration = session.create_key(CREATION)
    ui.asked.clear()
    return registration


def use_of(registration: Registration) -> KeyUse:
    return KeyUse(b"c" * 32, RP_ID, registration.credential_id)


def failure_of(provider: Provider, ui: ScriptedInteraction, action: Callable[[ProviderSession], object]) -> DeviceError:
    with provider.open(ui, rp_id=RP_ID) as session, pytest.raises(DeviceError) as caught:
        action(session)
    assert caught.value.message
    assert caught.value.fix
    return caught.value


def test_capabilities_without_prompt(provider: Provider, ui: ScriptedInteraction, vault: KeyVault) -> None:
    found = provider.capabilities()
    kind = ProviderKind(vault.properties.protection)
    assert (found.kind, found.key_protection, found.uv_by) == (kind, *KINDS[kind])
    assert found.up_by is Gate.HOST
    assert (found.pin_is_set, found.pin_retries_left, found.min_pin_length) == (False, 8, 6)
    assert found.algorithms[0] == -7
    assert found.attestation_formats == ("packed",)
    assert not ui.asked


def test_registration_is_bound_to_challenge_origin_and_relying_party(
    provider: Provider, ui: ScriptedInteraction, vault: KeyVault
) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        assert session.prepare(GateOffer("dev_x", b"", 3)) is None
        made = session.create_key(CREATION)
    client_data = CollectedClientData(made.client_data)
    assert set(json.loads(made.client_data)) == {"type", "challenge", "origin", "crossOrigin"}
    assert (client_data.type, client_data.challenge) == ("webauthn.create", CHALLENGE)
    assert client_data.origin == f"keyvouch-agent://{RP_ID}"
    assert client_data.cross_origin is False
    attestation = AttestationObject(made.attestation_object)
    data, attested = attestation.authenticator_data, attestation.attested
    assert attestation.format == "packed"
    assert set(attestation.statement) == {"alg", "sig"}
    assert data.rp_id_hash == hashlib.sha256(RP_ID.encode()).digest()
    assert data.flags == Flags.UP | Flags.UV | Flags.AT
    assert attested.credential_id == made.credential_id
    assert attested.aaguid == vault.properties.aaguid
    signature = attestation.statement["sig"]
    assert isinstance(signature, bytes)
    attested.public_key.verify_signature(signature=signature, message=data + client_data.sha256)
    assert ui.asked == [("new pin", 6), PresenceContext("make_credential", RP_ID, "alice")]


def test_signature_verifies_with_the_registered_key(
    provider: Provider, ui: ScriptedInteraction, registered: Registration
) -> None:
    key = AttestationObject(registered.attestation_object).attested.public_key
    counts = []
    for _ in range(2):
        with provider.open(ui, rp_id=RP_ID) as session:
            signed = session.sign(use_of(registered))
        client_data = CollectedClientData(signed.client_data)
        assert (client_data.type, client_data.challenge) == ("webauthn.get", b"c" * 32)
        assert client_data.origin == f"keyvouch-agent://{RP_ID}"
        data = AuthenticatorData(signed.authenticator_data)
        assert data.flags == Flags.UP | Flags.UV
        key.verify_signature(signature=signed.signature, message=data + client_data.sha256)
        assert signed.credential_id == registered.credential_id
        counts.append(data.sign_count)
    assert 0 < counts[0] < counts[1]
    assert ui.asked[:2] == [("pin", 8, 6), PresenceContext("get_assertion", RP_ID, "alice")]


def test_vault_is_locked_and_pins_are_dropped_after_each_ceremony(
    provider: Provider, ui: ScriptedInteraction, registered: Registration, vault: KeyVault
) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        session.sign(use_of(registered))
        with pytest.raises(DeviceError) as caught:
            vault.sign(registered.credential_id, b"m")
        assert caught.value.reason is Reason.PIN_REQUIRED
    assert len(ui.pins) == 2
    for pin in ui.pins:
        with pytest.raises(ValueError, match="dropped"):
            pin.reveal()


def test_no_pin_no_key_PS8(provider: Provider, ui: ScriptedInteraction) -> None:
    ui.new_pin = None
    assert failure_of(provider, ui, lambda s: s.create_key(CREATION)).reason is Reason.PIN_NOT_SET
    ui.new_pin = "12345"
    error = failure_of(provider, ui, lambda s: s.create_key(CREATION))
    assert (error.reason, error.metadata) == (Reason.PIN_POLICY, {"min_length": "6"})
    assert not provider.capabilities().pin_is_set
    ui.new_pin = PIN
    with provider.open(ui, rp_id=RP_ID) as session:
        assert session.create_key(CREATION)
    assert provider.capabilities().pin_is_set


def test_wrong_pins_are_counted_and_explained_H3(
    provider: Provider, authenticator: Authenticator, ui: ScriptedInteraction, registered: Registration
) -> None:
    ui.pin = "000000"
    seen = []
    for attempt in range(9):
        if attempt in (3, 6):
            authenticator.power_cycle()
        error = failure_of(provider, ui, lambda s: s.sign(use_of(registered)))
        seen.append((error.reason, error.retries_left))
    wrong, cycle = Reason.PIN_WRONG, Reason.PIN_POWER_CYCLE
    assert seen[:6] == [(wrong, 7), (wrong, 6), (cycle, 5), (wrong, 4), (wrong, 3), (cycle, 2)]
    assert seen[6:] == [(wrong, 1), (Reason.PIN_BLOCKED, 0), (Reason.PIN_BLOCKED, 0)]
    assert [asked[1] for asked in ui.asked if isinstance(asked, tuple)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert provider.capabilities().pin_retries_left == 0


def test_no_prompt_for_a_pin_that_cannot_succeed(
    provider: Provider, ui: ScriptedInteraction, registered: Registration
) -> None:
    ui.pin = "000000"
    for _ in range(3):
        failure_of(provider, ui, lambda s: s.sign(use_of(registered)))
    ui.pin, ui.asked = PIN, []
    error = failure_of(provider, ui, lambda s: s.sign(use_of(registered)))
    assert (error.reason, error.retries_left) == (Reason.PIN_POWER_CYCLE, 5)
    assert not ui.asked


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pin": None}, Reason.USER_CANCELLED),
        ({"pin": ""}, Reason.USER_CANCELLED),
        ({"confirms": False}, Reason.USER_CANCELLED),
        ({"confirms": TimeoutError}, Reason.USER_TIMEOUT),
    ],
)
def test_user_says_no_H4(
    provider: Provider, ui: ScriptedInteraction, registered: Registration, change: dict[str, object], reason: Reason
) -> None:
    no = replace(ui, **change)
    assert failure_of(provider, no, lambda s: s.sign(use_of(registered))).reason is reason
    assert failure_of(provider, no, lambda s: s.create_key(CREATION)).reason is reason
    with provider.open(ui, rp_id=RP_ID) as session:  # control
        assert session.sign(use_of(registered))


def test_cancelled_from_elsewhere(provider: Provider, ui: ScriptedInteraction, registered: Registration) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        ui.on_confirm = session.cancel
        with pytest.raises(DeviceError) as caught:
            session.sign(use_of(registered))
    assert caught.value.reason is Reason.USER_CANCELLED


def test_key_that_is_gone_H10(provider: Provider, vault: KeyVault, ui: ScriptedInteraction) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        registration = session.create_key(CREATION)
    unknown = KeyUse(CHALLENGE, RP_ID, CredentialId(b"unknown"))
    assert failure_of(provider, ui, lambda s: s.sign(unknown)).reason is Reason.KEY_NOT_FOUND
    vault.delete(registration.credential_id)
    assert failure_of(provider, ui, lambda s: s.sign(use_of(registration))).reason is Reason.KEY_NOT_FOUND
    vault.reset()
    error = failure_of(provider, ui, lambda s: s.sign(use_of(registration)))
    assert error.reason is Reason.KEY_NOT_FOUND
    assert "reset" in error.message


def test_excluded_and_unsupported(provider: Provider, ui: ScriptedInteraction, registered: Registration) -> None:
    again = replace(CREATION, exclude=(registered.credential_id,))
    assert failure_of(provider, ui, lambda s: s.create_key(again)).reason is Reason.CREDENTIAL_EXISTS
    es512 = replace(CREATION, algorithms=(-36,))
    assert failure_of(provider, ui, lambda s: s.create_key(es512)).reason is Reason.UNSUPPORTED


def test_second_registration_leaves_the_first_key_usable(
    provider: Provider, ui: ScriptedInteraction, registered: Registration
) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        second = session.create_key(CREATION)
    for registration in (registered, second):
        with provider.open(ui, rp_id=RP_ID) as session:
            assert session.sign(use_of(registration))


def test_another_relying_party_than_the_enrolment_s_is_refused(
    provider: Provider, ui: ScriptedInteraction, registered: Registration
) -> None:
    for rp_id in ("evil.example", "example.org", RP_ID.upper(), RP_ID + ".", ""):
        with provider.open(ui, rp_id=RP_ID) as session:
            for action in (
                lambda s=session, r=rp_id: s.sign(replace(use_of(registered), rp_id=r)),
                lambda s=session, r=rp_id: s.create_key(replace(CREATION, rp_id=r)),
            ):
                with pytest.raises(RefusedError) as caught:
                    action()
                assert caught.value.reason is Reason.WRONG_SERVER
    assert not ui.asked


def test_key_of_one_relying_party_does_not_sign_for_another(
    provider: Provider, ui: ScriptedInteraction, registered: Registration
) -> None:
    with provider.open(ui, rp_id="evil.example") as session, pytest.raises(DeviceError) as caught:
        session.sign(replace(use_of(registered), rp_id="evil.example"))
    assert caught.value.reason is Reason.KEY_NOT_FOUND


def test_pin_control(provider: Provider, ui: ScriptedInteraction) -> None:
    with provider.open(ui, rp_id=RP_ID) as session:
        control = session.pin()
        assert control is not None
        assert (control.is_set, control.retries_left, control.min_length) == (False, None, 6)
        for bad in ("", "12345", "äöüßé", "1" * 64, "ä" * 32, "12345\0"):
            with pytest.raises(DeviceError) as caught:
                control.set(Pin(bad))
            assert caught.value.reason is Reason.PIN_POLICY
        with pytest.raises(DeviceError) as caught:
            control.change(Pin(PIN), Pin("654321"))
        assert caught.value.reason is Reason.PIN_NOT_SET
        control.set(Pin(PIN))
        assert control.is_set
        with pytest.raises(DeviceError) as caught:
            control.set(Pin("654321"))
        assert caught.value.reason is Reason.PIN_POLICY
        with pytest.raises(DeviceError) as caught:
            control.change(Pin("000000"), Pin("654321"))
        assert (caught.value.reason, caught.value.retries_left) == (Reason.PIN_WRONG, 7)
        control.change(Pin(PIN), Pin("654321"))
        assert control.retries_left == 8


def test_same_pin_typed_with_other_code_points(provider: Provider, ui: ScriptedInteraction) -> None:
    ui.new_pin = "pa\u0308sswo\u0308rd"
    with provider.open(ui, rp_id=RP_ID) as session:
        registration = session.create_key(CREATION)
    ui.pin = "p\u00e4ssw\u00f6rd"
    with provider.open(ui, rp_id=RP_ID) as session:
        assert session.sign(use_of(registration))


def test_configured_minimum(authenticator: Authenticator, ui: ScriptedInteraction) -> None:
    provider = BuiltInProvider(authenticator, min_pin_length=8)
    assert failure_of(provider, ui, lambda s: s.create_key(CREATION)).reason is Reason.PIN_POLICY
    assert BuiltInProvider(authenticator, min_pin_length=1).capabilities().min_pin_length == 4


def test_vault_s_own_words_come_through_H10(ui: ScriptedInteraction) -> None:
    vault = MemoryVault()
    provider = BuiltInProvider(Authenticator(vault, BenchClock(), SystemEntropy()))
    failure = DeviceError(Reason.VAULT_CORRUPT, "Damaged.", fix="Restore it.")
    vault.fail_next["create_key"] = failure
    assert failure_of(provider, ui, lambda s: s.create_key(CREATION)) is failure
    vault.fail_next["create_key"] = DeviceError(Reason.KEY_STORE_FULL, "Full.", fix="Remove one.")
    assert failure_of(provider, ui, lambda s: s.create_key(CREATION)).reason is Reason.KEY_STORE_FULL


def test_pin_is_in_no_log_and_no_repr_A4(
    provider: Provider, ui: ScriptedInteraction, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-4711-pin"
    ui.new_pin = ui.pin = canary
    with caplog.at_level(1, logger=logging.getLogger().name), caplog.at_level(1, logger="fido2"):
        with provider.open(ui, rp_id=RP_ID) as session:
            registration = session.create_key(CREATION)
        with provider.open(ui, rp_id=RP_ID) as session:
            session.sign(use_of(registration))
            shown = repr(session) + repr(provider) + repr(session.pin())
        ui.pin = canary + "wrong"
        error = failure_of(provider, ui, lambda s: s.sign(use_of(registration)))
    assert caplog.text  # control: something was logged
    for text in (caplog.text, shown, repr(error), str(error), str(error.metadata), repr(Pin(canary)), f"{Pin(canary)}"):
        assert canary not in text


def test_software_aaguid_is_fixed() -> None:
    assert SOFTWARE_AAGUID.hex() == "f9c589359e1745d1bf8698d773afe2ee"
