"""One of several keys, by touch or by the credential it holds; and what a key says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from fido2.ctap import CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from keyvouch.errors import DeviceError, Reason
from keyvouch.ids import CredentialId
from keyvouch_client.security_keys.discovery import ConnectedKey, Transport
from keyvouch_client.security_keys.selection import choose_by_touch, holding
from keyvouch_client.security_keys.standing import read_standing, require_usable
from support.security_keys import (
    ASSERT,
    CLIENT_PIN,
    EXTENSIONS,
    FORCE_PIN_CHANGE,
    GET_INFO,
    MAKE,
    OPTIONS,
    SELECT,
    VERSIONS,
    Bench,
    Finger,
    KeyOnBench,
)

ERR = CtapError.ERR
RP_ID = "login.example.org"
PIN = "123456"


def idle(name: str, **given: Any) -> KeyOnBench:
    """A key nobody touches before told to."""
    return KeyOnBench(name, finger=Finger(always=False), **given)


class Choice:
    """A choice by touch, under way on a thread."""

    def __init__(self, bench: Bench, **given: Any) -> None:
        self.cancelled = Event()
        self.told: list[Sequence[ConnectedKey]] = []
        self.pool = ThreadPoolExecutor(1)
        wanted = {"seconds": 60.0, "cancelled": self.cancelled, "asking": self.told.append, **given}
        self.future: Future[ConnectedKey] = self.pool.submit(lambda: choose_by_touch(bench.keys, **wanted))
        self.pool.shutdown(wait=False)

    def result(self) -> ConnectedKey:
        return self.future.result(30)

    def failure(self) -> DeviceError:
        error = self.future.exception(30)
        assert isinstance(error, DeviceError)
        assert error.fix
        return error


def test_the_only_key_needs_no_touch() -> None:
    key = idle("Only")
    bench = Bench().put_in(key)
    assert choose_by_touch(bench.keys, seconds=0) == bench[key]
    assert not key.commands


def test_the_key_that_is_touched_is_chosen_and_the_others_stop_blinking() -> None:
    keys = [idle("One"), idle("Two"), idle("Three")]
    bench = Bench().put_in(*keys)
    choice = Choice(bench)
    for key in keys:
        assert key.finger.is_asked.wait(30)
    keys[1].finger.touches.set()
    assert choice.result() == bench[keys[1]]
    assert choice.told == [list(bench.plugged.values())]
    assert [key.open for key in keys] == [0, 0, 0]
    assert all(key.commands.count(SELECT) == 1 for key in keys)


def test_older_keys_are_asked_in_the_older_way() -> None:
    old, new = idle("CTAP 2.0"), idle("CTAP 2.1")
    old.says(VERSIONS, ["U2F_V2", "FIDO_2_0"])
    for pin in (None, PIN):
        if pin:
            old.set_pin(pin)
        bench = Bench().put_in(old, new)
        old.finger.is_asked.clear()
        choice = Choice(bench)
        assert old.finger.is_asked.wait(30)
        old.finger.touches.set()
        assert choice.result() == bench[old]
    assert SELECT not in old.commands
    assert MAKE in old.commands


def test_a_key_whose_time_is_over_is_asked_again() -> None:
    slow, other = idle("Slow"), idle("Other")
    bench = Bench().put_in(slow, other)
    slow.refuses(SELECT, ERR.USER_ACTION_TIMEOUT)
    choice = Choice(bench)
    assert other.finger.is_asked.wait(30)
    while slow.commands.count(SELECT) < 3:
        assert not choice.future.done()
    slow.statuses.clear()
    assert slow.finger.is_asked.wait(30)
    slow.finger.touches.set()
    assert choice.result() == bench[slow]


@pytest.mark.parametrize("status", [ERR.OPERATION_DENIED, ERR.INVALID_COMMAND, ERR.OTHER, ERR.CHANNEL_BUSY])
def test_a_key_that_refuses_drops_out(status: int) -> None:
    refusing, other = idle("Refusing"), idle("Other")
    refusing.refuses(SELECT, status)
    bench = Bench().put_in(refusing, other)
    choice = Choice(bench)
    assert other.finger.is_asked.wait(30)
    other.finger.touches.set()
    assert choice.result() == bench[other]


@pytest.mark.parametrize("after", range(3))
def test_a_key_that_is_pulled_out_drops_out(after: int) -> None:
    pulled, other = idle("Pulled"), idle("Other")
    pulled.fails = after
    bench = Bench().put_in(pulled, other)
    choice = Choice(bench)
    assert other.finger.is_asked.wait(30)
    other.finger.touches.set()
    assert choice.result() == bench[other]
    assert pulled.open in (0, 1)  # with three calls it blinks still, until it is told to stop


def test_a_u2f_key_is_not_asked() -> None:
    old, one, two = idle("U2F", ctap2=False), idle("One"), idle("Two")
    bench = Bench().put_in(old, one, two)
    choice = Choice(bench)
    assert two.finger.is_asked.wait(30)
    two.finger.touches.set()
    assert choice.result() == bench[two]
    assert not old.commands


def test_a_key_that_comes_meanwhile_can_be_touched() -> None:
    one, two, late = idle("One"), idle("Two"), idle("Late")
    bench = Bench().put_in(one, two)
    choice = Choice(bench)
    assert one.finger.is_asked.wait(30)
    bench.put_in(late)
    assert late.finger.is_asked.wait(30)
    late.finger.touches.set()
    assert choice.result() == bench[late]


def test_only_eligible_keys_blink() -> None:
    one, two, three = idle("One"), idle("Two"), idle("Three")
    bench = Bench().put_in(one, two, three)
    choice = Choice(bench, among=lambda key: key.name != "One")
    assert two.finger.is_asked.wait(30)
    assert three.finger.is_asked.wait(30)
    two.finger.touches.set()
    assert choice.result() == bench[two]
    assert not one.commands


@pytest.mark.parametrize("only", ["all of them", "those that were there"])
def test_a_card_that_lies_on_its_reader_is_not_chosen_before_it_is_laid_down_anew(only: str) -> None:
    card, key = KeyOnBench("Card"), idle("Key")
    bench = Bench().put_in(card, transport=Transport.NFC, place="Reader").put_in(key)
    there = set(bench.plugged.values())
    choice = Choice(bench, among=lambda key: only == "all of them" or key in there)
    assert key.finger.is_asked.wait(30)
    assert not card.finger.asked
    bench.take_out(card)
    bench.put_in(card, transport=Transport.NFC, place="Reader")
    assert choice.result() == bench[card]


def test_cards_alone_are_chosen_from_as_they_lie() -> None:
    cards = [KeyOnBench("One"), idle("Two")]
    bench = Bench().put_in(*cards, transport=Transport.CARD)
    assert Choice(bench).result() == bench[cards[0]]


def test_the_choice_is_withdrawn() -> None:
    keys = [idle("One"), idle("Two")]
    choice = Choice(Bench().put_in(*keys))
    assert keys[0].finger.is_asked.wait(30)
    choice.cancelled.set()
    assert choice.failure().reason is Reason.USER_CANCELLED
    assert [key.open for key in keys] == [0, 0]


def test_nobody_touches() -> None:
    keys = [idle("One"), idle("Two")]
    assert Choice(Bench().put_in(*keys), seconds=0.0).failure().reason is Reason.USER_TIMEOUT
    assert [key.open for key in keys] == [0, 0]


def test_no_key_is_there() -> None:
    assert Choice(Bench()).failure().reason is Reason.AUTHENTICATOR_NOT_CONNECTED


# who holds a credential


def make(key: KeyOnBench, protect: int | None = None) -> CredentialId:
    """A server-side credential, as anybody's client makes it."""
    if not key.vault.pin_state().is_set:
        key.set_pin(PIN)
    with key.device() as device:
        ctap = Ctap2(device)
        pin = ClientPin(ctap)
        token = pin.get_pin_token(PIN, ClientPin.PERMISSION.MAKE_CREDENTIAL, RP_ID)
        made = ctap.make_credential(
            bytes(32),
            {"id": RP_ID, "name": RP_ID},
            {"id": b"user", "name": "alice", "displayName": "Alice"},
            [{"type": "public-key", "alg": -7}],
            extensions=None if protect is None else {"credProtect": protect},
            pin_uv_param=pin.protocol.authenticate(token, bytes(32)),
            pin_uv_protocol=pin.protocol.VERSION,
        )
    data = made.auth_data.credential_data
    assert data is not None
    return CredentialId(data.credential_id)


