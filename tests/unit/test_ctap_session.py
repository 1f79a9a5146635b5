"""The session with an authenticator that lies, vanishes, or is none: nothing wrong leaves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Event
from typing import Any

import pytest
from fido2.ctap import CtapDevice, CtapError
from fido2.hid import CAPABILITY

from keyvouch import cbor
from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.authenticator.device import AuthenticatorDevice
from keyvouch_agent.authenticator.engine import Authenticator
from keyvouch_agent.ports import KeyCreation, KeyUse
from keyvouch_agent.providers.ctap_session import CtapSession
from keyvouch_agent.providers.touch import TouchPatience
from keyvouch_agent.system import SystemEntropy
from keyvouch_client.security_keys.failures import device_error
from support.authenticators import BenchClock, ScriptedUser
from support.memory_vault import MemoryVault
from support.provider_ui import ScriptedInteraction

RP_ID = "login.example.org"
CREATION = KeyCreation(bytes(32), RP_ID, b"user", "alice", (-7,))

Change = Callable[[dict[int, Any]], None]


class LyingDevice(CtapDevice):
    """Passes everything through, and changes the successful answers to one command."""

    capabilities = CAPABILITY.CBOR

    def __init__(self, honest: AuthenticatorDevice) -> None:
        self.honest, self.command, self.closed = honest, 0, 0
        self.change: Change = lambda _answer: None

    def call(self, cmd: int, data: bytes = b"", event: Event | None = None, on_keepalive: Any = None) -> bytes:
        answer = self.honest.call(cmd, data, event, on_keepalive)
        if data[0] != self.command or answer[0]:
            return answer
        decoded: Any = cbor.decode(answer[1:])
        self.change(decoded)
        return answer[:1] + cbor.encode(decoded)

    def close(self) -> None:
        self.closed += 1
        self.honest.close()

    @classmethod
    def list_devices(cls) -> Iterator[LyingDevice]:
        return iter(())


@pytest.fixture
def device() -> LyingDevice:
    authenticator = Authenticator(MemoryVault(), BenchClock(), SystemEntropy())
    return LyingDevice(AuthenticatorDevice(authenticator, ScriptedUser()))


@pytest.fixture
def ui() -> ScriptedInteraction:
    return ScriptedInteraction(new_pin="123456")


@pytest.fixture
def session(device: LyingDevice, ui: ScriptedInteraction) -> CtapSession:
    return CtapSession(device, ui, rp_id=RP_ID, min_pin_length=6, patience=TouchPatience())


def flip(data: bytes, at: int, mask: int) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


WRONG_RP = lambda answer: answer.update({2: flip(answer[2], 0, 1)})  # noqa: E731
NO_UV = lambda answer: answer.update({2: flip(answer[2], 32, 0x04)})  # noqa: E731
NO_UP = lambda answer: answer.update({2: flip(answer[2], 32, 0x01)})  # noqa: E731


@pytest.mark.parametrize("change", [WRONG_RP, NO_UV, NO_UP])
def test_registration_that_does_not_fit_is_refused(session: CtapSession, device: LyingDevice, change: Change) -> None:
    assert session.create_key(CREATION)  # control
    device.command, device.change = 0x01, change
    with pytest.raises(DeviceError) as caught:
        session.create_key(CREATION)
    assert caught.value.reason is Reason.DEVICE_FAILED


@pytest.mark.parametrize(
    "change", [WRONG_RP, NO_UV, lambda answer: answer.update({1: {"id": b"other", "type": "public-key"}})]
)
def test_assertion_that_does_not_fit_is_refused(session: CtapSession, device: LyingDevice, change: Change) -> None:
    use = KeyUse(bytes(32), RP_ID, session.create_key(CREATION).credential_id)
    assert session.sign(use)  # control
    device.command, device.change = 0x02, change
    with pytest.raises(DeviceError) as caught:
        session.sign(use)
    assert caught.value.reason is Reason.DEVICE_FAILED


def test_pin_is_dropped_as_soon_as_the_operation_ends_A4(session: CtapSession, ui: ScriptedInteraction) -> None:
    use = KeyUse(bytes(32), RP_ID, session.create_key(CREATION).credential_id)
    session.sign(use)
    assert len(ui.pins) == 2
    for pin in ui.pins:
        with pytest.raises(ValueError, match="dropped"):
            pin.reveal()


def test_touch_reminder(session: CtapSession, ui: ScriptedInteraction) -> None:
    session.create_key(CREATION)
    assert ui.asked == [("new pin", 6), "touch"]


def test_close_closes_the_device_once(session: CtapSession, device: LyingDevice) -> None:
    with session:
        pass
    session.close()
    assert device.closed == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("gone"), Reason.AUTHENTICATOR_REMOVED),
        (CtapError(CtapError.ERR.INVALID_COMMAND), Reason.UNSUPPORTED),
        (ValueError("junk"), Reason.UNSUPPORTED),
    ],
)
def test_device_that_is_no_authenticator(
    device: LyingDevice, ui: ScriptedInteraction, error: Exception, reason: Reason
) -> None:
    def fail(_answer: dict[int, Any]) -> None:
        raise error

    device.command, device.change = 0x04, fail
    with pytest.raises(DeviceError) as caught:
        CtapSession(device, ui, rp_id=RP_ID, min_pin_length=6)
    assert caught.value.reason is reason
    assert device.closed == 1


def test_device_pulled_out_in_the_middle_H10(session: CtapSession, device: LyingDevice) -> None:
    def gone(_answer: dict[int, Any]) -> None:
        raise OSError("no such device")

    device.command, device.change = 0x01, gone
    with pytest.raises(DeviceError) as caught:
        session.create_key(CREATION)
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED
    assert "removed" in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.pop(2),
        lambda answer: answer.update({2: b"short"}),
        lambda answer: answer.update({2: 5}),
        lambda answer: answer.update({1: 5}),
        lambda answer: answer.update({3: []}),
    ],
)
@pytest.mark.parametrize("command", [0x01, 0x02, 0x06])
def test_malformed_answers(session: CtapSession, device: LyingDevice, command: int, change: Change) -> None:
    use = KeyUse(bytes(32), RP_ID, session.create_key(CREATION).credential_id)
    device.command, device.change = command, change
    for action in (lambda: session.create_key(CREATION), lambda: session.sign(use)):
        with suppress(DeviceError):  # nothing else may come out
            action()


def test_every_status_has_words_and_a_way_out() -> None:
    for status in CtapError.ERR:
        error = device_error(CtapError(status), retries_left=3)
        assert error.message
        assert error.fix
        assert error.metadata == {"ctap_status": f"0x{status:02x}"}
    assert device_error(CtapError(0xF3)).reason is Reason.DEVICE_FAILED
