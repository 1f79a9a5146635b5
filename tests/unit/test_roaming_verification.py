"""How a security key verifies its user and waits for a touch, every state of its PIN, and keys that are pulled out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from fido2.ctap import CtapError

from keyvouch.errors import DeviceError, Reason, UsageError
from keyvouch.webauthn import AuthenticatorData, Flags
from keyvouch_agent.pin_standing import check_pin_usable, describe_pin
from keyvouch_agent.ports import Gate, Pin, Registration
from keyvouch_agent.providers.touch import TouchPatience
from keyvouch_agent.roaming.provider import RoamingProvider
from support.roaming import CREATION, PIN, RP_ID, Person, enrolled_on, failure, make_key, outcome, provider_over, sign
from support.security_keys import (
    ASSERT,
    CLIENT_PIN,
    GET_INFO,
    MAKE,
    OPTIONS,
    Bench,
    KeyOnBench,
)

ERR = CtapError.ERR
MOMENTS = 18
"""Commands of a ceremony, and some more."""


@pytest.fixture
def key() -> KeyOnBench:
    key = KeyOnBench("Maker Key")
    key.set_pin(PIN)
    return key


@pytest.fixture
def bench(key: KeyOnBench) -> Bench:
    return Bench().put_in(key)


@pytest.fixture
def ui() -> Person:
    return Person()


@pytest.fixture
def provider(bench: Bench) -> RoamingProvider:
    return provider_over(bench)


# user verification


def test_a_first_pin_is_set_in_place(ui: Person) -> None:
    key = KeyOnBench()
    ui.new_pin = PIN
    assert make_key(provider_over(Bench().put_in(key)), ui)
    assert ui.asked == [("new pin", 6), "touch"]
    assert ui.told == ["This security key has no PIN yet. The one you choose is the key's own, wherever it is used."]
    assert key.vault.pin_state().is_set


def test_a_first_pin_is_as_long_as_the_key_wants(ui: Person) -> None:
    key = KeyOnBench()
    key.says(0x0D, 8)
    ui.new_pin = "1234567"
    provider = provider_over(Bench().put_in(key))
    assert failure(lambda: make_key(provider, ui)).reason is Reason.PIN_POLICY
    assert ui.asked == [("new pin", 8)]
    assert not key.vault.pin_state().is_set
    ui.new_pin = "12345678"
    assert make_key(provider, ui)  # control


def test_without_a_pin_there_is_no_key(ui: Person) -> None:
    key = KeyOnBench()
    assert failure(lambda: make_key(provider_over(Bench().put_in(key)), ui)).reason is Reason.PIN_NOT_SET
    assert MAKE not in key.commands


def test_keys_that_can_verify_nobody_are_refused_before_anything_is_asked(ui: Person) -> None:
    def without_pin(answer: dict[int, Any]) -> None:
        del answer[OPTIONS]["clientPin"]

    bare, old = KeyOnBench("Bare"), KeyOnBench("U2F", ctap2=False)
    bare.changes[GET_INFO] = without_pin
    for key in (bare, old):
        provider = provider_over(Bench().put_in(key))
        assert failure(lambda p=provider: p.ready(ui, Event())).reason is Reason.UNSUPPORTED  # type: ignore[misc]
        assert provider.capabilities().uv_by is Gate.NONE
        assert failure(lambda p=provider: make_key(p, ui)).reason is Reason.UNSUPPORTED  # type: ignore[misc]
    assert not ui.asked


def test_wrong_pins_are_counted_and_the_last_try_is_told(provider: RoamingProvider, ui: Person) -> None:
    ui.pin = "999999"
    error = failure(lambda: make_key(provider, ui))
    assert (error.reason, error.retries_left) == (Reason.PIN_WRONG, 7)
    assert ui.asked == [("pin", 8, 6)]
    found = provider.capabilities()
    assert found.pin_retries_left == 7
    assert describe_pin(found) == "7 PIN tries left"


def test_the_last_try_is_said_to_be_one_H3(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench)
    ui.pin = "999999"
    while (left := provider.capabilities().pin_retries_left) is not None and left > 1:
        failure(lambda: make_key(provider, ui))
        bench.take_out(key)
        bench.put_in(key)
    assert describe_pin(provider.capabilities()) == "1 PIN try left: a wrong one blocks the PIN"
    error = failure(lambda: make_key(provider, ui))
    assert (error.reason, error.retries_left) == (Reason.PIN_BLOCKED, 0)
    asked = len(ui.asked)
    bench.take_out(key)
    bench.put_in(key)
    assert failure(lambda: make_key(provider, ui)).reason is Reason.PIN_BLOCKED
    assert len(ui.asked) == asked  # nobody types into a blocked one
    assert failure(lambda: check_pin_usable(provider.capabilities())).reason is Reason.PIN_BLOCKED


def test_three_wrong_pins_in_a_row_and_the_key_is_put_in_again_H3(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench)
    ui.pin = "999999"
    reasons = [failure(lambda: make_key(provider, ui)).reason for _ in range(3)]
    assert reasons == [Reason.PIN_WRONG, Reason.PIN_WRONG, Reason.PIN_POWER_CYCLE]

    def again() -> None:
        bench.take_out(key)
        bench.put_in(key)

    ui.pin, ui.acts["taken out and put in again"] = PIN, again
    ui.asked.clear()
    assert make_key(provider, ui)
    assert ui.asked == [("pin", 5, 6), "touch"]


def test_nobody_puts_the_key_in_again(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench, seconds=0.05)
    ui.pin = "999999"
    for _ in range(3):
        failure(lambda: make_key(provider, ui))
    asked = len(ui.asked)
    assert failure(lambda: make_key(provider, ui)).reason is Reason.PIN_POWER_CYCLE
    assert len(ui.asked) == asked


@pytest.mark.parametrize("ceremony", ["make", "sign"])
def test_a_key_that_demands_another_pin_gets_one(bench: Bench, key: KeyOnBench, ui: Person, ceremony: str) -> None:
    known = enrolled_on(bench, key, ui)
    key.wants_new_pin = True
    ui.new_pin = "new 123456"
    provider = provider_over(bench, known)
    assert make_key(provider, ui) if ceremony == "make" else sign(provider, ui, known.credential_id)
    assert ui.asked == [("pin", 8, 6), ("new pin", 6), "touch"]
    assert any("wants a new PIN" in text for text in ui.told)
    ui.pin = ui.new_pin
    assert sign(provider, ui, known.credential_id)  # the new one opens it


def test_a_key_that_demands_another_pin_and_nobody_gives_one(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    key.wants_new_pin = True
    error = failure(lambda: make_key(provider_over(bench), ui))
    assert error.reason is Reason.PIN_CHANGE_REQUIRED
    assert "keyvouch-agent pin" in error.fix
    assert key.vault.pin_state().retries_left == 8
    assert MAKE not in key.commands


# built-in user verification


def fingerprint(key: KeyOnBench) -> None:
    key.says(OPTIONS, {"uv": True})


def test_a_fingerprint_is_all_it_takes(ui: Person) -> None:
    key = KeyOnBench("Bio Key")
    key.verifies_itself = True
    bench = Bench().put_in(key)
    known = enrolled_on(bench, key, ui)
    provider = provider_over(bench, known)
    found = provider.capabilities()
    assert (found.asks_pin, found.pin_is_set) == (False, False)
    check_pin_usable(found)
    ui.pin = None
    signed = sign(provider, ui, known.credential_id)
    assert AuthenticatorData(signed.authenticator_data).flags == Flags.UP | Flags.UV
    assert ui.asked == ["touch"]
    assert "sensor" in ui.told[0]


def test_a_fingerprint_that_fails_gives_way_to_the_pin(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    fingerprint(key)
    provider = provider_over(bench)
    assert not provider.capabilities().asks_pin
    assert describe_pin(provider.capabilities()).startswith("verifies you itself")
    refuse_uv_token(key, ERR.UV_BLOCKED)
    assert make_key(provider, ui)
    assert ui.asked == [("pin", 8, 6), "touch"]
    assert "sensor" in ui.told[0]
    assert "takes its PIN" in ui.told[1]


def test_a_fingerprint_that_is_not_recognised_is_tried_again(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    fingerprint(key)
    refuse_uv_token(key, ERR.UV_INVALID)
    error = failure(lambda: make_key(provider_over(bench), ui))
    assert (error.reason, error.retries_left) == (Reason.PIN_WRONG, None)
    assert not ui.asked


def test_a_fingerprint_that_fails_and_no_pin(ui: Person) -> None:
    key = KeyOnBench()
    key.says(OPTIONS, {"uv": True, "clientPin": False})
    refuse_uv_token(key, ERR.UV_BLOCKED)
    assert failure(lambda: make_key(provider_over(Bench().put_in(key)), ui)).reason is Reason.BUILT_IN_UV_BLOCKED


def refuse_uv_token(key: KeyOnBench, status: int) -> None:
    """Answer getPinUvAuthTokenUsingUvWithPermissions (section 6.5.5.7.3) with a status."""
    key.subcommands[0x06] = status


# touch


def waiting(bench: Bench, ui: Person, **given: Any) -> Future[Registration]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(lambda: make_key(provider_over(bench, **given), ui))
    pool.shutdown(wait=False)
    return future


@pytest.fixture
def idle(bench: Bench, key: KeyOnBench) -> Iterator[KeyOnBench]:
    key.finger.always = False
    yield key
    key.finger.always = True
    key.finger.touches.set()


def test_a_touch_is_reminded_of(bench: Bench, idle: KeyOnBench, ui: Person) -> None:
    future = waiting(bench, ui, patience=TouchPatience(remind=0.02, give_up=60))
    while ui.asked.count("touch") < 4:
        assert not future.done()
    idle.finger.touches.set()
    assert future.result(30)


def test_nobody_touches_and_the_next_try_is_open(bench: Bench, idle: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench, patience=TouchPatience(remind=0.01, give_up=0.03))
    with provider.open(ui, rp_id=RP_ID) as session:
        assert failure(lambda: session.create_key(CREATION)).reason is Reason.USER_TIMEOUT
        idle.finger.always = True
        assert session.create_key(CREATION)


@pytest.mark.parametrize("status", [ERR.USER_ACTION_TIMEOUT, ERR.ACTION_TIMEOUT])
def test_the_key_itself_gives_up(bench: Bench, key: KeyOnBench, ui: Person, status: int) -> None:
    key.refuses(MAKE, status)
    assert failure(lambda: make_key(provider_over(bench), ui)).reason is Reason.USER_TIMEOUT


def test_the_wait_for_a_touch_is_withdrawn(bench: Bench, idle: KeyOnBench, ui: Person) -> None:
    with provider_over(bench).open(ui, rp_id=RP_ID) as session:
        ui.acts["touch"] = session.cancel
        assert failure(lambda: session.create_key(CREATION)).reason is Reason.USER_CANCELLED
    assert idle.open == 0


def test_the_wait_for_a_key_is_withdrawn(ui: Person) -> None:
    with provider_over(Bench()).open(ui, rp_id=RP_ID) as session:
        ui.acts["Connect"] = session.cancel
        assert failure(lambda: session.create_key(CREATION)).reason is Reason.USER_CANCELLED


def test_closing_waits_for_what_is_under_way(bench: Bench, idle: KeyOnBench, ui: Person) -> None:
    session = provider_over(bench).open(ui, rp_id=RP_ID)
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(session.create_key, CREATION)
        assert idle.finger.is_asked.wait(30)
        closing = pool.submit(session.close)
        assert not closing.done()
        session.cancel()
        assert isinstance(making.exception(30), DeviceError)
        closing.result(30)
    with pytest.raises(UsageError):
        session.create_key(CREATION)


def test_a_ceremony_is_not_disturbed_by_who_looks(bench: Bench, idle: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench)
    before = provider.capabilities()
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make_key, provider, ui)
        assert idle.finger.is_asked.wait(30)
        count = len(idle.commands)
        assert provider.capabilities() == before
        assert len(idle.commands) == count
        idle.finger.touches.set()
        assert making.result(30)


# pulled out


@pytest.mark.parametrize("after", range(MOMENTS))
def test_pulled_out_at_any_moment_of_a_registration_H10(bench: Bench, key: KeyOnBench, ui: Person, after: int) -> None:
    key.fails = after
    assert outcome(lambda: make_key(provider_over(bench), ui)) in {Reason.AUTHENTICATOR_REMOVED, "done"}
    assert key.open == 0
    key.fails = None
    assert make_key(provider_over(bench), ui)  # put in again, it goes on


def test_registrations_that_are_not_pulled_out_end(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    """The control of the two sweeps: the last of their moments is after the end."""
    known = enrolled_on(bench, key, ui)
    for ceremony in (
        lambda: make_key(provider_over(bench), ui),
        lambda: sign(provider_over(bench, known), ui, known.credential_id),
    ):
        key.commands.clear()
        assert outcome(ceremony) == "done"
        assert len(key.commands) < MOMENTS


@pytest.mark.parametrize("after", range(MOMENTS))
def test_pulled_out_at_any_moment_of_a_signature_H10(bench: Bench, key: KeyOnBench, ui: Person, after: int) -> None:
    known = enrolled_on(bench, key, ui)
    key.fails = after
    expected = {Reason.AUTHENTICATOR_REMOVED, Reason.AUTHENTICATOR_OTHER, "done"}
    assert outcome(lambda: sign(provider_over(bench, known, seconds=0.02), ui, known.credential_id)) in expected
    assert key.open == 0
    key.fails = None
    assert sign(provider_over(bench, known), ui, known.credential_id)  # put in again, it goes on


# keys that answer nonsense

NONSENSE = {
    "nothing": b"",
    "no data": b"\0",
    "a number": b"\0\x05",
    "a text that is none": b"\0\x61\xff",
    "lists in lists": b"\0" + b"\x81" * 7000,
    "maps in maps": b"\0" + b"\xa1" * 7000,
    "a map without end": b"\0\xbb" + b"\xff" * 8,
    "members of other types": b"\0\xa3\x01\x05\x02\x05\x03\x05",
    "a length beyond all": b"\0\xa1\x01\x3b" + b"\xff" * 8,
}
UNDERSTOOD = {Reason.DEVICE_FAILED, Reason.UNSUPPORTED, Reason.AUTHENTICATOR_OTHER}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("command", [GET_INFO, CLIENT_PIN, MAKE, ASSERT])
def test_nonsense_is_told_with_words_and_the_key_is_let_go(
    bench: Bench, key: KeyOnBench, ui: Person, command: int, nonsense: bytes
) -> None:
    enrolled = enrolled_on(bench, key, ui)
    signing, making = provider_over(bench, enrolled, seconds=0.05), provider_over(bench)
    key.nonsense[command] = nonsense
    if command != ASSERT:
        assert failure(lambda: make_key(making, ui)).reason in UNDERSTOOD
    if command != MAKE:
        assert failure(lambda: sign(signing, ui, enrolled.credential_id)).reason in UNDERSTOOD
    signing.capabilities()
    del key.nonsense[command]
    assert sign(signing, ui, enrolled.credential_id)  # control, and nothing is held
    assert key.open == 0


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_while_the_pin_is_changed(bench: Bench, key: KeyOnBench, ui: Person, nonsense: bytes) -> None:
    provider = provider_over(bench)
    with provider.open(ui, rp_id=RP_ID) as session:
        control = session.pin()
        assert control is not None
        key.nonsense[CLIENT_PIN] = nonsense
        assert control.retries_left in {None, 5}
        assert failure(lambda: control.change(Pin(PIN), Pin("654321"))).reason is Reason.DEVICE_FAILED
        key.nonsense = {GET_INFO: nonsense}
        assert failure(lambda: control.is_set).reason is Reason.DEVICE_FAILED
        key.nonsense = {}
        control.change(Pin(PIN), Pin("654321"))  # control


def test_an_account_that_cannot_be_read_holds_no_key(bench: Bench, ui: Person) -> None:
    broken = True

    def enrolled() -> None:
        if broken:
            raise DeviceError(Reason.DEVICE_FAILED, "The ledger cannot be read.", fix="Look at it.")

    provider = RoamingProvider(bench.keys, enrolled=enrolled)
    assert failure(lambda: provider.open(ui, rp_id=RP_ID)).reason is Reason.DEVICE_FAILED
    broken = False
    assert provider.capabilities().connected  # it would be "not connected" while a ceremony held the key


def test_a_key_that_cannot_be_closed_is_let_go_all_the_same(bench: Bench, key: KeyOnBench, ui: Person) -> None:
    provider = provider_over(bench)
    session = provider.open(ui, rp_id=RP_ID)
    assert session.pin() is not None
    key.fails_to_close = True
    session.close()
    assert provider.capabilities().connected
