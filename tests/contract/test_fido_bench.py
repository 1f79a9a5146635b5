"""The bench's security keys: one body of tests for the key in this process and the one on a reader, through pcscd.

They run on a real key too:
`./run test tests/contract/test_fido_bench.py --fido-device "ACS ACR122U 00 00" --fido-pin-fd 3 3<pin`.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from fido2.ctap import STATUS, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch.errors import DeviceError, Reason
from keyvouch_bench.bench_control import BenchControl
from keyvouch_bench.bench_server import BenchServer
from keyvouch_bench.device import BenchDevice, PromptStream
from keyvouch_bench.fido_reader import ReaderKey
from keyvouch_bench.pcscd import PrivatePcscd
from keyvouch_bench.virtual_fido import ON_A_READER, PIN, SecurityKey, VirtualFido
from keyvouch_client import SignIn
from support.fido_ceremonies import RelyingParty
from support.repository import ROOT

WRONG_PIN = "not this one"


@pytest.fixture(params=["virtual_fido", "fido_reader"])
def key(request: pytest.FixtureRequest) -> SecurityKey:
    found: SecurityKey = request.getfixturevalue(request.param)
    return found


def refused(code: CtapError.ERR, act: Callable[[], object]) -> None:
    with pytest.raises(CtapError) as caught:
        act()
    assert caught.value.code is code


def try_pin(key: SecurityKey, pin: str) -> bytes:
    return ClientPin(Ctap2(key.device)).get_pin_token(pin)


def tries_left(key: SecurityKey) -> int:
    return ClientPin(Ctap2(key.device)).get_pin_retries()[0]


# -- on every key, also a real one ----------------------------------------------------------------


def test_it_registers_and_signs_and_both_judges_accept(key: SecurityKey) -> None:
    party, pin = RelyingParty(), key.pin()
    record = party.register(key.device, pin)
    first = party.authenticate(key.device, pin, record)
    key.power_cycle()
    second = party.authenticate(key.device, pin, record)
    assert first.user_verified
    assert second.sign_count == 0 or second.sign_count > first.sign_count


def test_a_key_that_is_taken_away_says_so_and_comes_back(key: SecurityKey) -> None:
    info = Ctap2(key.device).info
    device = key.device
    key.remove()
    with pytest.raises((OSError, DeviceError, _card_errors())):  # type: ignore[misc] # pyscard has no types
        Ctap2(device).get_info()
    key.insert()
    assert Ctap2(key.device).info.aaguid == info.aaguid


@pytest.mark.fido_destructive
def test_eight_wrong_pins_block_the_key_three_at_a_time_and_a_reset_frees_it(key: SecurityKey) -> None:
    pin = key.pin()
    left = 8
    for tries in (3, 3, 2):
        for number in range(1, tries + 1):
            left -= 1
            expected = CtapError.ERR.PIN_INVALID
            if number == 3:
                expected = CtapError.ERR.PIN_AUTH_BLOCKED
            if left == 0:
                expected = CtapError.ERR.PIN_BLOCKED
            refused(expected, lambda: try_pin(key, WRONG_PIN))
            assert tries_left(key) == left
        if tries == 3:
            refused(CtapError.ERR.PIN_AUTH_BLOCKED, lambda: try_pin(key, pin))
            assert tries_left(key) == left, "a soft block counts nothing"
            key.power_cycle()
    key.power_cycle()
    refused(CtapError.ERR.PIN_BLOCKED, lambda: try_pin(key, pin))
    Ctap2(key.device).reset()
    assert Ctap2(key.device).info.options["clientPin"] is False
    assert try_pin(key, key.pin())


@pytest.mark.fido_destructive
def test_the_right_pin_gives_all_tries_back(key: SecurityKey) -> None:
    pin = key.pin()
    refused(CtapError.ERR.PIN_INVALID, lambda: try_pin(key, WRONG_PIN))
    assert tries_left(key) == 7
    assert try_pin(key, pin)
    assert tries_left(key) == 8


@pytest.mark.fido_destructive
def test_a_reset_takes_the_credentials(key: SecurityKey) -> None:
    party, pin = RelyingParty(), key.pin()
    record = party.register(key.device, pin)
    assert party.authenticate(key.device, pin, record)
    key.power_cycle()
    Ctap2(key.device).reset()
    key.pin()
    with pytest.raises(Exception, match=r"NO_CREDENTIALS|DEVICE_INELIGIBLE"):
        party.authenticate(key.device, pin, record)


# -- the touch, of emulated keys ------------------------------------------------------------------


@pytest.mark.fido_emulated
def test_it_waits_for_a_touch(key: SecurityKey) -> None:
    key.touch = False
    said: list[STATUS] = []
    asked = Event()

    def on_keepalive(status: STATUS) -> None:
        said.append(status)
        if status is STATUS.UPNEEDED:
            asked.set()

    with ThreadPoolExecutor(1) as thread:
        selection = thread.submit(Ctap2(key.device).selection, on_keepalive=on_keepalive)
        assert asked.wait(20)
        assert not selection.done()
        key.touch = True
        assert selection.result(20) is None
    assert STATUS.UPNEEDED in said


@pytest.mark.fido_emulated
def test_a_wait_for_a_touch_can_be_cancelled(key: SecurityKey) -> None:
    key.touch = False
    cancel = Event()
    refused(
        CtapError.ERR.KEEPALIVE_CANCEL,
        lambda: Ctap2(key.device).selection(event=cancel, on_keepalive=lambda _status: cancel.set()),
    )
    key.touch = True
    assert Ctap2(key.device).selection() is None  # the control: nothing is left of it


@pytest.mark.fido_emulated
def test_nobody_touches_it(virtual_fido: VirtualFido) -> None:
    virtual_fido.user.seconds = 0.0
    virtual_fido.touch = False
    refused(CtapError.ERR.USER_ACTION_TIMEOUT, Ctap2(virtual_fido.device).selection)


@pytest.mark.fido_emulated
def test_an_unplugged_key_does_not_answer(virtual_fido: VirtualFido) -> None:
    virtual_fido.remove()
    with pytest.raises(OSError, match="not plugged in") as caught:
        Ctap2(virtual_fido.device)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.fido_emulated
def test_an_empty_reader_is_named(fido_reader: ReaderKey) -> None:
    fido_reader.remove()
    with pytest.raises(DeviceError) as caught:
        _ = fido_reader.device
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED


@pytest.mark.fido_emulated
def test_two_keys_are_on_the_reader_at_once(
    fido_reader: ReaderKey, private_pcscd: PrivatePcscd, tmp_path: Path
) -> None:
    with (
        VirtualFido.make(tmp_path / "other", options=ON_A_READER) as key,
        ReaderKey(key, private_pcscd, slot=1) as other,
    ):
        party, pin = RelyingParty(), other.pin()
        record = party.register(other.device, pin)
        assert Ctap2(fido_reader.device).info.options["clientPin"] is False
        fido_reader.remove()
        assert party.authenticate(other.device, pin, record)


@pytest.mark.fido_emulated
def test_the_key_is_back_when_pcscd_is(fido_reader: ReaderKey, private_pcscd: PrivatePcscd) -> None:
    party, pin = RelyingParty(), fido_reader.pin()
    record = party.register(fido_reader.device, pin)
    fido_reader.close()
    private_pcscd.restart()
    assert party.authenticate(fido_reader.device, pin, record)


# -- the rig --------------------------------------------------------------------------------------


@pytest.mark.fido_emulated
def test_power_and_touch_over_http(fido_reader: ReaderKey) -> None:
    with BenchControl(fido_reader) as control:

        def get(path: str) -> Any:
            with urlopen(control.url + path, timeout=30) as answer:
                return answer.status

        assert get("/") == 200
        assert get("/usb1/touch/off") == 200
        assert fido_reader.touch is False
        assert get("/usb1/touch/on") == 200
        assert fido_reader.touch is True
        assert get("/usb1/power/off") == 200
        with pytest.raises(DeviceError):
            _ = fido_reader.device
        assert get("/usb1/power/on") == 200
        assert Ctap2(fido_reader.device).info.aaguid
        for other in ("/usb2/power/off", "/usb1/power", "/usb1/power/off/", "/etc/passwd"):
            with pytest.raises(HTTPError, match="404"):
                get(other)


# -- real keys: the one on the private reader plays one for another pytest ------------------------

THIS_FILE = "tests/contract/test_fido_bench.py"
SAME_BODIES = f"{THIS_FILE}::test_it_registers_and_signs_and_both_judges_accept"
DANGEROUS = f"{THIS_FILE}::test_eight_wrong_pins_block_the_key_three_at_a_time_and_a_reset_frees_it"


def another_pytest(fido_reader: ReaderKey, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, to which the key on our reader is a real one in a rig."""
    reading, writing = os.pipe()
    os.write(writing, f"{PIN}\n".encode())
    os.close(writing)
    with BenchControl(fido_reader) as control:
        try:
            return subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly",
                 "--fido-device", fido_reader.reader, "--fido-pin-fd", str(reading),
                 "--fido-rig", f"{control.url}/usb1", *arguments],
                cwd=ROOT, pass_fds=[reading], capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
        finally:
            os.close(reading)


