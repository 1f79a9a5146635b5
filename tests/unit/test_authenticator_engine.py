"""The engine: message encoding, GetInfo, Reset, Selection, one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fido2.ctap2.base import Info

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.engine import AuthenticatorOptions, Command
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.status import Status
from keyvouch_agent.authenticator.vault import (
    INITIAL_LARGE_BLOBS,
    AuthenticatorSettings,
    Credential,
    KeyRequest,
    hash_of,
)
from support.authenticators import ACFG, LBW, PIN, RP_ID, Bench, blob_array, descriptor
from support.memory_vault import MemoryVault


@pytest.fixture
def bench() -> Bench:
    return Bench(MemoryVault())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"", Status.INVALID_LENGTH),
        (b"\x00", Status.INVALID_COMMAND),
        (b"\x03", Status.INVALID_COMMAND),
        (b"\x09\xa0", Status.INVALID_COMMAND),
        (b"\x05", Status.INVALID_COMMAND),
        (b"\x40\xa0", Status.INVALID_COMMAND),
        (b"\xff", Status.INVALID_COMMAND),
        (b"\x04\x00", Status.INVALID_LENGTH),
        (b"\x07\xa0", Status.INVALID_LENGTH),
        (b"\x08\xa0", Status.INVALID_LENGTH),
        (b"\x0b\xa0", Status.INVALID_LENGTH),
        (b"\x01", Status.INVALID_CBOR),
        (b"\x02", Status.INVALID_CBOR),
        (b"\x06", Status.INVALID_CBOR),
        (b"\x0a", Status.INVALID_CBOR),
        (b"\x0c", Status.INVALID_CBOR),
        (b"\x0d", Status.INVALID_CBOR),
        (b"\x41", Status.INVALID_CBOR),
        (b"\x01\xa0", Status.MISSING_PARAMETER),
        (b"\x02\xa0", Status.MISSING_PARAMETER),
        (b"\x06\xa0", Status.MISSING_PARAMETER),
        (b"\x0a\xa0", Status.MISSING_PARAMETER),
        (b"\x0c\xa0", Status.INVALID_PARAMETER),
        (b"\x0d\xa0", Status.MISSING_PARAMETER),
        (b"\x41\xa0", Status.MISSING_PARAMETER),
        (b"\x01\x80", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x06\xf6", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x0a\x80", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x0c\x80", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x0d\x80", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x06\xa1\x02\x01\x00", Status.INVALID_CBOR),
        (b"\x06\xbf\x02\x01\xff", Status.INVALID_CBOR),
        (b"\x06\xa1\x02\x18\x01", Status.INVALID_CBOR),
        (b"\x06\xa2\x02\x01\x02\x01", Status.INVALID_CBOR),
        (b"\x06\xa2\x02\x01\x01\x01", Status.INVALID_CBOR),
        (b"\x06\xa1\x02\xc0\x01", Status.INVALID_CBOR),
        (b"\x06\xa1\x02\x9b" + b"\xff" * 8, Status.INVALID_CBOR),
        (b"\x01" + b"\x81" * 200 + b"\x00", Status.INVALID_CBOR),
        (b"\x04" + bytes(7609), Status.REQUEST_TOO_LARGE),
        (b"\x04", Status.SUCCESS),
        (b"\x06\xa1\x02\x01", Status.PIN_NOT_SET),
    ],
)
def test_message_encoding(bench: Bench, request_bytes: bytes, status: Status) -> None:
    assert bench.send(request_bytes)[0] is status


def test_get_info_is_canonical_and_what_python_fido2_expects(bench: Bench) -> None:
    raw = bench.authenticator.handle(b"\x04", bench.user)
    assert cbor.encode(cbor.decode(raw[1:])) == raw[1:]
    fields: Any = cbor.decode(raw[1:])
    info = Info.from_dict(fields)
    assert info.versions == ["FIDO_2_0", "FIDO_2_1"]
    assert info.aaguid == bench.vault.properties.aaguid
    assert info.pin_uv_protocols == [2, 1]
    assert info.options == {
        "rk": True,
        "up": True,
        "plat": False,
        "clientPin": False,
        "pinUvAuthToken": True,
        "makeCredUvNotRqd": False,
        "alwaysUv": True,
        "credMgmt": True,
        "authnrCfg": True,
        "setMinPINLength": True,
        "largeBlobs": True,
    }
    assert info.extensions == [
        "credBlob",
        "credProtect",
        "hmac-secret",
        "hmac-secret-mc",
        "largeBlobKey",
        "minPinLength",
    ]
    assert info.min_pin_length == 4
    assert info.max_msg_size == 7609
    assert info.max_large_blob == 4096
    assert info.max_cred_blob_length == 32
    assert info.max_rpids_for_min_pin == 8
    assert info.remaining_disc_creds == 16
    assert info.force_pin_change is False
    assert info.transports == ["internal"]
    assert info.algorithms == [{"alg": alg, "type": "public-key"} for alg in (-7, -8, -35)]
    assert info.attestation_formats == ["packed", "none"]


def options_of(bench: Bench) -> Any:
    return bench.expect(Command.GET_INFO)[4]


def test_ungated_vault_does_not_claim_always_uv() -> None:
    assert options_of(Bench(MemoryVault(pin_gated=False)))["alwaysUv"] is False


def test_vault_without_room_for_large_blobs_has_none() -> None:
    bench = Bench(MemoryVault(max_large_blobs=0))
    info = bench.expect(Command.GET_INFO)
    assert "largeBlobs" not in info[4]
    assert "largeBlobKey" not in info[2]
    assert 0x0B not in info
    assert bench.command(Command.LARGE_BLOBS, {1: 17, 3: 0})[0] is Status.INVALID_COMMAND
    bench.set_pin()
    for ignored in (True, False):
        assert bench.make(bench.token(), k6={"largeBlobKey": ignored})[0] is Status.SUCCESS


def test_options_say_how_it_is_reached_and_whether_it_speaks_u2f() -> None:
    chosen = AuthenticatorOptions(transports=("nfc", "usb"), u2f=True, make_cred_uv_not_required=True)
    bench = Bench(MemoryVault(pin_gated=False), options=chosen)
    info = bench.expect(Command.GET_INFO)
    assert info[0x09] == ["nfc", "usb"]
    assert info[1] == ["U2F_V2", "FIDO_2_0", "FIDO_2_1"]
    assert info[4]["makeCredUvNotRqd"] is True
    gated = Bench(MemoryVault(), options=chosen).expect(Command.GET_INFO)
    assert gated[1] == ["FIDO_2_0", "FIDO_2_1"]
    assert gated[4]["makeCredUvNotRqd"] is False


def test_version_of_the_vault_is_told_where_it_has_one(bench: Bench) -> None:
    assert 0x0E not in bench.expect(Command.GET_INFO)
    bench.vault.properties = replace(bench.vault.properties, firmware_version=7)
    assert bench.expect(Command.GET_INFO)[0x0E] == 7


def test_remaining_credentials_are_told(bench: Bench) -> None:
    bench.set_pin()
    bench.new_credential(rk=True)
    assert bench.expect(Command.GET_INFO)[0x14] == 15


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Presence.GRANTED, Status.SUCCESS),
        (Presence.DENIED, Status.OPERATION_DENIED),
        (Presence.TIMEOUT, Status.USER_ACTION_TIMEOUT),
        (Presence.CANCELLED, Status.KEEPALIVE_CANCEL),
    ],
)
def test_selection_and_reset_need_presence(bench: Bench, answer: Presence, status: Status) -> None:
    bench.set_pin()
    credential = bench.new_credential()
    bench.user.asked.clear()
    bench.user.answer = answer
    assert bench.command(Command.SELECTION) == (status, None)
    assert bench.command(Command.RESET) == (status, None)
    assert bench.user.asked == [PresenceRequest(Purpose.SELECTION), PresenceRequest(Purpose.RESET)]
    assert (bench.vault.find(hash_of(RP_ID), credential) is None) is (status is Status.SUCCESS)
    assert bench.vault.pin_state().is_set is not (status is Status.SUCCESS)


def test_reset_only_soon_after_power_up(bench: Bench) -> None:
    bench.set_pin()
    bench.clock.now += 10.5
    assert bench.command(Command.RESET)[0] is Status.NOT_ALLOWED
    assert not bench.user.asked
    bench.authenticator.power_cycle()
    bench.clock.now += 9.5
    assert bench.command(Command.RESET)[0] is Status.SUCCESS
    assert not bench.vault.pin_state().is_set
    bench.clock.now += 1
    assert bench.command(Command.RESET)[0] is Status.NOT_ALLOWED


def test_reset_ends_tokens_and_wrong_pins_in_a_row(bench: Bench) -> None:
    bench.set_pin()
    token = bench.token()
    for _ in range(3):
        bench.ask_token("000000")
    assert bench.command(Command.RESET)[0] is Status.SUCCESS
    assert bench.make(token)[0] is Status.PUAT_REQUIRED
    bench.set_pin()
    assert bench.make(token)[0] is Status.PIN_AUTH_INVALID
    assert bench.ask_token(PIN)[0] is Status.SUCCESS


def test_reset_that_fails_changes_nothing(bench: Bench) -> None:
    bench.set_pin()
    credential = bench.new_credential()
    bench.vault.fail_next["reset"] = DeviceError(Reason.DEVICE_FAILED, "No.")
    assert bench.command(Command.RESET)[0] is Status.OTHER
    assert bench.get(bench.token(), k3=[descriptor(credential)])[0] is Status.SUCCESS


def test_card_can_be_reset_at_any_time() -> None:
    bench = Bench(MemoryVault(), options=AuthenticatorOptions(reset_window=None))
    bench.set_pin()
    bench.clock.now += 100_000
    assert bench.command(Command.RESET)[0] is Status.SUCCESS
    assert not bench.vault.pin_state().is_set


def test_reset_takes_settings_and_large_blobs_too() -> None:
    bench = Bench(MemoryVault(pin_gated=False))
    bench.set_pin()
    array = blob_array(b"\x81\x00")
    assert bench.write_blobs(array, 0, len(array), bench.token(permissions=LBW, rp_id=None))[0] is Status.SUCCESS
    token = bench.token(permissions=ACFG, rp_id=None)
    assert bench.configure(2, None, token)[0] is Status.SUCCESS
    assert bench.configure(3, {1: 8, 2: [RP_ID]}, token)[0] is Status.SUCCESS
    assert bench.command(Command.RESET)[0] is Status.SUCCESS
    assert bench.vault.settings == AuthenticatorSettings()
    assert bench.vault.large_blobs() == INITIAL_LARGE_BLOBS
    info = bench.expect(Command.GET_INFO)
    assert (info[4]["alwaysUv"], info[0x0C], info[0x0D]) == (False, False, 4)


class WaitingUser:
    """Blocks in the question until it is released."""

    def __init__(self) -> None:
        self.waiting, self.release = threading.Event(), threading.Event()

    def confirm(self, _request: PresenceRequest, cancelled: Callable[[], bool]) -> Presence:
        self.waiting.set()
        self.release.wait(10)
        return Presence.CANCELLED if cancelled() else Presence.GRANTED


def test_second_request_meanwhile_is_busy(bench: Bench) -> None:
    user, answers = WaitingUser(), []
    thread = threading.Thread(target=lambda: answers.append(bench.authenticator.handle(b"\x0b", user)))
    thread.start()
    assert user.waiting.wait(10)
    assert bench.send(b"\x04")[0] is Status.CHANNEL_BUSY
    bench.authenticator.tick()
    user.release.set()
    thread.join(10)
    assert answers == [b"\x00"]
    assert bench.send(b"\x04")[0] is Status.SUCCESS


def test_a_key_given_up_otherwise_is_destroyed_once(bench: Bench) -> None:
    bench.set_pin()
    credential = bench.stored(bench.new_credential()).id
    bench.authenticator.forget(credential)
    bench.authenticator.forget(credential)
    assert bench.vault.find(hash_of(RP_ID), credential) is None
    bench.vault.fail_next["delete"] = DeviceError(Reason.DEVICE_FAILED, "No.")
    with pytest.raises(DeviceError, match="No"):
        bench.authenticator.forget(credential)


def test_cancel_while_waiting(bench: Bench) -> None:
    assert bench.send(b"\x0b", cancelled=lambda: True)[0] is Status.KEEPALIVE_CANCEL


@pytest.mark.parametrize("answer", [None, False, True, "granted"])
def test_only_a_granted_presence_is_one(answer: Any) -> None:
    """Whoever asks the user may be wrong about how to say it; that must not reset anything."""
    bench = Bench(MemoryVault(pin_gated=False), options=AuthenticatorOptions(u2f=True))
    assert bench.make()[0] is Status.SUCCESS  # control
    before = bench.vault.snapshot
    bench.user.answer = answer
    assert bench.command(Command.SELECTION)[0] is Status.OPERATION_DENIED
    assert bench.command(Command.RESET)[0] is Status.OPERATION_DENIED
    assert bench.make()[0] is Status.OPERATION_DENIED
    assert bench.make(k7={"rk": True}, k8=b"", k9=2)[0] is Status.OPERATION_DENIED
    assert bench.authenticator.handle_u2f(1, 0, 0, bytes(64), bench.user) == (b"", 0x6985)
    assert bench.vault.snapshot == before


class DeafUser:
    """Confirms everything, and does not hear that the command was cancelled meanwhile."""

    def __init__(self) -> None:
        self.asked = False

    def confirm(self, _request: PresenceRequest, _cancelled: Callable[[], bool]) -> Presence:
        self.asked = True
        return Presence.GRANTED


def test_confirmation_after_the_cancel_grants_nothing() -> None:
    bench = Bench(MemoryVault(pin_gated=False), options=AuthenticatorOptions(u2f=True))
    request = bytes([Command.MAKE_CREDENTIAL]) + cbor.encode(bench.make_parameters())
    before, user = bench.vault.snapshot, DeafUser()
    answer = bench.authenticator.handle(request, user, lambda: user.asked)
    assert answer == bytes([Status.KEEPALIVE_CANCEL])
    user = DeafUser()
    assert bench.authenticator.handle_u2f(1, 0, 0, bytes(64), user, lambda: user.asked) == (b"", 0x6985)
    assert bench.vault.snapshot == before
    assert bench.authenticator.handle(request, user, lambda: False)[0] == Status.SUCCESS  # control


class SlowVault(MemoryVault):
    """So slow that the command is cancelled while the key is being made."""

    cancelled = False

    def create_key(self, request: KeyRequest) -> Credential:
        self.cancelled = True
        return super().create_key(request)


def test_cancel_while_a_key_is_made_stores_none() -> None:
    vault = SlowVault(pin_gated=False)
    bench = Bench(vault, options=AuthenticatorOptions(u2f=True))
    before = vault.snapshot
    request = bytes([Command.MAKE_CREDENTIAL]) + cbor.encode(bench.make_parameters(k7={"rk": True}))
    assert bench.send(request, lambda: vault.cancelled)[0] is Status.KEEPALIVE_CANCEL
    vault.cancelled = False
    u2f = bench.authenticator.handle_u2f(1, 0, 0, bytes(64), bench.user, lambda: vault.cancelled)
    assert u2f == (b"", 0x6985)
    assert vault.snapshot == before
    assert bench.send(request)[0] is Status.SUCCESS  # control