def test_the_holder_is_found_without_pin_and_touch() -> None:
    keys = [KeyOnBench("One"), KeyOnBench("Two"), KeyOnBench("Three")]
    credentials = [make(key) for key in keys]
    for key in keys:
        key.finger.asked.clear()
        key.commands.clear()
    bench = Bench().put_in(*keys)
    for key, credential in zip(keys, credentials, strict=True):
        found = holding(bench.keys.connected(), RP_ID, [CredentialId(b"x" * 16), credential])
        assert found.holders == {bench[key]: credential}
        assert found.unsure == ()
    assert not any(key.finger.asked for key in keys)
    assert not any(CLIENT_PIN in key.commands for key in keys)
    assert not any(key.open for key in keys)


def test_another_relying_party_or_a_reset_key_holds_nothing() -> None:
    key = KeyOnBench()
    credential = make(key)
    bench = Bench().put_in(key)
    connected = bench.keys.connected()
    assert holding(connected, RP_ID, [credential]).holders  # control
    assert not holding(connected, "other.example.org", [credential]).holders
    key.reset()
    found = holding(connected, RP_ID, [credential])
    assert (dict(found.holders), found.unsure) == ({}, ())


def test_a_hidden_credential_may_be_on_every_key_that_denies() -> None:
    hiding, plain = KeyOnBench("Hiding"), KeyOnBench("Plain")
    credential = make(hiding)
    for key in (hiding, plain):
        key.refuses(ASSERT, ERR.NO_CREDENTIALS)
        key.says(EXTENSIONS, ["credProtect"] if key is hiding else [])
    bench = Bench().put_in(hiding, plain)
    connected = bench.keys.connected()
    assert holding(connected, RP_ID, [credential], may_be_hidden=True).unsure == (bench[hiding],)
    assert holding(connected, RP_ID, [credential]).unsure == ()


