"""The engine: message encoding, GetInfo, Reset, Selection, one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fido2.ctap2.base import Info

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.engine import Command
from keyvouch_agent.authenticator.ports import Presence, PresenceRequest, Purpose
from keyvouch_agent.authenticator.status import Status
from support.authenticators import PIN, RP_ID, Bench, descriptor
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
        (b"\x0a\xa0", Status.INVALID_COMMAND),
        (b"\x0c", Status.INVALID_COMMAND),
        (b"\x0d", Status.INVALID_COMMAND),
        (b"\xff", Status.INVALID_COMMAND),
        (b"\x04\x00", Status.INVALID_LENGTH),
        (b"\x07\xa0", Status.INVALID_LENGTH),
        (b"\x08\xa0", Status.INVALID_LENGTH),
        (b"\x0b\xa0", Status.INVALID_LENGTH),
        (b"\x01", Status.INVALID_CBOR),
        (b"\x02", Status.INVALID_CBOR),
        (b"\x06", Status.INVALID_CBOR),
        (b"\x01\xa0", Status.MISSING_PARAMETER),
        (b"\x02\xa0", Status.MISSING_PARAMETER),
        (b"\x06\xa0", Status.MISSING_PARAMETER),
        (b"\x01\x80", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x06\xf6", Status.CBOR_UNEXPECTED_TYPE),
        (b"\x06\xa1\x02\x01\x00", Status.INVALID_CBOR),
        (b"\x06\xbf\x02\x01\xff", Status.INVALID_CBOR),
        (b"\x06\xa1\x02\x18\x01", Status.INVALID_CBOR),
        (b"\x06\xa2\x02\x01\x02\x01", Status.INVALID_CBOR),
        (b"\x06\xa2\x02\x01\x01\x01", Status.INVALID_CBOR),
        (b"\x06\xa1\x02\xc0\x01", Status.INVALID_CBOR),
        (b"\x06\xa1\x02\x9b" + b"\xff" * 8, Status.INVALID_CBOR),
        (b"\x01" + b"\x81" * 200 + b"\x00", Status.INVALID_CBOR),
        (b"\x04" + bytes(2048), Status.REQUEST_TOO_LARGE),
        (b"\x04", Status.SUCCESS),
        (b"\x06\xa1\x02\x01", Status.SUCCESS),
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
    }
    assert info.min_pin_length == 4
    assert info.max_msg_size == 2048
    assert info.algorithms[0] == {"alg": -7, "type": "public-key"}
    assert info.attestation_formats == ["packed", "none"]


def test_ungated_vault_does_not_claim_always_uv() -> None:
    assert "alwaysUv" not in Bench(MemoryVault(pin_gated=False)).expect(Command.GET_INFO)[4]


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
    assert (bench.vault.find(RP_ID, credential) is None) is (status is Status.SUCCESS)
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
    assert bench.make(token)[0] is Status.PIN_AUTH_INVALID
    bench.set_pin()
    assert bench.ask_token(PIN)[0] is Status.SUCCESS


def test_reset_that_fails_changes_nothing(bench: Bench) -> None:
    bench.set_pin()
    credential = bench.new_credential()
    bench.vault.fail_next["reset"] = DeviceError(Reason.DEVICE_FAILED, "No.")
    assert bench.command(Command.RESET)[0] is Status.OTHER
    assert bench.get(bench.token(), k3=[descriptor(credential)])[0] is Status.SUCCESS


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


def test_cancel_while_waiting(bench: Bench) -> None:
    assert bench.send(b"\x0b", cancelled=lambda: True)[0] is Status.KEEPALIVE_CANCEL