@pytest.mark.fido_emulated
def test_the_same_bodies_run_on_a_real_key(fido_reader: ReaderKey) -> None:
    fido_reader.pin()
    fido_reader.close()
    done = another_pytest(
        fido_reader, SAME_BODIES, f"{THIS_FILE}::test_a_key_that_is_taken_away_says_so_and_comes_back"
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.fido_emulated
@pytest.mark.parametrize(
    "allowed", [(), ("--allow-reset", "Keyvouch"), ("--allow-reset", "")], ids=["no", "part", "empty"]
)
def test_nothing_destructive_runs_on_a_key_that_is_not_named(fido_reader: ReaderKey, allowed: tuple[str, ...]) -> None:
    fido_reader.close()
    done = another_pytest(fido_reader, DANGEROUS, SAME_BODIES, "--collect-only", *allowed)
    assert "2/4 tests collected (2 deselected)" in done.stdout, done.stdout + done.stderr


@pytest.mark.fido_emulated
def test_a_key_that_is_named_may_be_reset(fido_reader: ReaderKey) -> None:
    fido_reader.close()
    done = another_pytest(fido_reader, f"{DANGEROUS}[fido_reader]", "--allow-reset", fido_reader.reader)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.fido_emulated
def test_a_key_without_a_pin_gets_none_unless_it_is_named(fido_reader: ReaderKey) -> None:
    fido_reader.close()
    done = another_pytest(fido_reader, f"{SAME_BODIES}[fido_reader]")
    assert "has no PIN" in done.stdout, done.stdout + done.stderr
    assert Ctap2(fido_reader.device).info.options["clientPin"] is False


# -- the server and a device ----------------------------------------------------------------------


async def test_a_scripted_device_signs_its_user_in(keyvouch_server: BenchServer, enrolled_device: BenchDevice) -> None:
    async with (
        keyvouch_server.connect() as connection,
        PromptStream(enrolled_device) as stream,
        SignIn(
            connection, tenant=keyvouch_server.tenant, username=enrolled_device.username, app_id="shop", app_name="Shop"
        ) as asked,
    ):
        outcome = await stream.send(enrolled_device.approve(await stream.prompt(), asked.number))
        assert outcome.accepted
        assert (await asked.session()).session_id


def test_a_pass_for_anybody_and_a_new_one_for_the_same(keyvouch_server: BenchServer) -> None:
    first = keyvouch_server.access_pass("grace")
    assert keyvouch_server.access_pass("grace") != first
    assert keyvouch_server.enrol("grace").username == "grace"
    keyvouch_server.process.kill()
    keyvouch_server.process.start()
    assert keyvouch_server.access_pass("mary")


def _card_errors() -> type[Exception]:
    """What pyscard raises for a card that is gone."""
    from smartcard.Exceptions import SmartcardException

    return SmartcardException  # type: ignore[no-any-return]