def test_a_key_that_wants_the_pin_first_is_unsure() -> None:
    key = KeyOnBench()
    key.refuses(ASSERT, ERR.PUAT_REQUIRED)
    bench = Bench().put_in(key)
    assert holding(bench.keys.connected(), RP_ID, [CredentialId(b"c")]).unsure == (bench[key],)


def test_keys_that_fail_or_know_no_ctap2_hold_nothing() -> None:
    gone, old, junk, good = KeyOnBench("Gone"), KeyOnBench("U2F", ctap2=False), KeyOnBench("Junk"), KeyOnBench("Good")
    credential = make(good)
    gone.fails = 1
    junk.changes[GET_INFO] = lambda answer: answer.clear()
    bench = Bench().put_in(gone, old, junk, good)
    found = holding(bench.keys.connected(), RP_ID, [credential])
    assert set(found.holders) == {bench[good]}
    assert found.unsure == (bench[junk],)


# how a key stands


def standing(key: KeyOnBench) -> Any:
    return read_standing(Bench().put_in(key)[key])


def test_a_key_tells_how_it_stands() -> None:
    key = KeyOnBench()
    found = standing(key)
    assert (found.takes_pin, found.pin_is_set, found.pin_retries_left) == (True, False, None)
    assert found.aaguid == key.vault.properties.aaguid
    assert found.asks_pin
    require_usable(found)
    key.set_pin()
    key.says(FORCE_PIN_CHANGE, True)
    found = standing(key)
    assert (found.pin_is_set, found.pin_retries_left, found.must_change_pin) == (True, 8, True)
    assert not key.finger.asked
    assert key.open == 0


def test_a_key_with_a_fingerprint_needs_no_pin() -> None:
    key = KeyOnBench()
    key.says(OPTIONS, {"uv": True})
    found = standing(key)
    assert found.built_in
    assert not found.asks_pin
    require_usable(found)


def without_pin(answer: dict[int, Any]) -> None:
    del answer[OPTIONS]["clientPin"]


def test_keys_that_can_verify_nobody_are_refused_with_the_reason() -> None:
    key = KeyOnBench()
    require_usable(standing(key))  # control
    key.changes[GET_INFO] = without_pin
    with pytest.raises(DeviceError, match="neither a PIN nor a fingerprint") as caught:
        require_usable(standing(key))
    assert caught.value.reason is Reason.UNSUPPORTED
    key.says(OPTIONS, {"uv": False})
    with pytest.raises(DeviceError, match="nothing is enrolled"):
        require_usable(standing(key))
    key.says(OPTIONS, {"uv": True})
    require_usable(standing(key))


def test_a_u2f_key_is_refused_with_the_reason() -> None:
    with pytest.raises(DeviceError, match="U2F only") as caught:
        standing(KeyOnBench(ctap2=False))
    assert (caught.value.reason, bool(caught.value.fix)) == (Reason.UNSUPPORTED, True)


@pytest.mark.parametrize("after", range(3))
def test_a_key_pulled_out_while_it_tells(after: int) -> None:
    key = KeyOnBench()
    key.set_pin()
    key.fails = after
    if after == 2:
        standing(key)  # two calls are all it takes
        return
    with pytest.raises(DeviceError) as caught:
        standing(key)
    assert caught.value.reason is Reason.AUTHENTICATOR_REMOVED
    assert key.open == 0


@pytest.mark.parametrize("change", [dict.clear, lambda a: a.update({1: 5}), lambda a: a.update({4: [1]})])
def test_a_key_that_talks_nonsense(change: Any) -> None:
    key = KeyOnBench()
    key.changes[GET_INFO] = change
    with pytest.raises(DeviceError) as caught:
        standing(key)
    assert caught.value.reason is Reason.DEVICE_FAILED
